"""Guided sampling from contrastive models, and the mean of the latents that it takes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from methods import BASE
from runs import CPU, drawn_into, image_bytes, trained
from torch import Tensor
from torch.testing import assert_close

from pipeline.config import Config
from stages.model.transformer_config import TransformerConfig
from stages.sample.correction import Correction
from stages.sample.generate import GridDrawer
from stages.sample.sample_settings import SampleSettings
from stages.sample.sampler import guided_field
from stages.sample.solvers.solver import SampleError
from stages.train import latent_mean
from stages.train.cached_data import CachedData
from stages.train.latent_mean import mean_of, read_mean, read_recipe
from stages.train.loop import train
from stages.weights.run_folder import latent_mean_path

TERM = 'train.align.1={kind = "contrastive"}'
CFG = ("sample.guidance=1.8", "sample.guidance_interval=[0.3, 1.0]")


def correction_by(weight: float, shape: tuple[int, ...]) -> Correction:
    return Correction(weight, torch.randn(shape, dtype=torch.float64), {})


def field_of(config: TransformerConfig, correction: Correction | None, **settings: Any) -> Any:
    """Guidance of a model that predicts multiples of its input: by the label, or by none."""

    def predict(states: Tensor, _times: Tensor, labels: Tensor) -> Tensor:
        return states * (1 + labels.reshape(-1, *[1] * (states.ndim - 1)))

    labels = torch.tensor([2, 5])
    null = torch.full_like(labels, config.classes)
    return guided_field(predict, config, labels, null, SampleSettings(**settings), correction)


def test_a_guided_velocity_is_corrected_as_the_formula_says() -> None:
    correction = correction_by(0.05, (4, 8, 8))
    state = torch.randn(2, 4, 8, 8).double()
    velocity = field_of(BASE, correction, guidance=1.8)(state, 0.5, 0.5)
    scale = torch.tensor([3.0, 6.0])[:, None, None, None]
    guided = 11 * state + 1.8 * (scale * state - 11 * state)
    assert_close(velocity, 0.95 * guided - 0.05 * correction.mean, rtol=1e-6, atol=1e-6)


def test_what_is_not_guided_is_not_corrected() -> None:
    correction, state = correction_by(0.05, (4, 8, 8)), torch.randn(2, 4, 8, 8).double()
    interval = (0.2, 0.7)
    corrected = field_of(BASE, correction, guidance=1.8, guidance_interval=interval)
    plain = field_of(BASE, None, guidance=1.8, guidance_interval=interval)
    for time in (0.1, 0.8):
        assert torch.equal(corrected(state, time, time), plain(state, time, time))
    starts = torch.tensor([0.1, 0.5])
    both, without = corrected(state, starts, starts), plain(state, starts, starts)
    assert torch.equal(both[0], without[0])
    assert_close(both[1], 0.95 * without[1] - 0.05 * correction.mean)


def test_a_class_token_that_is_diffused_along_is_not_corrected() -> None:
    config = TransformerConfig(**{**vars(BASE), "class_features": 5})
    correction, state = correction_by(0.1, (4, 8, 8)), torch.randn(2, 4 * 64 + 5).double()
    corrected = field_of(config, correction, guidance=2.0, class_guidance=2.0)(state, 0.5, 0.5)
    plain = field_of(config, None, guidance=2.0, class_guidance=2.0)(state, 0.5, 0.5)
    assert torch.equal(corrected[:, -5:], plain[:, -5:])
    expected = 0.9 * plain[:, :-5] - 0.1 * correction.mean.flatten()
    assert_close(corrected[:, :-5], expected)


def test_it_turns_the_optimum_of_a_contrastive_model_into_the_velocity() -> None:
    velocity, mean = torch.randn(6, 4, 8, 8).double(), torch.randn(4, 8, 8).double()
    optimum = (velocity - 0.05 * -mean) / 0.95
    assert_close(Correction(0.05, mean, {})(optimum), velocity)


def test_the_mean_is_that_of_all_latents_of_the_cache(trainable: Callable[..., Config]) -> None:
    config = trainable(TERM)
    trained(config)
    cached = CachedData(config.tensors, ())
    moments = cached.latents[0].values("moments", cached.valid).astype(np.float64)
    expected = moments[:, :4].mean(axis=0) * cached.scaling.scale
    path = latent_mean_path(config.train.run)
    found = read_mean(path)
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)
    (column,) = cached.latents
    assert read_recipe(path)["columns"] == {column.column.name: column.column.fingerprint}


def test_the_mean_of_mirrored_views_is_that_of_both(trainable: Callable[..., Config]) -> None:
    cached = CachedData(trainable().tensors, ())
    once = mean_of(cached, CPU)
    cached.latents = [*cached.latents, cached.latents[0]]
    assert_close(mean_of(cached, CPU), once)


def test_it_is_computed_once_and_only_for_runs_that_need_it(
    trainable: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    computed: list[int] = []
    real = latent_mean.mean_of

    def counted(*arguments: Any) -> Tensor:
        computed.append(1)
        return real(*arguments)

    monkeypatch.setattr(latent_mean, "mean_of", counted)
    plain = trainable(f"train.run={tmp_path / 'plain'}")
    trained(plain)
    assert not computed
    assert not latent_mean_path(plain.train.run).exists()
    for steps in (2, 4):
        trained(trainable(TERM, f"train.steps={steps}"))
    assert computed == [1]


def test_samples_of_a_contrastive_run_are_corrected_where_they_are_guided(
    trainable: Callable[..., Config], tmp_path: Path
) -> None:
    more = (TERM, "train.align.1.weight=0.3", "train.ema_decay=0.5")
    trained(trainable(*more))

    def drawn(name: str, *settings: str) -> tuple[list[bytes], dict[str, Any]]:
        samples = drawn_into(tmp_path / name, trainable(*more, *settings)).samples
        manifest = json.loads((samples.folder / "manifest.json").read_text())
        return image_bytes(samples), manifest

    corrected, told = drawn("corrected", *CFG)
    asked, also = drawn("asked", *CFG, "sample.contrastive_correction=true")
    without, untold = drawn("without", *CFG, "sample.contrastive_correction=false")
    plain, plainly = drawn("plain")
    off, _ = drawn("off", "sample.contrastive_correction=false")
    assert corrected == asked
    assert corrected != without
    assert plain == off
    assert told == also
    assert told["contrastive_correction"]["weight"] == 0.3
    assert len(told["contrastive_correction"]["columns"]) == 1
    assert "contrastive_correction" not in untold
    assert "contrastive_correction" not in plainly


def test_a_run_that_has_ended_its_contrast_is_not_corrected(
    trainable: Callable[..., Config], tmp_path: Path
) -> None:
    ended = (TERM, "train.align.1.until=2")
    trained(trainable(*ended, "train.keep=10"))
    manifests = []
    for step in (2, 4):
        folder = tmp_path / str(step)
        drawn_into(folder, trainable(*ended, *CFG), step=step)
        manifests.append(json.loads((folder / "manifest.json").read_text()))
    assert ["contrastive_correction" in told for told in manifests] == [True, False]


def test_grids_while_training_are_corrected_too(
    trainable: Callable[..., Config], tmp_path: Path
) -> None:
    config = trainable(TERM, *CFG, "train.grid_every=4")
    drawer = GridDrawer(config.sample, config.train, config.decoder, torch.device("cpu"))
    train(config.train, config.tensors, CPU, drawer)
    (grid,) = (config.train.run / "grids").iterdir()
    assert grid.read_bytes() == drawn_into(tmp_path / "samples", config).samples.grid.read_bytes()


def test_what_cannot_be_corrected_is_refused(
    trainable: Callable[..., Config], runs: Path, tmp_path: Path
) -> None:
    config = trainable(TERM, *CFG)
    other = trainable(TERM, *CFG, "sample.contrastive_correction=true", f"train.run={runs / 'sit'}")
    with pytest.raises(SampleError, match="not of a run that was trained with kind 'contrastive'"):
        drawn_into(tmp_path / "other", other)
    trained(config)
    latent_mean_path(config.train.run).unlink()
    with pytest.raises(SampleError, match=r"latent-mean\.safetensors is missing"):
        drawn_into(tmp_path / "gone", config)
    assert not (tmp_path / "gone").exists()
    drawn_into(tmp_path / "without", trainable(TERM))
