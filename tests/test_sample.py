import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cache.errors import StaleCacheError
from pipeline.config import Config
from stages.placement import Placement
from stages.sample import generate
from stages.sample.evaluate import EvaluateError, evaluate, read_results
from stages.sample.generate import SampleError, Samples, newest_samples, sample
from stages.sample.sampler import GuidanceError, Sampler, make_sampled
from stages.sample.solvers import SOLVERS
from stages.train.checkpoint import latest
from stages.train.loop import train

CPU = Placement(torch.device("cpu"))


def trained(config: Config) -> Config:
    train(config.train, config.tensors, CPU)
    return config


def sampled(config: Config) -> tuple[Samples, int]:
    return sample(config.sample, config.train.run, config.latents.location, CPU)


def content(samples: Samples) -> list[bytes]:
    return [samples.path(index).read_bytes() for index in range(samples.images)]


def test_images_are_numbered_pngs_with_a_manifest_and_a_grid(
    trainable: Callable[..., Config],
) -> None:
    samples, made = sampled(trained(trainable()))
    assert made == 6
    with Image.open(samples.path(4)) as image, Image.open(samples.grid) as grid:
        assert (image.size, grid.size) == ((32, 32), (96, 64))
        np.testing.assert_array_equal(np.asarray(grid)[32:64, 32:64], np.asarray(image))
    manifest = json.loads((samples.folder / "manifest.json").read_text())
    assert (manifest["solver"], manifest["steps"], manifest["seed"]) == ("euler", 2, 0)


def test_only_lacking_images_are_drawn_and_they_come_out_the_same(
    trainable: Callable[..., Config],
) -> None:
    config = trained(trainable())
    samples, _ = sampled(config)
    before = content(samples)
    samples.path(1).unlink()
    samples.path(4).unlink()
    assert sampled(config)[1] == 2
    assert content(samples) == before
    assert sampled(config)[1] == 0


def test_more_images_are_added_to_those_that_are_there(trainable: Callable[..., Config]) -> None:
    config = trained(trainable())
    sampled(config)
    assert sampled(trainable("sample.images=9"))[1] == 3


def test_a_stopped_sampling_goes_on(
    trainable: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = trained(trainable())
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        real, saved = generate.save_png, 0

        def stops(path: Path, image: torch.Tensor) -> None:
            nonlocal saved
            saved += 1
            if saved == 4:
                raise KeyboardInterrupt
            real(path, image)

        patch.setattr(generate, "save_png", stops)
        sampled(config)
    assert sampled(config)[1] == 3


def test_samples_of_other_settings_are_refused(trainable: Callable[..., Config]) -> None:
    sampled(trained(trainable()))
    with pytest.raises(SampleError, match=r"guidance: folder 1\.0, configuration 2\.0"):
        sampled(trainable("sample.guidance=2.0"))


def test_a_run_without_checkpoint_has_nothing_to_sample(trainable: Callable[..., Config]) -> None:
    with pytest.raises(SampleError, match="has no checkpoint"):
        sampled(trainable())


def test_guidance_needs_a_null_class(trainable: Callable[..., Config]) -> None:
    config = trained(trainable("train.label_dropping=0", "sample.guidance=2.0"))
    with pytest.raises(GuidanceError, match="has no null class"):
        sampled(config)


def test_noise_and_label_depend_on_the_index_alone(trainable: Callable[..., Config]) -> None:
    config = trained(trainable())
    checkpoint = latest(config.train.run)
    assert checkpoint is not None
    model = make_sampled(checkpoint.model, checkpoint.weights("ema"), CPU.device)
    sampler = Sampler(config.sample, model, "linear", CPU.device)
    together = sampler.latents([3, 4, 5])
    for position, index in enumerate([3, 4, 5]):
        torch.testing.assert_close(sampler.latents([index])[0], together[position])
    assert not torch.equal(together[0], together[1])


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_draws_images(trainable: Callable[..., Config], solver: str) -> None:
    config = trained(trainable(f"sample.solver={solver}", "sample.guidance=1.5"))
    assert sampled(config)[1] == 6


def evaluated(config: Config) -> list[Any]:
    _, samples = newest_samples(config.sample, config.train.run)
    return evaluate(config.evaluate, samples, config.encode, CPU)


def test_evaluation_says_what_was_compared_and_that_the_encoder_is_no_stranger(
    trainable: Callable[..., Config],
) -> None:
    config = trained(trainable())
    samples, _ = sampled(config)
    (result,) = evaluated(config)
    assert result.metric == "fd_efficientnet-lite0"
    assert result.value > 0
    assert (result.images, result.reference_images, result.is_aligned) == (6, 21, True)
    assert "the model was aligned to this encoder" in result.note
    assert read_results(samples) == [result]


def test_a_model_that_was_not_aligned_is_not_marked(trainable: Callable[..., Config]) -> None:
    config = trained(trainable("train.encoders=[]"))
    sampled(config)
    assert not evaluated(config)[0].is_aligned


def test_images_of_the_data_set_are_closer_than_samples(trainable: Callable[..., Config]) -> None:
    from stages.encode.images import centre_crop, decode

    config = trained(trainable("sample.images=21"))
    samples, _ = sampled(config)
    drawn = evaluated(config)[0].value
    files = sorted(config.dataset.path.rglob("*.jpg"))
    for index, file in enumerate(files):
        Image.fromarray(centre_crop(decode(file.read_bytes()), 32)).save(samples.path(index))
    assert evaluated(config)[0].value < 1e-3 < drawn


def test_missing_samples_and_another_encoder_are_refused(trainable: Callable[..., Config]) -> None:
    config = trained(trainable())
    with pytest.raises(EvaluateError, match="lacks 6 of 6 images"):
        evaluated(config)
    sampled(config)
    with pytest.raises(StaleCacheError, match="input_size: cache 64, configuration 96"):
        evaluated(trainable("encoders.efficientnet-lite0.input_size=96", "train.encoders=[]"))
