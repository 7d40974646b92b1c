"""The names and sizes of the transformers that can be trained."""

from typing import NamedTuple


class Size(NamedTuple):
    """A transformer's number of blocks, width and attention heads."""

    depth: int
    width: int
    heads: int


class OfPixels(NamedTuple):
    """What a transformer of pixels has beside blocks, as `TransformerConfig` names it."""

    bottleneck: int
    label_tokens_from: int
    label_tokens: int = 32


class Model(NamedTuple):
    """What a model's name says.

    family: SiT, DiT or JiT, whose objective and solvers it has; reads_text: whether it is told of
    an image by the tokens of a caption, and not by a class; of_pixels: what a JiT has of its own.
    """

    family: str
    size: Size
    patch: int
    reads_text: bool = False
    of_pixels: OfPixels | None = None


# DiT, table 1. XS and Ti are this project's own, for laptops.
SIZES = {
    "XS": Size(4, 128, 4),
    "Ti": Size(6, 192, 3),
    "S": Size(12, 384, 6),
    "B": Size(12, 768, 12),
    "L": Size(24, 1024, 16),
    "XL": Size(28, 1152, 16),
}
# REPA's MMDiT is the B here: 32 features a head, and as many heads as blocks.
JOINT_SIZES = {
    "XS": Size(4, 128, 4),
    "Ti": Size(6, 192, 6),
    "S": Size(12, 384, 12),
    "B": Size(24, 768, 24),
    "L": Size(32, 1024, 32),
}
# JiT, table 9. XS and Ti are this project's own, for laptops.
PIXEL_SIZES = {
    "XS": (Size(4, 128, 4), OfPixels(32, 2, 8)),
    "Ti": (Size(6, 192, 3), OfPixels(48, 2, 8)),
    "B": (Size(12, 768, 12), OfPixels(128, 4)),
    "L": (Size(24, 1024, 16), OfPixels(128, 8)),
    "H": (Size(32, 1280, 16), OfPixels(256, 10)),
    "G": (Size(40, 1664, 16), OfPixels(256, 10)),
}
# The layers of all of them; places turn queries and keys without a table of their own.
PIXEL_LAYERS = {"norm": "rms-affine", "mlp": "swiglu", "qk_norm": True}
PIXEL_PATCHES = (4, 8, 16, 32, 64)
# Whether the model predicts a variance beside each channel.
LEARNS_SIGMA = {"SiT": False, "DiT": True, "JiT": False}
PATCHES = (1, 2, 4, 8)
# What is diffused: latents [B, C, h, w], behind their channels R components of an encoder's tokens
# [B, R, h, w] (ReDi), and an encoder's class token [B, D] (REG).
LATENTS, COMPONENTS, CLASS_TOKEN = "latents", "components", "class_token"
# Of the diffusion that DiT is trained on.
DIFFUSION_STEPS = 1000

MODELS = (
    {
        f"{family}-{size}/{patch}": Model(family, SIZES[size], patch)
        for family in ("SiT", "DiT")
        for size in SIZES
        for patch in PATCHES
    }
    | {
        f"MMDiT-{name}/{patch}": Model("SiT", size, patch, reads_text=True)
        for name, size in JOINT_SIZES.items()
        for patch in PATCHES
    }
    | {
        f"JiT-{name}/{patch}": Model("JiT", size, patch, of_pixels=own)
        for name, (size, own) in PIXEL_SIZES.items()
        for patch in PIXEL_PATCHES
    }
)
