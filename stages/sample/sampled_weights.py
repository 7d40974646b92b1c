"""What images are drawn from: a run's checkpoint, or a published file of weights."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from cache.recipe import Recipe
from stages.latents import LatentScaling, scaling_told
from stages.model.families import without_storage
from stages.model.transformer_config import TransformerConfig, config_named
from stages.sample.correction import Contrast, contrast_of
from stages.train.train_settings import TrainSettings
from stages.weights.checkpoint import Checkpoint, find
from stages.weights.export_options import Layout, Weights
from stages.weights.file_layout import has_redi_names, layout_of
from stages.weights.fitting import fit
from stages.weights.model_shape import CHANNELS, LABELS, shape_in
from stages.weights.published import (
    CLASS_TOKENS,
    PROJECTOR,
    PROJECTORS,
    WeightsError,
    read_weights,
    without_projectors,
)


@dataclass(frozen=True)
class SampleOptions:
    """What to draw from, and where to.

    official: a file of weights to draw from instead of the run's; layout: whose code it is of, if
    it does not tell; step: of the run's checkpoint, by default the newest; weights: the moving
    average, or those that were trained; folder: of the images, by default one in the run's folder;
    prompts: captions to draw images of, instead of the configuration's.
    """

    official: Path | None = None
    layout: Layout | None = None
    step: int | None = None
    weights: Weights = Weights.EMA
    folder: Path | None = None
    prompts: tuple[str, ...] = ()


@dataclass(frozen=True)
class SampledWeights:
    """Weights to draw images from.

    path: where they lie; title: a name for what is drawn from them; model: of what kind they
    are, such as SiT-XL/2; config: its shape; interpolant: that it was trained with; aligned_with:
    the encoders it was aligned to, or None if that is not known; file: of the weights; load:
    reads them; layout: whose code published ones are of; notes: what is to be said of them;
    contrast: that they were trained contrastively, if they were; text: the encoder by which they
    read captions, if they do, and its recipe; scaling: of the latents that they were trained on,
    where it is by channels; noise_scale: of JiT, what noise is multiplied by.
    """

    path: Path
    title: str
    model: str
    config: TransformerConfig
    interpolant: str
    aligned_with: tuple[str, ...] | None
    file: Path
    load: Callable[[], Mapping[str, Tensor]]
    layout: Layout | None = None
    notes: tuple[str, ...] = ()
    contrast: Contrast | None = None
    text: tuple[str, Recipe] | None = None
    scaling: LatentScaling | None = None
    noise_scale: float | str = "auto"

    @property
    def sha256(self) -> str:
        """Of the file, which is read for it."""
        with self.file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    @property
    def told(self) -> dict[str, Any]:
        """What a manifest tells of them, and by which they are known again."""
        return {
            "model": self.model,
            "checkpoint": self.path.name,
            "checkpoint_sha256": self.sha256,
            "interpolant": self.interpolant,
            "aligned_with": None if self.aligned_with is None else list(self.aligned_with),
            "classes": self.config.classes,
            **self._told_layout,
        }

    @property
    def unsaid(self) -> dict[str, Any]:
        """What a manifest that does not tell the layout means: one whose time is not turned."""
        is_turned = self.layout is not None and self.layout.has_time_reversed
        return {} if is_turned else self._told_layout

    @property
    def _told_layout(self) -> dict[str, Any]:
        return {} if self.layout is None else {"layout": self.layout}


def find_weights(options: SampleOptions, train: TrainSettings) -> SampledWeights:
    """What is to be drawn from.

    Raises CheckpointError if the run has no such checkpoint, WeightsError if the file does not
    hold weights of `train.model`.
    """
    if options.official is not None:
        return _published(options.official, options, train)
    return _of_run(find(train.run, options.step), options.weights)


def _of_run(found: Checkpoint, weights: Weights) -> SampledWeights:
    settings, name, text = found.settings, found.folder.name, found.state.get("text")
    return SampledWeights(
        path=found.folder,
        title=name if weights is Weights.EMA else f"{name}-{weights}",
        model=settings.model,
        config=found.model,
        interpolant=settings.interpolant,
        aligned_with=settings.encoders,
        file=found.weights_file(weights),
        load=lambda: found.weights(weights),
        contrast=contrast_of(settings, found.step),
        text=(text["encoder"], text["recipe"]) if text else None,
        scaling=scaling_told(found.state.get("scaling")),
        noise_scale=settings.pixels.noise_scale,
    )


def _published(path: Path, options: SampleOptions, train: TrainSettings) -> SampledWeights:
    """A file of the model that `train.model` names; its latents are of any size."""
    if path.is_dir():
        raise WeightsError(
            f"--official takes a file, but {path} is a folder",
            remedy="For a run of yours set train.run.",
        )
    found = read_weights(path, options.weights)
    owned = (PROJECTORS, PROJECTOR, CLASS_TOKENS)
    was_aligned = any(name.startswith(owned) for name in found.state)
    shape = shape_in(found)
    is_redi = options.layout is Layout.REDI or has_redi_names(found)
    # Published ones are of SD-VAE's latents, with components behind them.
    channels = min(shape.channels, CHANNELS) if is_redi else shape.channels
    config = config_named(
        train.model,
        side=int(shape.side),
        channels=channels,
        joint_channels=shape.channels - channels,
        classes=0 if shape.context_features else len(found.state[LABELS]) - 1,
        context_features=shape.context_features,
        has_null_class=True,
        qk_norm=shape.qk_norm,
        norm=shape.norm or train.norm,
        mlp=shape.mlp,
        rotary=shape.rotary,
        value_residual=shape.value_residual,
        class_features=shape.class_features,
    )
    layout = layout_of(found, options.layout, config)
    found = replace(found, state=without_projectors(found.state))
    state, notes = fit(found, without_storage(config), layout)
    return SampledWeights(
        path=path,
        title=path.stem,
        model=train.model,
        config=config,
        interpolant=train.interpolant,
        aligned_with=None if was_aligned else (),
        file=path,
        load=lambda: state,
        layout=layout,
        notes=tuple(notes),
    )
