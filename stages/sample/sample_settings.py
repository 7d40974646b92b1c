"""The sections of pipeline.toml that sampling and evaluation read."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, field_validator

from stages.encode.build_settings import HubName, LatentsSettings
from stages.setting_types import AnchoredPath, Count, Few, Seed, Settings, one_of

# The published evaluation decodes with another VAE than the one that encoded.
PUBLISHED_DECODERS = {"stabilityai/sd-vae-ft-mse": "stabilityai/sd-vae-ft-ema"}

# Metrics in the features of Inception.
INCEPTION_METRICS = ("fid", "sfid", "is", "precision", "recall", "kid")
MetricName = Annotated[str, one_of("stages.sample.sample_settings:INCEPTION_METRICS")]


class SampleSettings(Settings):
    """`[sample]`: the defaults are the paper's.

    What is drawn. images: how many; solver: by default the paper's of the model's family; steps:
    that it makes; tolerances: absolute and relative, of dopri5, which chooses its steps;
    guidance: 1 for none; guidance_interval: the times, from 0 to 1, at which guidance applies;
    guided_channels: how many of the latent's it applies to, by default all; labels: drawn at
    random, or balanced, image i having label i modulo the number of classes; seed: of noise and
    labels.

    What is written. vae: that decodes, by default the one that the paper takes for the latents'
    VAE; uint8: how values become whole numbers; npz: whether all images are written as one file
    in ADM's format too; grid: rows and columns of the picture.

    How. batch_size: on GPUs; a CPU draws an image with each thread; precision: of matrix products,
    by default TF32 on GPUs and float32 elsewhere; compile: the model's blocks, by default on GPUs.
    """

    images: Count = 50_000
    solver: Annotated[str, one_of("stages.sample.solvers:NAMES")] = "auto"
    steps: Annotated[int, Field(gt=0, le=1_000_000)] = 250
    tolerances: tuple[PositiveFloat, PositiveFloat] = (1e-6, 1e-3)
    guidance: NonNegativeFloat = 1.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    guided_channels: Count | None = None
    labels: Literal["random", "balanced"] = "random"
    seed: Seed = 0
    vae: HubName | None = None
    uint8: Literal["truncate", "round"] = "truncate"
    npz: bool = False
    grid: tuple[Few, Few] = (8, 8)
    batch_size: Count = 64
    precision: Literal["auto", "bfloat16", "float16", "tf32", "float32"] = "auto"
    compile: bool | Literal["auto"] = "auto"

    @field_validator("guidance_interval")
    @classmethod
    def _check_interval(cls, interval: tuple[float, float]) -> tuple[float, float]:
        low, high = interval
        if not 0 <= low <= high <= 1:
            raise ValueError(f"expected 0 <= low <= high <= 1, got {low} and {high}")
        return interval

    def decoder(self, latents: LatentsSettings) -> LatentsSettings:
        """The VAE that decodes, for latents of some VAE."""
        return LatentsSettings(vae=self.vae or PUBLISHED_DECODERS.get(latents.vae, latents.vae))


class EvaluateSettings(Settings):
    """`[evaluate]`: what samples are compared with, and how.

    reference: a file of statistics, a file of images in ADM's format, or a folder of images, by
    default the cached data set; metrics: in the features of Inception, by default all that the
    reference allows; inception_weights: a local file instead of the published download;
    frechet_encoders: encoders in whose features samples are judged too; reference_features: of
    how many of the reference's images features are kept for precision, recall and kid;
    batch_size: images per forward pass.
    """

    reference: AnchoredPath | None = None
    metrics: tuple[MetricName, ...] | None = None
    inception_weights: AnchoredPath | None = None
    frechet_encoders: tuple[str, ...] = ()
    reference_features: Count = 10_000
    batch_size: Count = 64
