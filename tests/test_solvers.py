from typing import Any

import pytest
import torch
from reference import golden_model
from torch import Tensor

from stages.sample import solvers
from stages.sample.sampler import GuidedField
from stages.sample.settings import SOLVERS, SampleSettings

GUIDANCE = {"plain": (1.0, (0.0, 1.0)), "cfg": (1.8, (0.0, 1.0)), "interval": (2.5, (0.2, 0.7))}


def solve(solver: str, field: solvers.Field, start: Tensor, path: str, noise: Any) -> Tensor:
    if solver == "sde":
        return solvers.euler_maruyama(field, start, 8, path, noise)
    return getattr(solvers, solver)(field, start, 8)


@pytest.mark.parametrize("mode", GUIDANCE)
@pytest.mark.parametrize("path", ["linear", "cosine"])
@pytest.mark.parametrize("solver", ["euler", "heun", "sde"])
def test_solvers_and_guidance_are_those_of_the_published_code(
    sit_repa: Any, solver: str, path: str, mode: str
) -> None:
    guidance, interval = GUIDANCE[mode]
    settings = SampleSettings(guidance=guidance, guidance_interval=interval)
    field = GuidedField(golden_model(sit_repa), sit_repa["in.y"], settings)
    start = sit_repa["sampler.latents"].double()
    with torch.no_grad():
        end = solve(solver, field, start, path, lambda k: sit_repa[f"sampler.noise.{k}"])
    expected = sit_repa[f"sampler.{path}.{solver}.{mode}"]
    torch.testing.assert_close(end, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_a_constant_field_is_integrated_exactly(solver: str) -> None:
    start, velocity = torch.randn(2, 3, 4, 2, 2, dtype=torch.float64)
    end = solve(solver, lambda *_: velocity, start, "linear", None)
    torch.testing.assert_close(end, start - velocity)


def test_only_guided_steps_pay_for_two_forwards(sit_repa: Any) -> None:
    sizes: list[int] = []
    model = golden_model(sit_repa)
    model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    settings = SampleSettings(guidance=2.0, guidance_interval=(0.2, 0.7))
    field = GuidedField(model, sit_repa["in.y"], settings)
    with torch.no_grad():
        solvers.euler(field, sit_repa["sampler.latents"].double(), 10)
    # Steps begin at 1.0, 0.9 ... 0.1; six of them, 0.7 to 0.2, lie in the interval.
    assert sizes == [4, 4, 4, 8, 8, 8, 8, 8, 8, 4]


def test_every_solver_has_a_test() -> None:
    assert set(SOLVERS) == {"euler", "heun", "euler-maruyama"}
