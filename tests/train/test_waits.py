"""A step makes nothing for which a GPU would have to be waited for, seen on a CPU."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from families import LATENTS, PIXELS, build_captioned
from runs import trained
from spaces import build_pixels
from texts import WITH_TEXT
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.config import Config, load_config
from stages.train.step import Step

# What has to know values before it can go on.
WAITING = {
    "aten._local_scalar_dense.default",
    "aten.equal.default",
    "aten.is_nonzero.default",
    # On a GPU it reads a value that is a tensor.
    "aten.masked_fill.Tensor",
    "aten.masked_fill_.Tensor",
    "aten.masked_select.default",
    "aten.nonzero.default",
    "aten.repeat_interleave.Tensor",
    "aten._unique2.default",
}


class Watch(TorchDispatchMode):
    """Counts operations, and notes those that wait."""

    def __init__(self) -> None:
        super().__init__()
        self.operations, self.waits = 0, list[str]()

    def __torch_dispatch__(
        self,
        function: Any,
        _types: Any,
        arguments: Sequence[Any] = (),
        options: Mapping[str, Any] | None = None,
    ) -> Any:
        self.operations += 1
        is_mask = str(function).startswith("aten.index") and any(
            isinstance(place, torch.Tensor) and place.dtype == torch.bool for place in arguments[1]
        )
        if str(function) in WAITING or is_mask:
            self.waits.append(str(function))
        return function(*arguments, **(options or {}))


def waits_of(config: Config, patch: pytest.MonkeyPatch) -> list[str]:
    """What the steps of a run do that waits."""
    real, watch = Step.__call__, Watch()

    def watched(step: Step, *arguments: Any) -> object:
        with watch:
            return real(step, *arguments)

    patch.setattr(Step, "__call__", watched)
    trained(config)
    assert watch.operations > 1000
    return watch.waits


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("train.model=DiT-XS/2",),
        ("train.align.0.kind=nt-xent",),
        ("train.compute.micro_batches=2",),
        ("train.compute.recompute_activations=true",),
        ("train.precision=bfloat16",),
        LATENTS["layers"],
    ],
    ids=["sit", "dit", "nt-xent", "micro-batches", "recomputed", "bfloat16", "layers"],
)
def test_a_step_never_asks_for_a_value(
    trainable: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, settings: tuple[str, ...]
) -> None:
    assert waits_of(trainable(*settings), monkeypatch) == []


@pytest.mark.parametrize("kind", ["dropout", "adapter"])
def test_a_step_on_pixels_never_asks_for_a_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    steps = (f"train.run={tmp_path / 'run'}", "train.steps=2")
    config = load_config(build_pixels(tmp_path), [*steps, *PIXELS[kind]])
    assert waits_of(config, monkeypatch) == []


def test_a_step_with_captions_never_asks_for_a_value(
    tmp_path: Path, tiny_vae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = (f"train.run={tmp_path / 'run'}", "train.steps=2")
    path = build_captioned(tmp_path, tiny_vae, "bert")
    assert waits_of(load_config(path, [*steps, *WITH_TEXT]), monkeypatch) == []


def test_what_waits_is_seen() -> None:
    values = torch.arange(4.0)
    with Watch() as watch:
        values.sum().item()
        values[values > 1] = 0
        values.nonzero()
        values.masked_fill(values > 1, values.new_zeros(()))
    assert watch.waits == [
        "aten._local_scalar_dense.default",
        "aten.index_put_.default",
        "aten.nonzero.default",
        "aten.masked_fill.Tensor",
    ]
