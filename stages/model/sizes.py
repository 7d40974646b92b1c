"""The names and sizes of the transformers that can be trained."""

from typing import NamedTuple


class Size(NamedTuple):
    """A transformer's number of blocks, width and attention heads."""

    depth: int
    width: int
    heads: int


class Model(NamedTuple):
    """What a model's name says.

    family: SiT or DiT, whose objective and solvers it has; reads_text: whether it is told of an
    image by the tokens of a caption, and not by a class.
    """

    family: str
    size: Size
    patch: int
    reads_text: bool = False


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
# Whether the model predicts a variance beside each channel.
LEARNS_SIGMA = {"SiT": False, "DiT": True}
PATCHES = (1, 2, 4, 8)
# What is diffused: latents [B, C, h, w], behind their channels R components of an encoder's tokens
# [B, R, h, w] (ReDi), and an encoder's class token [B, D] (REG).
LATENTS, COMPONENTS, CLASS_TOKEN = "latents", "components", "class_token"
# Of the diffusion that DiT is trained on.
DIFFUSION_STEPS = 1000

MODELS = {
    f"{family}-{size}/{patch}": Model(family, SIZES[size], patch)
    for family in LEARNS_SIGMA
    for size in SIZES
    for patch in PATCHES
} | {
    f"MMDiT-{name}/{patch}": Model("SiT", size, patch, reads_text=True)
    for name, size in JOINT_SIZES.items()
    for patch in PATCHES
}
