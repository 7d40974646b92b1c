"""Hidden states of a transformer: what each block makes of noisy latents, compared and probed.

N images, B of a batch, K blocks, L levels of noise, T tokens, W the transformer's width, D
features.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stages.analyze.analysis_options import AlignmentOptions, ProbeOptions
from stages.analyze.neighbours import cknna, pooled_neighbours
from stages.analyze.noised import Noised, NoisedModel
from stages.analyze.probe import Accuracy, Prober
from stages.analyze.subject import Subject, check_has_encoders
from stages.analyze.tokens import class_tokens, mean_latents, mean_tokens
from stages.progress import progress


class HiddenStates:
    """The hidden states of a subject's blocks at any level of noise."""

    def __init__(self, subject: Subject, device: torch.device) -> None:
        self._subject, self._device = subject, device
        self._noised = NoisedModel(subject, device)

    @torch.inference_mode()
    def at(self, level: float) -> Tensor:
        """The mean over patches of each block's output at a level of noise: float32 [K, N, W].

        The result is on the device; it is all that is held of the N images.
        """
        blocks, images = len(self._subject.blocks), len(self._subject.rows)
        width, start = self._noised.model.config.width, 0
        states = torch.empty(blocks, images, width, device=self._device)
        for noised in self._noised.batches(level, "hidden states"):
            end = start + len(noised.time)
            states[:, start:end] = self._pooled(noised)
            start = end
        return states

    def _pooled(self, noised: Noised) -> Tensor:
        """The means of each block's tokens for some images, [K, B, W]."""
        channels, class_token = noised.inputs
        blocks = self._subject.blocks
        output = self._noised.model(channels, noised.time, noised.given, blocks, class_token)
        # Tokens [B, T, W] of each block become their means.
        return torch.stack([output.patches[block].float().mean(dim=1) for block in blocks])


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
