"""Hidden states of a transformer: what each block makes of noisy latents, compared and probed.

N images, B of a batch, K blocks, L levels of noise, T tokens, W the transformer's width, D
features, C latent channels, h and w the latent's sides.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stages.analyze.analysis_options import AlignmentOptions, ProbeOptions
from stages.analyze.neighbours import cknna, pooled_neighbours
from stages.analyze.probe import Accuracy, Prober
from stages.analyze.subject import Subject, check_has_encoders
from stages.analyze.tokens import class_tokens, mean_latents, mean_tokens
from stages.model.sizes import LATENTS
from stages.model.streams import joined
from stages.progress import progress
from stages.sample.sampler import make_sampled
from stages.train.cached_data import Decoder, encoder_of, latent_scaling
from stages.train.compute import arithmetic
from stages.train.randomness import Stream, seed_for, stream_named
from stages.train.terms.joint import noise_of
from stages.train.terms.run_terms import RunTerms, objective_of

Rows: TypeAlias = npt.NDArray[np.int64]
# Of an image: what its latent is drawn with, and what is added to it.
POSTERIOR, NOISE = 0, 1


class HiddenStates:
    """The hidden states of a subject's blocks at any level of noise.

    An image has the same latent and the same noise at all levels; both depend on the seed and on
    its row alone, and so does the noise of what is diffused along. The model is told no label,
    unless the options say otherwise.
    """

    def __init__(self, subject: Subject, device: torch.device) -> None:
        self._subject, self._device = subject, device
        found, options = subject.found, subject.options
        self._model = make_sampled(found.model, found.weights(options.weights), device)
        self._objective = objective_of(subject.settings)
        self._scaling = latent_scaling(subject.latents.column)
        self._joint = RunTerms.of(subject.settings).joint
        self._decoders = {
            name: Decoder(name, [subject.diffused[encoder_of(name)].column], device)
            for term in self._joint
            for name in term.arrays
        }
        # TF32 is what the published code samples in.
        self._precision = "tf32" if device.type == "cuda" else "float32"

    @torch.inference_mode()
    def at(self, level: float) -> Tensor:
        """The mean over patches of each block's output at a level of noise: float32 [K, N, W].

        The result is on the device; it is all that is held of the N images.
        """
        rows, size = self._subject.rows, self._subject.options.batch_size
        width = self._model.config.width
        blocks = len(self._subject.blocks)
        states = torch.empty(blocks, len(rows), width, device=self._device)
        show = progress(f"hidden states at noise {level:g}", len(rows), "images")
        with arithmetic(self._precision, deterministic=True), show as advance:
            for start in range(0, len(rows), size):
                part = rows[start : start + size]
                states[:, start : start + size] = self._pooled(part, level)
                advance(len(part), "")
        return states

    def _pooled(self, rows: Rows, level: float) -> Tensor:
        """The means of each block's tokens for some rows, [K, B, W]."""
        channels, class_token, time = self._pose(rows, level)
        blocks, labels = self._subject.blocks, self._labels(rows)
        patches = self._model(channels, time, labels, blocks, class_token).patches
        # Tokens [B, T, W] of each block become their means.
        return torch.stack([patches[block].float().mean(dim=1) for block in blocks])

    def _pose(self, rows: Rows, level: float) -> tuple[Tensor, Tensor | None, Tensor]:
        """What the model takes for some rows: noisy channels, a class token, and times [B]."""
        moments = torch.from_numpy(self._subject.latents.read("moments", rows)).to(self._device)
        config = self._model.config
        shape = (config.channels, config.side, config.side)
        clean = {LATENTS: self._scaling.sample(moments, self._normal(rows, POSTERIOR, shape))}
        noise = {LATENTS: self._normal(rows, NOISE, shape)}
        for term in self._joint:
            batch = {"moments": moments, **{n: self._array(n, rows) for n in term.arrays}}
            clean[term.stream] = own = term.clean(batch)
            draw = stream_named(noise_of(term.stream))
            noise[term.stream] = self._normal(rows, draw, own.shape[1:])
        levels = torch.full((len(rows),), level, device=self._device)
        time = self._objective.time(levels)
        noisy = {name: self._objective.pose(x, noise[name], time)[0] for name, x in clean.items()}
        return (*joined(noisy), time)

    def _array(self, name: str, rows: Rows) -> Tensor:
        """One of what is diffused along, float32 [B, ...]."""
        reader, decode = self._subject.diffused[encoder_of(name)], self._decoders[name]
        stored = {n: torch.from_numpy(reader.read(n, rows)).to(self._device) for n in decode.stored}
        # The images as they are, which are the first view.
        return decode(stored, torch.zeros(len(rows), dtype=torch.int64, device=self._device))

    def _labels(self, rows: Rows) -> Tensor:
        config, subject = self._model.config, self._subject
        if not subject.options.is_conditional:
            return torch.full((len(rows),), config.classes, device=self._device)
        return torch.from_numpy(subject.cache.rows.label[rows]).long().to(self._device)

    def _normal(self, rows: Rows, draw: int, shape: tuple[int, ...]) -> Tensor:
        """Standard normals [B, *shape] of some rows, from the CPU whatever the device."""
        seed = self._subject.options.seed
        seeds = (seed_for(seed, Stream.ANALYSIS, row, draw) for row in rows.tolist())
        normal = [torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in seeds]
        return torch.stack(normal).to(self._device)


@dataclass(frozen=True)
class AlignmentScores:
    """CKNNA with each encoder by its name, [K, L]."""

    subject: Subject
    options: AlignmentOptions
    scores: Mapping[str, npt.NDArray[np.float64]]


def measure_cknna(subject: Subject, how: AlignmentOptions, device: torch.device) -> AlignmentScores:
    """CKNNA between hidden states and the mean-pooled tokens of each encoder.

    In memory are the hidden states of one level of noise, float32 [K, N, W]: 1.3 GB for SiT-XL/2
    and 10,000 images. Raises AnalysisError if the cache has no encoder.
    """
    check_has_encoders(subject.cache.path, subject.encoders)
    options, rows = subject.options, subject.rows
    encoders = {
        name: pooled_neighbours(mean_tokens(reader, rows).to(device), how)
        for name, reader in subject.encoders.items()
    }
    hidden = HiddenStates(subject, device)
    scores = {
        name: np.empty((len(subject.blocks), len(options.levels))) for name in subject.encoders
    }
    for column, level in enumerate(options.levels):
        blocks = hidden.at(level)
        with progress(f"neighbours at noise {level:g}", len(blocks), "blocks") as advance:
            for row, states in enumerate(blocks):
                found = pooled_neighbours(states, how)
                for name, other in encoders.items():
                    scores[name][row, column] = cknna(found, other)
                advance(1, "")
    return AlignmentScores(subject, how, scores)


@dataclass(frozen=True)
class ProbeScores:
    """Accuracies of linear probes.

    hidden: of each block, [K][L]; references: of cached features, by name; classes: their number;
    trained, held_out: numbers of images.
    """

    subject: Subject
    hidden: list[list[Accuracy]]
    references: Mapping[str, Accuracy]
    classes: int
    trained: int
    held_out: int


def measure_probes(subject: Subject, options: ProbeOptions, device: torch.device) -> ProbeScores:
    """Probe the hidden states of every block at every level of noise, and what is cached.

    The blocks of a level are probed side by side; in memory are their hidden states, float32
    [K, N, W], and four times the weights of their probes.
    """
    classes = len(subject.cache.rows.classes)
    prober = Prober(subject.labels, classes, options, device)
    references = {
        name: prober.accuracy(f"probe of {name}", features)
        for name, features in _references(subject).items()
    }
    hidden = HiddenStates(subject, device)
    by_level = [
        prober.accuracies(f"probes of blocks at noise {level:g}", hidden.at(level))
        for level in subject.options.levels
    ]
    by_block = [list(accuracies) for accuracies in zip(*by_level, strict=True)]
    trained, held_out = len(prober.split.trained), len(prober.split.held_out)
    return ProbeScores(subject, by_block, references, classes, trained, held_out)


def _references(subject: Subject) -> dict[str, Tensor]:
    """Cached features of the images by a name, [N, D] each."""
    found = {}
    for name, reader in subject.encoders.items():
        found[f"{name}, mean token"] = mean_tokens(reader, subject.rows)
        if (tokens := class_tokens(reader, subject.rows)) is not None:
            found[f"{name}, class token"] = tokens
    latents = subject.latents.column.title
    return {**found, f"{latents}, mean latent": mean_latents(subject.latents, subject.rows)}
