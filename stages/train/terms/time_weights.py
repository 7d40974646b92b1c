"""How much an image counts in an alignment, by its time (VA-REPA, arXiv 2602.05435).

B images of a process, or of one alone; levels of noise run from 0, clean, to 1, noise.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, PositiveFloat

from stages.setting_types import Kinds, Settings

if TYPE_CHECKING:
    from torch import Tensor

# Below it, the sum of weights is taken for none, as in the published code.
LEAST_SUM = 1e-8


class TimeWeight(Settings, ABC):
    """A dependence on time."""

    kind: str
    """How weights depend on time."""

    @abstractmethod
    def weighted(self, losses: Tensor, level: Tensor) -> Tensor:
        """The losses of images [B] whose mean is that of the weighted ones. level: [B]."""


class Uniform(TimeWeight):
    """All times alike, as in REPA."""

    kind: Literal["uniform"] = "uniform"
    """How weights depend on time."""

    def weighted(self, losses: Tensor, level: Tensor) -> Tensor:  # noqa: ARG002
        return losses


class Decreasing(TimeWeight):
    """Less with more noise, in which little of an image is left that could be aligned."""

    tau: Annotated[float, Field(gt=0, le=1)] = 0.7
    """The level of noise around which, or up to which, images count."""

    @abstractmethod
    def weights(self, level: Tensor) -> Tensor:
        """Of levels [B], from 0 to 1."""

    def weighted(self, losses: Tensor, level: Tensor) -> Tensor:
        weights = self.weights(level)
        total = weights.sum()
        shares = weights / total.clamp(min=LEAST_SUM) * (total >= LEAST_SUM)
        return len(losses) * shares * losses


class Sigmoid(Decreasing):
    """Half at tau, and falling there the faster the larger k is."""

    kind: Literal["sigmoid"] = "sigmoid"
    """How weights depend on time."""
    k: PositiveFloat = 20.0
    """How steep it is at tau."""

    def weights(self, level: Tensor) -> Tensor:
        return (self.k * (self.tau - level)).sigmoid()


class Hard(Decreasing):
    """One below tau, nothing from there on."""

    kind: Literal["hard"] = "hard"
    """How weights depend on time."""

    def weights(self, level: Tensor) -> Tensor:
        return (level < self.tau).float()


class Cosine(Decreasing):
    """Half a wave from one at no noise to nothing at tau."""

    kind: Literal["cosine"] = "cosine"
    """How weights depend on time."""

    def weights(self, level: Tensor) -> Tensor:
        import torch

        wave = (1 + (torch.pi * level / self.tau).cos()) / 2
        return wave * (level < self.tau)


class SNR(Decreasing):
    """The linear path's ratio of signal to noise over the sum of itself and that at tau."""

    kind: Literal["snr"] = "snr"
    """How weights depend on time."""
    tau: Annotated[float, Field(gt=0, lt=1)] = 0.7
    """The level of noise around which, or up to which, images count."""

    def weights(self, level: Tensor) -> Tensor:
        ratio = ((1 - self.tau) / self.tau) ** 2
        signal, noise = (1 - level).square(), level.square()
        return signal / (signal + ratio * noise)


TIME_WEIGHTS = Kinds(
    "kind",
    {"uniform": Uniform, "sigmoid": Sigmoid, "hard": Hard, "cosine": Cosine, "snr": SNR},
)
# One of them, by its kind.
if TYPE_CHECKING:
    AnyTimeWeight = TimeWeight
else:
    AnyTimeWeight = TIME_WEIGHTS.union
