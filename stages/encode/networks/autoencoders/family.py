"""What all kinds of autoencoders have in common: how images become latents, and images again.

B images, S their side in px, C latent channels, h and w the latent's sides.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


class Family(ABC):
    """One class of diffusers.

    usual: of what configurations leave out, that which decides shapes and scaling; has_posterior:
    whether latents are drawn from moments; is_flat: whether all its convolutions are of images, so
    that they may lie with channels last; is_shared: whether several threads may run one network at
    once.
    """

    usual: ClassVar[Mapping[str, Any]]
    has_posterior: ClassVar[bool] = True
    is_flat: ClassVar[bool] = True
    is_shared: ClassVar[bool] = True

    def whole(self, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """A configuration with what it leaves out."""
        return {**self.usual, **config}

    @abstractmethod
    def downsampling(self, config: Mapping[str, Any]) -> int:
        """Pixels per latent along a side. config: whole."""

    def channels(self, config: Mapping[str, Any]) -> int:
        """C. config: whole."""
        return int(config["latent_channels"])

    def problem_with(self, config: Mapping[str, Any], side: int) -> str | None:
        """Why it takes no images of `side` px, if so. config: whole."""
        factor = self.downsampling(config)
        return (
            f"{side} is no multiple of the VAE's {factor} px per latent" if side % factor else None
        )

    def scaling(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """What a recipe tells of the scaling, by the names of `stages.latents`. config: whole."""
        return {
            "scaling_factor": config["scaling_factor"],
            "shift_factor": config.get("shift_factor") or 0.0,
        }

    @abstractmethod
    def encode(self, model: Any, images: Tensor) -> Tensor:
        """Mean and logarithm of the variance, [B, 2C, h, w], or latents [B, C, h, w].

        images: [B, 3, S, S] between -1 and 1.
        """

    def decode(self, model: Any, latents: Tensor) -> Tensor:
        """Images [B, 3, S, S] between -1 and 1, of latents [B, C, h, w] that are not scaled."""
        images: Tensor = model.decode(latents).sample
        return images


def halvings(blocks: Any) -> int:
    """Pixels per latent, where every block but the last halves a side."""
    return 1 << (len(blocks) - 1)
