"""What sampling makes up for of contrastive training (arXiv 2506.05350, section 4).

B images, C latent channels, h and w the latent's sides.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from stages.sample.sample_settings import SampleSettings
from stages.sample.solvers.solver import SampleError
from stages.train.latent_mean import read_mean, read_recipe
from stages.train.terms.contrastive import Contrastive
from stages.train.train_settings import TrainSettings
from stages.weights.run_folder import latent_mean_path


@dataclass(frozen=True)
class Contrast:
    """That a model was trained contrastively.

    weight: of the term; mean: the file that keeps that of the latents.
    """

    weight: float
    mean: Path


@dataclass(frozen=True)
class Correction:
    """Turns what a contrastive model predicts into a velocity.

    With the weight w, and u the velocity, such a model tends to (u - w u') / (1 - w), where u' is
    the mean velocity of all images: minus their mean latent, on the linear path.

    mean: of latents, float64 [C, h, w]; columns: fingerprints of what it was computed from.
    """

    weight: float
    mean: Tensor
    columns: dict[str, Any]

    def __call__(self, predicted: Tensor) -> Tensor:
        """Velocities of latents [B, C, h, w], or of their numbers, [B, C * h * w]."""
        mean = self.mean.to(predicted).reshape(predicted.shape[1:])
        return (1 - self.weight) * predicted - self.weight * mean

    @property
    def told(self) -> dict[str, Any]:
        """What a manifest tells of it."""
        return {"weight": self.weight, "columns": self.columns}


def contrast_of(train: TrainSettings, step: int) -> Contrast | None:
    """How a run was trained contrastively in the step before one, if it was."""
    for term in train.align:
        if isinstance(term, Contrastive) and term.is_active(step - 1):
            return Contrast(term.weight, latent_mean_path(train.run))
    return None


def correction_for(settings: SampleSettings, contrast: Contrast | None) -> Correction | None:
    """The correction of guided steps, if there is one.

    Raises SampleError if it is asked for without contrastive training, or if the mean is gone.
    """
    if settings.contrastive_correction and contrast is None:
        raise SampleError(
            "the weights are not of a run that was trained with kind 'contrastive'",
            where="sample.contrastive_correction",
            remedy="Leave it out.",
        )
    is_wanted = settings.contrastive_correction is not False and settings.guidance > 1
    if contrast is None or not is_wanted:
        return None
    if not contrast.mean.is_file():
        raise SampleError(
            f"{contrast.mean} is missing, the mean of the latents that the run was trained on",
            remedy="Train the run for a step more, or set sample.contrastive_correction = false.",
        )
    columns = read_recipe(contrast.mean)["columns"]
    return Correction(contrast.weight, read_mean(contrast.mean), columns)
