"""Steps of solvers on a device without values: nothing mixes devices, nothing waits.

The meta device stands for a GPU. Who asks for a value of its tensors, such as by `.item()`,
`.cpu()`, `nonzero` or a mask as index, meets an error of torch's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from methods import BASE, LAYERS
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stages.model.transformer import TransformerConfig, without_storage
from stages.sample.correction import Correction
from stages.sample.sample_settings import SampleSettings
from stages.sample.sampler import Sampler

DEVICE = torch.device("meta")


class Meetings(TorchDispatchMode):
    """Notes operations on tensors of host and device, but for copies that nobody waits for.

    A single number of the host may be computed with: it goes along with the operation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found = list[str]()

    def __torch_dispatch__(
        self,
        function: Any,
        _types: Any,
        arguments: Sequence[Any] = (),
        options: Mapping[str, Any] | None = None,
    ) -> Any:
        name, options = str(function), options or {}
        made = function(*arguments, **options)
        tensors = [leaf for leaf in tree_leaves((arguments, made)) if isinstance(leaf, Tensor)]
        is_copy = name.startswith("aten.to.") or "copy" in name
        here = [one for one in tensors if one.device.type == "cpu" and (one.ndim or is_copy)]
        there = [one for one in tensors if one.device == DEVICE]
        if here and there and not options.get("non_blocking"):
            self.found.append(name)
        return made


def meetings(config: TransformerConfig, steps: int, **settings: Any) -> list[str]:
    """What is noted while three images are drawn, in steps some of which are guided."""
    correction = Correction(0.05, torch.zeros(4, 8, 8, dtype=torch.float64), {})
    sampler = Sampler(
        SampleSettings(steps=steps, guidance=1.8, guidance_interval=(0.3, 0.8), **settings),
        without_storage(config).eval(),
        "linear",
        SimpleNamespace(channels=4),  # type: ignore[arg-type]
        DEVICE,
        correction=None if config.learns_sigma else correction,
    )
    with Meetings() as noted:
        latents = sampler._solve([2, 3, 5])
    assert (latents.device, latents.dtype, latents.shape) == (DEVICE, torch.float64, (3, 4, 8, 8))
    return noted.found


@pytest.mark.parametrize(
    ("solver", "config", "settings"),
    [
        ("euler", {}, {}),
        ("heun", {}, {}),
        ("euler-maruyama", {}, {}),
        ("euler-maruyama", LAYERS, {"guided_channels": 3, "time_shift": 2.0}),
        ("euler-maruyama", {"class_features": 5}, {"class_guidance": 2.2}),
        (
            "euler-maruyama",
            {"joint_channels": 3},
            {"guide_components": True, "representation_guidance": 1.4},
        ),
    ],
    ids=["euler", "heun", "euler-maruyama", "layers", "class-token", "components"],
)
def test_no_step_of_a_sit_waits(
    solver: str, config: dict[str, Any], settings: dict[str, Any]
) -> None:
    assert meetings(replace(BASE, **config), 4, solver=solver, **settings) == []


@pytest.mark.parametrize("solver", ["ddpm", "ddim"])
def test_no_step_of_a_dit_waits(solver: str) -> None:
    config = replace(BASE, learns_sigma=True)
    tables = meetings(config, 4, solver=solver)
    # Those of the schedule are copied once, before the first step.
    assert len(tables) == 6
    assert meetings(config, 8, solver=solver) == tables


def test_what_waits_is_seen() -> None:
    there, here = torch.zeros(3, device=DEVICE), torch.zeros(3)
    with Meetings() as noted:
        assert (there + torch.tensor(2.0)).shape == (3,)
        here.to(DEVICE, non_blocking=True)
        assert noted.found == []
        here.to(DEVICE)
        there.copy_(here)
        there[torch.tensor([1, 2])]
        torch.tensor(2.0).to(DEVICE)
        assert len(noted.found) == 4
        asking = (Tensor.item, Tensor.cpu, Tensor.nonzero, lambda total: there[there > total])
        for ask in asking:
            with pytest.raises((RuntimeError, NotImplementedError)):
                ask(there.sum())
        with pytest.raises(RuntimeError, match="device"):
            there + here
