from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import torch
from class_tokens import entries
from compiling import COMPILING
from on_gpu import GPU, STEPS, assert_never_waits, assert_recorded_as_made
from runs import CPU, assert_equal_runs, cached_batches, log_values, trained

from pipeline.config import Config
from stages.encode.networks.autoencoder import Autoencoder
from stages.placement import Placement
from stages.sample.sampled_weights import SampleOptions, find_weights
from stages.sample.sampler import Sampler, make_sampled
from stages.train.randomness import Randomness

pytestmark = [pytest.mark.gpu, *COMPILING]

# Every option of alignments that computes something of its own.
ALIGNED = (
    "train.align.0.purify=true",
    'train.align.0.time_weight={kind = "sigmoid"}',
    "train.align.0.until=8",
    "train.align.0.fade=8",
    'train.align.1={kind = "token-similarity", encoder = "efficientnet-lite0", depth = 2}',
    'train.align.2={kind = "irepa", encoder = "efficientnet-lite0", depth = 3, purify = true}',
)

# Losses that compare images, and one that has a teacher.
COMPARED = (
    'train.align.1={kind = "contrastive", negatives = "other-class", skip_unlabelled = true}',
    'train.align.2={kind = "dispersive", recipe = "torch"}',
    'train.align.3={kind = "sra", depth = 1, teacher_depth = 3, constant = 2, decay = 4}',
)


def test_batches_on_the_gpu_are_those_on_the_cpu(trainable: Callable[..., Config]) -> None:
    config = trainable("train.steps=40")
    with (
        closing(cached_batches(config, GPU)) as there,
        closing(cached_batches(config, CPU)) as here,
    ):
        for step in range(40):
            one, other = there.read(step), here.read(step)
            for name, tensor in other.items():
                assert torch.equal(one[name].cpu(), tensor), name


@pytest.mark.parametrize(
    "settings",
    [
        ("train.compute.compile=false",),
        ("train.precision=float16", "train.compute.compile=false"),
        ("train.model=DiT-XS/2", "train.compute.compile=false"),
        ("train.precision=bfloat16",),
        ALIGNED,
        COMPARED,
        (*COMPARED, "train.compute.compile=false"),
        (entries(),),
    ],
    ids=[
        *("bfloat16", "float16", "dit", "compiled", "aligned", "compared", "compared-plain"),
        "class-token",
    ],
)
# So torch says of the mode itself, whenever it is switched on.
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype feature")
def test_a_step_never_waits_for_the_gpu(
    trainable: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, settings: tuple[str, ...]
) -> None:
    assert_never_waits(trainable(*STEPS, *settings), monkeypatch)


def test_training_starts_after_another_network_has_used_the_gpu(
    trainable: Callable[..., Config],
) -> None:
    config = trainable("train.device=cuda")
    Autoencoder(config.decoder.location, GPU.device).decode(torch.zeros(2, 4, 8, 8))
    assert trained(config, GPU).step == 4


@pytest.mark.parametrize("compile_blocks", ["true", "false"])
def test_a_run_on_the_gpu_resumes_bit_for_bit(
    trainable: Callable[..., Config], tmp_path: Path, compile_blocks: str
) -> None:
    more = ("train.device=cuda", "train.steps=8", f"train.compute.compile={compile_blocks}")
    whole = trainable(f"train.run={tmp_path / 'whole'}", *more)
    trained(whole, GPU)
    for steps in (5, 8):
        trained(trainable(*more, f"train.steps={steps}"), GPU)
    assert_equal_runs(whole, trainable())


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("train.compute.compile=false", "train.compute.micro_batches=2", "train.warmup_steps=6"),
        ("train.model=DiT-XS/2", "train.compute.compile=false", "train.align.0.kind=nt-xent"),
        ("train.precision=float16", "train.compute.compile=false"),
        ALIGNED,
        (*ALIGNED, "train.compute.compile=false"),
        COMPARED,
        (*COMPARED, "train.compute.compile=false"),
        (entries(),),
        (entries(), "train.compute.compile=false"),
    ],
    ids=[
        "compiled",
        "parts",
        "dit",
        "float16",
        "aligned",
        "aligned-plain",
        "compared",
        "compared-plain",
        "class-token",
        "class-token-plain",
    ],
)
def test_a_graph_makes_the_steps_that_it_records(
    trainable: Callable[..., Config], tmp_path: Path, settings: tuple[str, ...]
) -> None:
    more = ("train.device=cuda", "train.steps=8", *settings)
    assert_recorded_as_made(trainable, tmp_path, *more)


def test_float32_on_the_gpu_trains_as_on_the_cpu(
    trainable: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Randomness.at

    def drawn_on_the_cpu(own: Randomness, step: int) -> dict[str, torch.Tensor]:
        drawn = real(Randomness(own._settings, own._latent, CPU, own._named), step)
        return {name: tensor.to(own._place.device) for name, tensor in drawn.items()}

    monkeypatch.setattr(Randomness, "at", drawn_on_the_cpu)
    there = trainable("train.device=cuda", "train.precision=float32")
    here = trainable(f"train.run={tmp_path / 'cpu'}")
    trained(there, GPU)
    trained(here)
    for line, expected in zip(log_values(there), log_values(here), strict=True):
        assert line == pytest.approx(expected, rel=1e-3, abs=1e-4)


def sampler_of(config: Config, place: Placement) -> Sampler:
    """Draws from a run's newest checkpoint."""
    found = find_weights(SampleOptions(), config.train)
    model = make_sampled(found.config, found.load(), place.device)
    vae = Autoencoder(config.decoder.location, place.device)
    return Sampler(config.sample, model, "linear", vae, place.device)


@pytest.mark.parametrize(
    "settings", [(), ("sample.precision=bfloat16",), ("sample.compile=false",)]
)
def test_samples_of_the_gpu_start_from_the_noise_and_labels_of_the_cpu(
    trainable: Callable[..., Config], settings: tuple[str, ...]
) -> None:
    config = trainable("sample.guidance=1.5", "sample.steps=4", *settings)
    trained(config)
    there, here = (sampler_of(config, place) for place in (GPU, CPU))
    for draw in (0, 3):
        assert torch.equal(there._noise([2, 9], draw).cpu(), here._noise([2, 9], draw))
    tolerance = 0.1 if settings and "bfloat16" in settings[0] else 1e-2
    latents = there.latents(range(6)).cpu()
    torch.testing.assert_close(latents, here.latents(range(6)), rtol=tolerance, atol=tolerance)
    assert [index for index, _ in there.draw(range(6))] == list(range(6))


@pytest.mark.parametrize(
    "settings",
    [(), ("sample.solver=euler",), ("sample.solver=heun",), ("train.model=DiT-XS/2",)],
)
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype feature")
def test_a_step_of_a_solver_never_waits_for_the_gpu(
    trainable: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, settings: tuple[str, ...]
) -> None:
    guided = ("sample.guidance=1.5", "sample.guidance_interval=[0.3, 0.8]")
    config = trainable("sample.steps=8", "sample.compile=false", *guided, *settings)
    trained(config)
    sampler, real, sizes = sampler_of(config, GPU), Sampler._predict, list[int]()

    def watched(own: Sampler, states: torch.Tensor, *inputs: torch.Tensor) -> torch.Tensor:
        sizes.append(len(states))
        predicted = real(own, states, *inputs)
        # From the first step on, which sets up libraries.
        torch.cuda.set_sync_debug_mode("error")
        return predicted

    monkeypatch.setattr(Sampler, "_predict", watched)
    try:
        sampler.latents(range(4))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(sizes) >= 8
    assert set(sizes) == {4, 8}
