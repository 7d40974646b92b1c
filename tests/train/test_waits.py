"""A step makes nothing for which a GPU would have to be waited for, seen on a CPU."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from runs import trained
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.config import Config
from stages.train.step import Step

# What has to know values before it can go on.
WAITING = {
    "aten._local_scalar_dense.default",
    "aten.equal.default",
    "aten.is_nonzero.default",
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


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("train.model=DiT-XS/2",),
        ("train.align.0.kind=nt-xent",),
        ("train.compute.micro_batches=2",),
        ("train.compute.recompute_activations=true",),
        ("train.precision=bfloat16",),
    ],
    ids=["sit", "dit", "nt-xent", "micro-batches", "recomputed", "bfloat16"],
)
def test_a_step_never_asks_for_a_value(
    trainable: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, settings: tuple[str, ...]
) -> None:
    real, watch = Step.__call__, Watch()

    def watched(step: Step, *arguments: Any) -> object:
        with watch:
            return real(step, *arguments)

    monkeypatch.setattr(Step, "__call__", watched)
    trained(trainable(*settings))
    assert watch.operations > 1000
    assert watch.waits == []


def test_what_waits_is_seen() -> None:
    values = torch.arange(4.0)
    with Watch() as watch:
        values.sum().item()
        values[values > 1] = 0
        values.nonzero()
    assert watch.waits == [
        "aten._local_scalar_dense.default",
        "aten.index_put_.default",
        "aten.nonzero.default",
    ]
