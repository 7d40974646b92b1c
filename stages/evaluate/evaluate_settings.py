"""The section of pipeline.toml that evaluation reads."""

from typing import Annotated

from stages.setting_types import AnchoredPath, Count, OneOf, Settings

# Metrics in the features of Inception.
INCEPTION_METRICS = ("fid", "sfid", "is", "precision", "recall", "kid")
MetricName = Annotated[str, OneOf("stages.evaluate.evaluate_settings:INCEPTION_METRICS")]


class EvaluateSettings(Settings):
    """What samples are compared with, and how."""

    reference: AnchoredPath | None = None
    """A file of statistics, a file of images in ADM's format, or a folder of images; by default
    the cached data set."""
    metrics: tuple[MetricName, ...] | None = None
    """Metrics in the features of Inception; by default all that the reference allows, and `[]`
    needs no Inception."""
    inception_weights: AnchoredPath | None = None
    """A local file instead of the published download."""
    frechet_encoders: tuple[str, ...] = ()
    """Encoders in whose features samples are judged too. One that the model is aligned with
    flatters it."""
    reference_features: Count = 10_000
    """Of how many of the reference's images features are kept for precision, recall and KID."""
    batch_size: Count = 64
    """Images per forward pass."""
