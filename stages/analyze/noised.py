"""A run's model, and what it takes of images at any level of noise.

B images, C latent channels, h and w the latent's sides, D features.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stages.analyze.subject import Subject
from stages.latents import main_array
from stages.model.conditions import Condition, mapped
from stages.model.sizes import LATENTS
from stages.model.streams import joined
from stages.progress import progress
from stages.sample.sampler import make_sampled
from stages.train.cached_data import Decoder, encoder_of
from stages.train.compute import arithmetic
from stages.train.randomness import Stream, seed_for, stream_named
from stages.train.terms.joint import noise_of
from stages.train.terms.run_terms import RunTerms, objective_of
from stages.train.terms.seen import Posed

Rows: TypeAlias = npt.NDArray[np.int64]
# Of an image: what its latent is drawn with, and what is added to it.
POSTERIOR, NOISE = 0, 1


@dataclass(frozen=True)
class Noised:
    """Images at a level of noise.

    time: [B], as the model takes it; given: what the model is told of the images; streams: what is
    diffused, by name.
    """

    time: Tensor
    given: Condition
    streams: dict[str, Posed]

    @property
    def inputs(self) -> tuple[Tensor, Tensor | None]:
        """What the model takes: channels [B, C, h, w], and a class token [B, D] if it has one."""
        return joined({name: one.noisy for name, one in self.streams.items()})


class NoisedModel:
    """The model of a subject, and the subject's images with noise.

    An image has the same latent and the same noise at all levels; both depend on the seed and on
    its row alone, and so does the noise of what is diffused along. The model is told no label, and
    no caption, unless the options say otherwise.
    """

    def __init__(self, subject: Subject, device: torch.device) -> None:
        self._subject, self._device = subject, device
        found, options = subject.found, subject.options
        self.model = make_sampled(found.model, found.weights(options.weights), device)
        self.objective = objective_of(subject.settings)
        self._scaling = subject.scaling.to(device)
        self._joint = RunTerms.of(subject.settings).joint
        self._decoders = {
            name: Decoder(name, [subject.diffused[encoder_of(name)].column], device)
            for term in self._joint
            for name in term.arrays
        }

    def batches(self, level: float, title: str) -> Iterator[Noised]:
        """All images at a level of noise, computed with as the model is. title: of the progress."""
        rows, size = self._subject.rows, self._subject.options.batch_size
        show = progress(f"{title} at noise {level:g}", len(rows), "images")
        # TF32 is what the published code samples in.
        precision = "tf32" if self._device.type == "cuda" else "float32"
        with arithmetic(precision, deterministic=True), show as advance:
            for part in np.split(rows, range(size, len(rows), size)):
                yield self._noised(part, level)
                advance(len(part), "")

    def _noised(self, rows: Rows, level: float) -> Noised:
        latents = self._subject.latents
        stored = latents.read(main_array(latents.column).name, rows)
        moments = torch.from_numpy(stored).to(self._device)
        config = self.model.config
        shape = (config.channels, config.side, config.side)
        clean = {LATENTS: self._scaling.sample(moments, self._normal(rows, POSTERIOR, shape))}
        noise = {LATENTS: self._normal(rows, NOISE, shape)}
        for term in self._joint:
            batch = {"moments": moments, **{n: self._array(n, rows) for n in term.arrays}}
            clean[term.stream] = own = term.clean(batch)
            draw = stream_named(noise_of(term.stream))
            noise[term.stream] = self._normal(rows, draw, own.shape[1:])
        time = self.objective.time(torch.full((len(rows),), level, device=self._device))
        streams = {
            name: Posed(x, noise[name], *self.objective.pose(x, noise[name], time))
            for name, x in clean.items()
        }
        return Noised(time, self._given(rows), streams)

    def _array(self, name: str, rows: Rows) -> Tensor:
        """One of what is diffused along, float32 [B, ...]."""
        reader, decode = self._subject.diffused[encoder_of(name)], self._decoders[name]
        stored = {n: torch.from_numpy(reader.read(n, rows)).to(self._device) for n in decode.stored}
        # The images as they are, which are the first view.
        return decode(stored, torch.zeros(len(rows), dtype=torch.int64, device=self._device))

    def _given(self, rows: Rows) -> Condition:
        subject = self._subject
        if subject.captions is not None:
            if subject.options.is_conditional:
                # The first of each.
                chosen = subject.captions.rows(rows, np.zeros(len(rows), np.uint64))
                return subject.captions.read(chosen, self._device)
            empty = subject.captions.empty(self._device)
            return mapped(empty, lambda one: one.expand(len(rows), *one.shape[1:]))
        if not subject.options.is_conditional:
            return torch.full((len(rows),), self.model.config.classes, device=self._device)
        return torch.from_numpy(subject.cache.rows.label[rows]).long().to(self._device)

    def _normal(self, rows: Rows, draw: int, shape: tuple[int, ...]) -> Tensor:
        """Standard normals [B, *shape] of some rows, from the CPU whatever the device."""
        seed = self._subject.options.seed
        seeds = (seed_for(seed, Stream.ANALYSIS, row, draw) for row in rows.tolist())
        normal = [torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in seeds]
        return torch.stack(normal).to(self._device)
