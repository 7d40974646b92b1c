"""The section of pipeline.toml that evaluation reads, and the metrics that it names.

To add a metric, write its function in `stages.evaluate.metrics`, and name it in
`INCEPTION_METRICS`: settings, evaluation and reports go by that.
"""

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Literal

from stages.encode.network_settings import HubName
from stages.setting_paths import AnchoredPath
from stages.setting_types import Count, OneOf, Settings

if TYPE_CHECKING:
    from torch import Tensor

# Features of Inception.
POOL, SPATIAL, LOGITS = "pool", "spatial", "logits"


@dataclass(frozen=True)
class Metric:
    """A metric in features of Inception; by default the Frechet distance of their Gaussians.

    features: that it is of, POOL if single images of the reference are compared; function: its
    name in `stages.evaluate.metrics`, from features [N, D] of the samples' images, and of the
    reference's if it is compared with these, to numbers; parts: which of these numbers are value
    and deviation; on_device: whether it is fast on the device that the networks run on;
    has_floor: whether halves of the reference show what real images are measured at.
    """

    features: str
    function: str | None = None
    parts: tuple[int, int | None] = (0, 1)
    is_higher_better: bool = False
    is_compared: bool = True
    on_device: bool = False
    has_floor: bool = False

    @property
    def is_by_image(self) -> bool:
        """Whether features of single images of the reference are needed."""
        return self.function is not None and self.is_compared

    def compute(self, *features: "Tensor") -> tuple[float, ...]:
        """The numbers that the function makes of features, which it has to have."""
        function = getattr(import_module("stages.evaluate.metrics"), str(self.function))
        numbers: tuple[float, ...] = function(*features)
        return numbers


INCEPTION_METRICS = {
    "fid": Metric(POOL),
    "sfid": Metric(SPATIAL),
    "is": Metric(LOGITS, "inception_score", is_higher_better=True, is_compared=False),
    "precision": Metric(
        POOL, "precision_and_recall", (0, None), is_higher_better=True, on_device=True
    ),
    "recall": Metric(
        POOL, "precision_and_recall", (1, None), is_higher_better=True, on_device=True
    ),
    "kid": Metric(POOL, "kernel_distance", has_floor=True),
}
# Of samples and their captions.
CLIP_SCORE = "clip_score"
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
    inception_input: Literal["adm", "pytorch-fid"] = "adm"
    """How images become Inception's input: as ADM's evaluation and torch-fidelity resize them, or
    as pytorch-fid does, by which U-ViT's numbers on MS-COCO are measured."""
    clip_model: HubName | None = None
    """A CLIP of transformers, a folder or a hub name, by which samples of captions are held against
    these (CLIP score); by default none."""
    frechet_encoders: tuple[str, ...] = ()
    """Encoders in whose features samples are judged too. One that the model is aligned with
    flatters it."""
    reference_features: Count = 10_000
    """Of how many of the reference's images features are kept for precision, recall and KID."""
    batch_size: Count = 64
    """Images per forward pass."""
