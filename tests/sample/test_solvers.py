import math
import sys
from typing import Any

import pytest
import torch
from reference import golden_dit, golden_model
from solving import GUIDANCE, guided, solved
from torch import Tensor

from stages.sample.solvers import SOLVERS, find_solver
from stages.sample.solvers.respaced import even_times, respaced, strided_times, uneven_steps
from stages.sample.solvers.solver import SampleError

FLOW = [name for name, solver in SOLVERS.items() if solver.family == "SiT"]
FIXED = [name for name in FLOW if name != "dopri5"]


@pytest.mark.parametrize("mode", GUIDANCE)
@pytest.mark.parametrize("path", ["linear", "cosine"])
@pytest.mark.parametrize("solver", FIXED)
def test_solvers_and_guidance_are_those_of_the_published_code(
    sit_repa: Any, solver: str, path: str, mode: str
) -> None:
    guidance, interval = GUIDANCE[mode]
    field = guided(
        golden_model(sit_repa), sit_repa["in.y"], guidance=guidance, guidance_interval=interval
    )
    end = solved(
        solver,
        field,
        sit_repa["sampler.latents"],
        8,
        path,
        lambda k: sit_repa[f"sampler.noise.{k}"],
    )
    published = {"euler-maruyama": "sde"}.get(solver, solver)
    expected = sit_repa[f"sampler.{path}.{published}.{mode}"]
    torch.testing.assert_close(end, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("solver", "published"), [("ddpm", "10"), ("ddim", "ddim10")])
def test_solvers_of_dit_are_those_of_the_published_code(
    dit: Any, solver: str, published: str
) -> None:
    name = f"sampler.{published}"
    field = guided(golden_dit(dit), dit["in.y"])
    end = solved(
        solver, field, dit[f"{name}.latents"], 10, noise=lambda k: dit[f"{name}.noise.{k}"]
    )
    # The published state is float32, and some values are in the hundreds.
    torch.testing.assert_close(end, dit[f"{name}.sample"].double(), rtol=1e-6, atol=1e-4)


def test_steps_of_dit_are_respaced_as_published(dit: Any) -> None:
    assert even_times(10) == dit["sampler.10.timestep_map"].tolist()
    assert strided_times(10) == dit["sampler.ddim10.timestep_map"].tolist()
    assert even_times(1) == [0]
    assert even_times(1000) == strided_times(1000) == list(range(1000))


@pytest.mark.parametrize("count", [1, 7, 50, 250, 1000])
def test_a_respaced_diffusion_is_as_noisy_at_its_times_as_the_whole(count: int) -> None:
    times = even_times(count)
    parts = [respaced(t, torch.device("cpu")) for t in (times, list(range(1000)))]
    for position, time in enumerate(times):
        for name in ("signal", "noise"):
            torch.testing.assert_close(parts[0].at(name, position), parts[1].at(name, time))


def test_ddim_takes_every_nth_step_or_says_which_number_fits() -> None:
    assert uneven_steps(250) is None
    problem = uneven_steps(900)
    assert problem is not None
    assert problem.endswith("which never are 900; take 500")


def test_dit_s_guidance_of_three_channels_is_the_published_one(dit: Any) -> None:
    field = guided(golden_dit(dit), dit["in.y"], guidance=4.0, guided_channels=3)
    with torch.no_grad():
        predicted = field(dit["in.x"].double(), dit["in.t"], dit["in.t"])
    # Published: what is predicted with the label, then the same for the null class.
    expected = dit["output_with_cfg_4.0_official"][:4]
    torch.testing.assert_close(predicted, expected.double(), rtol=1e-5, atol=1e-5)


def test_by_default_all_channels_are_guided_and_no_variance_is(dit: Any) -> None:
    model, arguments = golden_dit(dit), (dit["x_t"].double(), 500.0, 500.0)
    with torch.no_grad():
        plain = guided(model, dit["in.y"])(*arguments)
        without = guided(model, torch.full_like(dit["in.y"], 10))(*arguments)
        field = guided(model, dit["in.y"], guidance=3.0)
        found = field(*arguments)
    torch.testing.assert_close(found[:, :4], (without + 3 * (plain - without))[:, :4])
    torch.testing.assert_close(found[:, 4:], plain[:, 4:])


@pytest.mark.parametrize("solver", [name for name in FLOW if name != "euler-maruyama"])
def test_a_constant_field_is_integrated_exactly(solver: str) -> None:
    start, velocity = torch.randn(2, 3, 4, 2, 2, dtype=torch.float64)
    end = solved(solver, lambda *_: velocity, start)
    torch.testing.assert_close(end, start - velocity)


def test_a_constant_drift_is_integrated_exactly_by_the_stochastic_solver() -> None:
    start, drift = torch.randn(2, 3, 4, 2, 2, dtype=torch.float64)
    # On the linear path, the drift of a velocity v at x is (2 - t) v + x.
    end = solved("euler-maruyama", lambda x, time, _: (drift - x) / (2 - time), start)
    torch.testing.assert_close(end, start - drift)


@pytest.mark.parametrize("solver", ["ddpm", "ddim"])
def test_dit_s_solvers_find_the_one_image_that_there_is(solver: str) -> None:
    clean, start = torch.randn(2, 3, 4, 2, 2, dtype=torch.float64)
    whole = respaced(list(range(1000)), torch.device("cpu"))

    def field(state: Tensor, time: float, _: float) -> Tensor:
        step = int(time)
        noise = (state - whole.at("signal", step) * clean) / whole.at("noise", step)
        return torch.cat([noise, torch.zeros_like(noise)], dim=1)

    end = solved(solver, field, start, 20, noise=lambda _: torch.randn(3, 4, 2, 2).double())
    torch.testing.assert_close(end, clean)


def test_only_guided_steps_pay_for_two_forwards(sit_repa: Any) -> None:
    sizes: list[int] = []
    model = golden_model(sit_repa)
    model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    settings = {"guidance": 2.0, "guidance_interval": (0.2, 0.7)}
    solved("euler", guided(model, sit_repa["in.y"], **settings), sit_repa["sampler.latents"], 10)
    # Steps begin at 1.0, 0.9 ... 0.1; six of them, 0.7 to 0.2, lie in the interval.
    assert sizes == [4, 4, 4, 8, 8, 8, 8, 8, 8, 4]


def test_dit_s_guidance_interval_counts_its_steps_from_0_to_1(dit: Any) -> None:
    sizes: list[int] = []
    model = golden_dit(dit)
    model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    settings = {"guidance": 2.0, "guidance_interval": (0.2, 0.7)}
    field = guided(model, dit["in.y"], **settings)
    solved("ddim", field, dit["sampler.ddim10.latents"], 10)
    assert sizes == [4, 4, 8, 8, 8, 8, 8, 8, 4, 4]


def test_the_adaptive_solver_comes_closer_with_smaller_tolerances() -> None:
    start, errors = torch.randn(3, 4, 2, 2, dtype=torch.float64), []
    for tolerance in (1e-2, 1e-4, 1e-6):
        tolerances = (tolerance, tolerance)
        end = solved("dopri5", lambda x, *_: 5 * x, start, tolerances=tolerances)
        errors.append((end - start * math.exp(-5)).abs().max().item())
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-5


def test_the_adaptive_solver_treats_each_image_by_itself(sit_repa: Any) -> None:
    model, start, labels = golden_model(sit_repa), sit_repa["sampler.latents"], sit_repa["in.y"]
    settings = {"guidance": 2.0, "guidance_interval": (0.2, 0.7)}
    together = solved("dopri5", guided(model, labels, **settings), start)
    for image in range(4):
        part = slice(image, image + 1)
        alone = solved("dopri5", guided(model, labels[part], **settings), start[part])
        torch.testing.assert_close(alone, together[part], rtol=0, atol=1e-4)


def test_without_its_library_the_adaptive_solver_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "torchode", None)
    with pytest.raises(SampleError, match=r"pip install 'repa-cache\[adaptive\]'"):
        solved("dopri5", lambda *_: None, torch.zeros(1, 4, 2, 2))


def test_the_solver_of_the_paper_is_the_default_of_each_family() -> None:
    assert find_solver("auto", "SiT") == "euler-maruyama"
    assert find_solver("auto", "DiT") == "ddpm"
    assert find_solver("heun", "SiT") == "heun"
