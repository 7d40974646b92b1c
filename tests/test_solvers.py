from typing import Any

import pytest
import torch
from reference import golden_model

from stages.sample.sampler import GuidedField
from stages.sample.settings import SampleSettings
from stages.sample.solvers import SOLVERS, euler, heun

GUIDANCE = {"plain": (1.0, (0.0, 1.0)), "cfg": (1.8, (0.0, 1.0)), "interval": (2.5, (0.2, 0.7))}


@pytest.mark.parametrize("mode", GUIDANCE)
@pytest.mark.parametrize("path", ["linear", "cosine"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_solvers_and_guidance_are_those_of_the_published_code(
    sit_repa: Any, solver: str, path: str, mode: str
) -> None:
    guidance, interval = GUIDANCE[mode]
    settings = SampleSettings(guidance=guidance, guidance_interval=interval)
    field = GuidedField(golden_model(sit_repa), sit_repa["in.y"], settings)
    start = sit_repa["sampler.latents"].double()
    with torch.no_grad():
        end = SOLVERS[solver](field, start, 8, path, lambda k: sit_repa[f"sampler.noise.{k}"])
    published = {"euler-maruyama": "sde"}.get(solver, solver)
    expected = sit_repa[f"sampler.{path}.{published}.{mode}"]
    torch.testing.assert_close(end, expected, rtol=0, atol=1e-4)


def test_a_constant_field_is_integrated_exactly() -> None:
    start, velocity = torch.randn(2, 3, 4, 2, 2, dtype=torch.float64)
    for solver in (euler, heun):
        end = solver(lambda *_: velocity, start, 8)
        torch.testing.assert_close(end, start - velocity)


def test_only_guided_steps_pay_for_two_forwards(sit_repa: Any) -> None:
    sizes: list[int] = []
    model = golden_model(sit_repa)
    model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    settings = SampleSettings(guidance=2.0, guidance_interval=(0.2, 0.7))
    field = GuidedField(model, sit_repa["in.y"], settings)
    with torch.no_grad():
        euler(field, sit_repa["sampler.latents"].double(), 10)
    # Steps begin at 1.0, 0.9 ... 0.1; six of them, 0.7 to 0.2, lie in the interval.
    assert sizes == [4, 4, 4, 8, 8, 8, 8, 8, 8, 4]
