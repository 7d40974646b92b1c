"""ReDi: principal components of an encoder's tokens, diffused behind the latents' channels.

B images, T tokens, R components, h and w the latent's sides.
"""

from __future__ import annotations

from math import isqrt
from statistics import NormalDist
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from stages.model.sizes import COMPONENTS
from stages.train.terms.joint import Joint

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

    from stages.train.terms.seen import Named, Posed, Seen, Shapes
    from stages.train.train_settings import TrainSettings

# The name of what decides which images lack their components.
DROPPED = f"{COMPONENTS}/dropped"


class Redi(Joint):
    """ReDi: components of tokens as further channels of the latents (arXiv 2504.16064).

    The mean squared error over these channels is added to that over the latent's.
    """

    stream: ClassVar[str] = COMPONENTS

    kind: Literal["redi"] = "redi"
    """Which loss it is."""
    encoder: str
    """One of `[components]`."""
    rescale: bool = False
    """Whether each component is divided by its deviation; as published, they keep their variance,
    many times that of latents."""
    drop: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The probability that the model is not given the components, which representation guidance
    needs: 0.2 as published."""
    drop_mode: Literal["image", "legacy"] = "image"
    """What that means: the noisy channels of an image are zeros, as they are when sampling; or, as
    in the published code, the clean ones of all images of a step and process, so that the model
    sees noise."""

    def problems(self, train: TrainSettings) -> Iterator[str]:
        yield from super().problems(train)
        if self.drop_mode == "legacy" and not self.drop:
            yield "drop_mode: there is nothing to drop, as drop is 0"

    @property
    def arrays(self) -> tuple[str, ...]:
        return (f"{self.encoder}/{'unit_tokens' if self.rescale else 'tokens'}",)

    def shape(self, shapes: Shapes) -> tuple[int, ...]:
        return (shapes.arrays[self.arrays[0]][-1], *shapes.latent[1:])

    def model_options(self, shapes: Shapes) -> Mapping[str, Any]:
        return {"joint_channels": self.shape(shapes)[0]}

    def draws(self, shapes: Shapes) -> Mapping[str, tuple[int, ...]]:
        return {**super().draws(shapes), **({DROPPED: ()} if self.drop else {})}

    def clean(self, batch: Named) -> Tensor:
        return on_grid(batch[self.arrays[0]].float(), batch["moments"].shape[-2:])

    def kept(self, clean: Tensor, drawn: Named) -> Tensor:
        if self.drop_mode == "legacy":
            return without(clean, self._dropped(drawn))
        return clean

    def given(self, posed: Posed, drawn: Named) -> Posed:
        if self.drop_mode == "legacy":
            return posed
        return posed._replace(noisy=without(posed.noisy, self._dropped(drawn)))

    def losses(self, seen: Seen) -> Sequence[Tensor]:
        (losses,) = super().losses(seen)
        return [without(losses, self._dropped(seen.drawn))]

    def _dropped(self, drawn: Named) -> Tensor | None:
        """The images, bool [B], whose components are dropped; None if none ever is."""
        if not self.drop:
            return None
        dropped = drawn[DROPPED] < NormalDist().inv_cdf(self.drop)
        return dropped[:1].expand(len(dropped)) if self.drop_mode == "legacy" else dropped


def on_grid(tokens: Tensor, sides: Sequence[int]) -> Tensor:
    """Tokens [B, T, R] of a square grid as channels [B, R, h, w]. sides: h and w."""
    from torch.nn.functional import interpolate

    side = isqrt(tokens.shape[1])
    grid = tokens.transpose(1, 2).unflatten(2, (side, side))
    return interpolate(grid, tuple(sides), mode="bilinear", align_corners=False)


def without(values: Tensor, dropped: Tensor | None) -> Tensor:
    """Values [B, ...], with zeros for images that are dropped, [B]."""
    if dropped is None:
        return values
    return values.masked_fill(dropped.reshape(-1, *(1 for _ in values.shape[1:])), 0)
