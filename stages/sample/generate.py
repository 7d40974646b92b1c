"""Sampling: from weights to numbered PNG files, drawing only those that lack, and to grids."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cache.locking.locks import claimed
from stages.encode.network_settings import LatentsSettings
from stages.encode.networks.autoencoder import open_decoder
from stages.evaluate.image_sets import write_images
from stages.latents import LatentScaling
from stages.model.transformer_config import TransformerConfig
from stages.placement import Placement, agreed, barrier
from stages.progress import progress, say
from stages.sample.correction import contrast_of, correction_for
from stages.sample.png_files import png_writer, save_grid
from stages.sample.prompts import Prompts, TextSource, cached, column_recipe, prompts_for
from stages.sample.sample_settings import SampleSettings
from stages.sample.sampled_weights import SampledWeights, SampleOptions, find_weights
from stages.sample.sampler import Sampler, make_sampled, sampling_precision
from stages.sample.samples import Samples
from stages.sample.solvers import find_solver
from stages.sample.solvers.solver import SampleError
from stages.sample.told import Told, labels_of
from stages.train.train_settings import TrainSettings
from stages.weights.checkpoint import find
from stages.weights.export_options import Layout
from stages.weights.run_folder import grid_path, samples_path

# How many images there are, how they are written and, but for rounding on a GPU, how they are
# computed decides no pixel of any.
CHANGEABLE = {"images", "npz", "grid", "batch_size", "compile"}
# What is said of them otherwise, or only where they have a part.
SAID_ELSEWHERE = {"vae", "contrastive_correction", "prompts"}


@dataclass(frozen=True)
class Drawn:
    """Samples that are there, and how many of them were drawn now, by all processes."""

    samples: Samples
    images: int


def newest_samples(run: Path, images: int) -> Samples:
    """What is drawn from a run's newest checkpoint. Raises CheckpointError if it has none."""
    return Samples(samples_path(run, find(run, None).folder.name), images)


def sample(
    settings: SampleSettings,
    options: SampleOptions,
    train: TrainSettings,
    decoder: LatentsSettings,
    place: Placement,
    source: TextSource | None = None,
) -> Drawn:
    """Draw the images that lack.

    decoder: the VAE; source: of the captions that a model reads. Raises SampleError if the folder
    holds other samples, if others are drawing into it, or if the model cannot be sampled as
    configured.
    """
    weights = find_weights(options, train)
    prompts = prompts_for(settings, options, weights, source, train.text, place.device)
    title = weights.title + (f"-{prompts.title}" if prompts and options.prompts else "")
    samples = Samples(options.folder or samples_path(train.run, title), settings.images)
    lock = samples.folder.with_name(f".{samples.folder.name}.lock")
    with claimed(lock, say) if place.is_main else nullcontext() as other:
        if other is not None:
            raise SampleError(f"{samples.folder} is being filled by {other}.")
        if place.is_main:
            for note in (*weights.notes, *_note_on_guidance(settings, weights)):
                say(f"{weights.path}: {note}")
            kept = _kept(settings, weights, place)
            said = prompts.identity if prompts else {}
            samples.claim({**weights.told, "vae": decoder.vae, **kept, **said}, weights.unsaid)
        lacking = agreed(samples.missing() if place.is_main else [], place)
        if lacking:
            indices = lacking[place.rank :: place.world]
            told = prompts.told if prompts else None
            _draw(settings, weights, decoder, samples, indices, place, told)
        barrier(place)
        if place.is_main:
            if prompts:
                samples.write_captions(prompts.text)
            _draw_grid(settings, samples)
            if settings.npz and (lacking or not samples.npz.is_file()):
                _write_npz(settings, weights, samples)
    return Drawn(samples, len(lacking))


def _note_on_guidance(settings: SampleSettings, weights: SampledWeights) -> Iterator[str]:
    """What the published samplers of a file would do otherwise, if anything."""
    is_guided = settings.guidance != 1 and settings.guided_channels is None
    if is_guided and weights.layout not in (None, Layout.REPA, Layout.REDI):
        yield (
            "all latent channels are guided; its own code guides the first three, as "
            "sample.guided_channels=3 does"
        )


def _kept(settings: SampleSettings, weights: SampledWeights, place: Placement) -> dict[str, Any]:
    """The settings that decide the pixels, with what they leave open."""
    kept = {
        **settings.model_dump(mode="json", exclude={*CHANGEABLE, *SAID_ELSEWHERE}),
        "solver": find_solver(settings.solver, weights.config.family),
        "precision": sampling_precision(settings, place.device),
    }
    if (correction := correction_for(settings, weights.contrast)) is not None:
        kept["contrastive_correction"] = correction.told
    return kept


def _draw(
    settings: SampleSettings,
    weights: SampledWeights,
    decoder: LatentsSettings,
    samples: Samples,
    indices: Sequence[int],
    place: Placement,
    told: Told | None,
) -> None:
    model = make_sampled(weights.config, weights.load(), place.device)
    autoencoder = open_decoder(decoder, place.device, weights.scaling)
    correction = correction_for(settings, weights.contrast)
    sampler = Sampler(
        settings,
        model,
        weights.interpolant,
        autoencoder,
        place.device,
        told=told,
        correction=correction,
        noise_scale=weights.noise_scale,
    )
    with (
        progress("sample", len(indices), "images", quiet=not place.is_main) as advance,
        # A GPU gives a batch at once, and goes on while it is written.
        png_writer(most=settings.batch_size) as write,
    ):
        for index, image in sampler.draw(indices):
            write(samples.path(index), image.permute(1, 2, 0).numpy())
            advance(1, "")


def _draw_grid(settings: SampleSettings, samples: Samples) -> None:
    rows, columns = settings.grid
    shown = range(min(rows * columns, samples.images))
    pixels, captions = [_pixels(samples, index) for index in shown], samples.captions()
    save_grid(samples.grid, pixels, columns, captions and [captions[index] for index in shown])


def _write_npz(settings: SampleSettings, weights: SampledWeights, samples: Samples) -> None:
    indices = range(samples.images)
    classes = weights.config.classes
    labels = labels_of(settings, indices, classes) if classes else [0] * samples.images
    with progress("npz", samples.images, "images") as advance:

        def images() -> Iterator[Any]:
            for index in indices:
                yield _pixels(samples, index)
                advance(1, "")

        write_images(samples.npz, images(), np.array(labels))


def _pixels(samples: Samples, index: int) -> Any:
    return np.asarray(Image.open(samples.path(index)))


class GridDrawer:
    """Draws RUN/grids/step-00010000.png: the same noises and labels at every step.

    Call it with the step, the weights of a moving average by name, and what model they are of.
    scaling: of the latents that it is trained on, where the decoder has another.
    """

    def __init__(
        self,
        settings: SampleSettings,
        train: TrainSettings,
        decoder: LatentsSettings,
        device: torch.device,
        source: TextSource | None = None,
        scaling: LatentScaling | None = None,
    ) -> None:
        self._settings = settings
        self._prompts: Prompts | None = None
        if train.text is not None and source is not None:
            recipe = column_recipe(source.cache, train.text)
            self._prompts = cached(train.text, recipe, source, settings.seed)
        self._train = train
        self._device = device
        self._autoencoder = open_decoder(decoder, device, scaling)

    def __call__(self, step: int, weights: Mapping[str, Tensor], config: TransformerConfig) -> None:
        model = make_sampled(config, weights, self._device)
        settings, train = self._settings, self._train
        correction = correction_for(settings, contrast_of(train, step))
        sampler = Sampler(
            settings,
            model,
            train.interpolant,
            self._autoencoder,
            self._device,
            told=self._prompts.told if self._prompts else None,
            correction=correction,
            noise_scale=train.pixels.noise_scale,
        )
        rows, columns = self._settings.grid
        shown = range(rows * columns)
        images = [image.permute(1, 2, 0).numpy() for _, image in sampler.draw(shown)]
        path = grid_path(self._train.run, step)
        path.parent.mkdir(exist_ok=True)
        captions = [self._prompts.text(index) for index in shown] if self._prompts else None
        save_grid(path, images, columns, captions)
