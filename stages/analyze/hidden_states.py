"""Hidden states of a transformer: what each block makes of noisy latents, mean-pooled.

B images of a batch, N images, K blocks, T tokens, W the transformer's width, C latent channels, h
and w the latent's sides.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stages.analyze.subject import Subject
from stages.progress import progress
from stages.sample.sampler import make_sampled
from stages.train.cached_data import latent_scaling
from stages.train.precision import arithmetic
from stages.train.randomness import Stream, seed_for
from stages.train.terms import objective_of

# Of an image: what its latent is drawn with, and what is added to it.
POSTERIOR, NOISE = 0, 1


class HiddenStates:
    """The hidden states of a subject's blocks at any level of noise.

    An image has the same latent and the same noise at all levels; both depend on the seed and on
    its row alone. The model is told no label, unless the options say otherwise.
    """

    def __init__(self, subject: Subject, device: torch.device) -> None:
        self._subject, self._device = subject, device
        found, options = subject.found, subject.options
        self._model = make_sampled(found.model, found.weights(options.weights), device)
        self._objective = objective_of(subject.settings)
        self._scaling = latent_scaling(subject.latents.column)
        # TF32 is what the published code samples in.
        self._precision = "tf32" if device.type == "cuda" else "float32"

    @torch.inference_mode()
    def at(self, level: float) -> Tensor:
        """The mean over tokens of each block's output at a level of noise: float32 [K, N, W].

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

    def _pooled(self, rows: npt.NDArray[np.int64], level: float) -> Tensor:
        """The means of each block's tokens for some rows, [K, B, W]."""
        noisy, time = self._pose(rows, level)
        blocks = self._subject.blocks
        _, hidden = self._model(noisy, time, self._labels(rows), blocks)
        # Tokens [B, T, W] of each block become their means.
        return torch.stack([hidden[block].float().mean(dim=1) for block in blocks])

    def _pose(self, rows: npt.NDArray[np.int64], level: float) -> tuple[Tensor, Tensor]:
        """Noisy latents [B, C, h, w] of some rows, and their times [B]."""
        moments = torch.from_numpy(self._subject.latents.read("moments", rows)).to(self._device)
        clean = self._scaling.sample(moments, self._normal(rows, POSTERIOR))
        levels = torch.full((len(rows),), level, device=self._device)
        time = self._objective.time(levels)
        noisy, _ = self._objective.pose(clean, self._normal(rows, NOISE), time)
        return noisy, time

    def _labels(self, rows: npt.NDArray[np.int64]) -> Tensor:
        config, subject = self._model.config, self._subject
        if not subject.options.is_conditional:
            return torch.full((len(rows),), config.classes, device=self._device)
        return torch.from_numpy(subject.cache.rows.label[rows]).long().to(self._device)

    def _normal(self, rows: npt.NDArray[np.int64], draw: int) -> Tensor:
        """Standard normals [B, C, h, w] of some rows, from the CPU whatever the device."""
        config, seed = self._model.config, self._subject.options.seed
        shape = (config.channels, config.side, config.side)
        seeds = (seed_for(seed, Stream.ANALYSIS, row, draw) for row in rows.tolist())
        normal = [torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in seeds]
        return torch.stack(normal).to(self._device)
