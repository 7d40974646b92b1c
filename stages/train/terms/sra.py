"""SRA: hidden tokens as those that the moving average has later and of less noise (2505.02831).

B images, T tokens, W the transformer's width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, model_validator

from stages.setting_types import Count
from stages.train.terms.term import Term
from stages.train.terms.uniforms import uniform

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor, nn

    from stages.train.terms.seen import Named, Seen, Shapes
    from stages.train.train_settings import TrainSettings

INTERVAL = "sra/interval"
# Steps of an epoch of ImageNet in batches of 256, of which the published schedule counts 149.
EPOCH = 5_004


class SelfAlignment(Term):
    """Smooth l1 or cosine between predicted hidden tokens and those of the teacher, in float32.

    A head predicts them from an earlier block (SRA, eq. 5). The teacher, which is the moving
    average, sees the same latents with the same noise and label, at a level that is lower by a
    uniform number, 0 at least.
    """

    module_list: ClassVar[str] = "ap_heads"

    kind: Literal["sra"] = "sra"
    """Which loss it is."""
    depth: Count = 8
    """The block, counted from 1, whose output the head takes; 4 for SiT-B in the published code."""
    teacher_depth: Count = 20
    """The block of the moving average whose output it is compared with; 8 for SiT-B there."""
    similarity: Literal["smooth-l1", "cosine"] = "smooth-l1"
    """What they are compared by: smooth l1 as in the paper, or minus the cosine, which its authors
    advise by now, with a constant weight of 0.5."""
    beta: PositiveFloat = 0.05
    """From which difference on smooth l1 is linear."""
    interval: Annotated[float, Field(ge=0, le=1)] = 0.2
    """How much lower the teacher's level of noise is at most."""
    weight: NonNegativeFloat = 0.2
    """Of this loss in the total; 0.5 for the cosine."""
    constant: NonNegativeInt = 149 * EPOCH
    """Steps until its weight begins to fall; by default 149 epochs of ImageNet."""
    decay: Count | None = 1000 * EPOCH
    """Steps in which its weight then falls to a tenth, again and again; by default 1,000 epochs of
    ImageNet, and for the cosine none."""

    @model_validator(mode="before")
    @classmethod
    def _follow_similarity(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("similarity") == "cosine":
            return {"weight": 0.5, "decay": None, **given}
        return given

    def problems(self, train: TrainSettings) -> Iterator[str]:  # noqa: ARG002
        if self.teacher_depth < self.depth:
            yield (
                f"teacher_depth: the teacher's block {self.teacher_depth} comes before the model's "
                f"block {self.depth}"
            )

    @property
    def depths(self) -> tuple[int, ...]:
        return (self.depth,)

    @property
    def teacher_depths(self) -> tuple[int, ...]:
        return (self.teacher_depth,)

    def draws(self, shapes: Shapes) -> Mapping[str, tuple[int, ...]]:  # noqa: ARG002
        return {INTERVAL: ()}

    def teacher_level(self, level: Tensor, drawn: Named) -> Tensor:
        return (level - self.interval * uniform(drawn[INTERVAL])).clamp(min=0)

    @property
    def has_schedule(self) -> bool:
        return self.decay is not None or super().has_schedule

    def share(self, step: int) -> float:
        behind = max(0, step - self.constant)
        fallen = 0.1 ** (behind / self.decay) if self.decay is not None else 1.0
        return fallen * super().share(step)

    def make_module(self, shapes: Shapes) -> nn.Module:
        from stages.model.projectors import PredictionHead

        return PredictionHead(shapes.width)

    def module_flops(self, shapes: Shapes, tokens: int) -> float:
        return 8.0 * tokens * shapes.width**2

    def losses(self, seen: Seen) -> Sequence[Tensor]:
        from torch.nn.functional import cosine_similarity, smooth_l1_loss

        assert seen.projected is not None
        predicted, tokens = seen.projected.float(), seen.taught[self.teacher_depth].float()
        if self.similarity == "cosine":
            return [-cosine_similarity(predicted, tokens, dim=-1, eps=1e-12).mean(dim=1)]
        loss = smooth_l1_loss(predicted, tokens, reduction="none", beta=self.beta)
        return [loss.flatten(1).mean(dim=1)]
