"""Latents of a cache: in which form they are stored, and as what a diffusion model sees them.

B images, C latent channels, h and w the latent's sides.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

from cache.errors import IncompleteCacheError, RepaCacheError
from cache.layout import LATENTS, PIXELS

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import Tensor

    from cache.layout import ArraySpec, Column
    from cache.recipe import Recipe, RecipeValue
    from cache.stores.places import Place

# The main array of a column: mean and deviation of a posterior, [N, 2C, h, w], or what an
# autoencoder without one gives, [N, C, h, w].
MOMENTS, EXACT = "moments", "latents"
# That of crops, uint8 [N, 3, S, S], which are latents of their own.
CROPS = "pixels"
HALF = 127.5
# Of a recipe: one factor and shift for all channels, and where the autoencoder has them the mean
# and the deviation of each channel.
FACTOR, SHIFT, MEANS, DEVIATIONS = "scaling_factor", "shift_factor", "latents_mean", "latents_std"
# The attribute of a column that has these of the cached latents themselves.
MEASURED, MEASURED_ROWS = "measured", "rows"

Rule: TypeAlias = Literal["auto", "factor", "channels", "channels-and-factor", "measured"]


class ScalingError(RepaCacheError):
    """It is not known how latents are to be scaled."""


@dataclass(frozen=True)
class LatentScaling:
    """How an autoencoder's latents z become the numbers x that a diffusion model sees.

    x = (z - shift) * scale, both a number or float32 [C, 1, 1]. rule: by which these were found;
    is_drawn: whether what is stored are moments that latents are drawn from.
    """

    scale: float | Tensor
    shift: float | Tensor
    rule: Rule = "factor"
    is_drawn: bool = True

    def sample(self, stored: Tensor, normal: Tensor) -> Tensor:
        """Clean latents as the model sees them, float32 [B, C, h, w].

        stored: mean and standard deviation, [B, 2C, h, w], or latents, [B, C, h, w]; normal: by
        which they are drawn, [B, C, h, w], or 0 for the mean.
        """
        latents = stored.float()
        if self.is_drawn:
            mean, std = latents.chunk(2, dim=1)
            latents = mean + std * normal
        return (latents - self.shift) * self.scale

    def raw(self, scaled: Tensor) -> Tensor:
        """Latents as the autoencoder has them."""
        return scaled / self.scale + self.shift

    def to(self, device: torch.device) -> LatentScaling:
        """The same on a device."""
        scale, shift = (
            own if isinstance(own, int | float) else own.to(device)
            for own in (self.scale, self.shift)
        )
        return replace(self, scale=scale, shift=shift)

    @property
    def told(self) -> dict[str, RecipeValue]:
        """Its numbers, with the rule unless that is one factor for all."""
        scale, shift = (
            own if isinstance(own, int | float) else own.flatten().tolist()
            for own in (self.scale, self.shift)
        )
        rule = {} if self.rule == "factor" else {"rule": self.rule}
        return cast("dict[str, RecipeValue]", {**rule, "scale": scale, "shift": shift})


def scaling_told(told: Mapping[str, Any] | None) -> LatentScaling | None:
    """What `LatentScaling.told` told of a scaling by channels; None of any other, or of nothing."""
    if not told or "rule" not in told:
        return None
    import torch

    scale, shift = (
        torch.tensor(told[name], dtype=torch.float32)[:, None, None] for name in ("scale", "shift")
    )
    return LatentScaling(scale, shift, told["rule"])


def main_array(column: Column) -> ArraySpec:
    """The array of a column of latents that holds them."""
    return next(array for array in column.arrays if array.name in (MOMENTS, EXACT, CROPS))


def is_drawn(column: Column) -> bool:
    """Whether a column of latents holds moments, from which these are drawn."""
    return main_array(column).name == MOMENTS


def latent_shape(column: Column) -> tuple[int, int, int]:
    """(C, h, w) of a column of latents."""
    channels, height, width = main_array(column).row_shape
    return channels // 2 if is_drawn(column) else channels, height, width


def scaling_of(column: Column, rule: Rule = "auto") -> LatentScaling:
    """The scaling of a column of latents. Raises ScalingError if its rule does not give any."""
    if main_array(column).name == CROPS:
        return LatentScaling(1 / HALF, HALF, is_drawn=False)
    if rule != "measured":
        return replace(scaling_in(column.recipe, rule), is_drawn=is_drawn(column))
    from cache.metadata import read_group  # half a second: not where only names are checked

    measured = read_group(column.folder).get(MEASURED)
    if measured is None:
        raise ScalingError(
            "means and deviations of its latents have not been measured",
            where=column.folder,
            remedy="Run `repa-cache build`, which does that when all of them are there.",
        )
    return replace(_by_channels(measured, 1.0, rule), is_drawn=is_drawn(column))


def scaling_in(recipe: Recipe, rule: Rule = "auto") -> LatentScaling:
    """The scaling that a recipe of latents gives. Raises ScalingError if it gives none."""
    factor, shift = recipe[FACTOR], cast("float", recipe[SHIFT])
    if rule == "auto":
        rule = _own_rule(recipe)
    if rule == "measured":
        raise ScalingError(
            "'measured' is known of runs, which keep what was measured, not of an autoencoder",
            where="latents.scaling",
        )
    if rule in ("channels", "channels-and-factor") and recipe.get(MEANS) is None:
        raise ScalingError(
            f"the autoencoder has no mean and deviation of each channel, as {rule!r} needs",
            where="latents.scaling",
        )
    if rule != "channels" and factor is None:
        raise ScalingError(
            "the autoencoder's file does not tell how its latents are scaled",
            where="latents",
            remedy=(
                "Set latents.statistics to the file of means and deviations that is published "
                "beside it, or latents.scaling_factor to the number that its authors use, or "
                'latents.scaling to "measured".'
            ),
        )
    if rule == "factor":
        return LatentScaling(float(cast("float", factor)), float(shift))
    return _by_channels(recipe, 1.0 if rule == "channels" else float(cast("float", factor)), rule)


def _own_rule(recipe: Recipe) -> Rule:
    """The only rule that a recipe allows for. Raises ScalingError if there are several."""
    if recipe.get(MEANS) is None:
        return "factor"
    factor, shift = recipe[FACTOR], recipe[SHIFT]
    if factor not in (None, 1) or shift:
        raise ScalingError(
            f"the autoencoder has both means and deviations of each channel and a factor of "
            f"{factor} with a shift of {shift}, and users of such differ in what they take",
            where="latents.scaling",
            remedy=(
                'Set it to "channels" for (z - mean) / deviation (VA-VAE, REPA-E), to '
                '"channels-and-factor" for this times the factor (Playground), to "factor" for '
                '(z - shift) * factor, or to "measured".'
            ),
        )
    return "channels"


def _by_channels(told: Mapping[str, Any], factor: float, rule: Rule) -> LatentScaling:
    import torch

    mean, deviation = (
        torch.tensor(told[name], dtype=torch.float32)[:, None, None] for name in (MEANS, DEVIATIONS)
    )
    return LatentScaling(factor / deviation, mean, rule)


def latents_column(path: Place, vae: str | None) -> str:
    """The column of a VAE's latents in a cache, or of crops, as `pixels` or if there are no others.

    Raises IncompleteCacheError if none is named and there are several, or if there are none.
    """
    from cache.metadata import column_names, titles

    if vae is not None:
        return PIXELS if vae == CROPS else LATENTS + vae
    columns = column_names(path)
    names = titles(columns, LATENTS)
    if PIXELS in columns and not names:
        return PIXELS
    if len(names) != 1:
        raise IncompleteCacheError(
            f"it has latents of {', '.join(names) or 'no VAE'}, expected those of one",
            where=path,
            remedy="Name the VAE." if names else "Run `repa-cache build` to add them.",
        )
    return LATENTS + names[0]
