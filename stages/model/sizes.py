"""The names and sizes of the transformers that can be trained."""

from typing import NamedTuple


class Size(NamedTuple):
    """A transformer's number of blocks, width and attention heads."""

    depth: int
    width: int
    heads: int


class Model(NamedTuple):
    """What a model's name says."""

    family: str
    size: Size
    patch: int


# DiT, table 1. XS and Ti are this project's own, for laptops.
SIZES = {
    "XS": Size(4, 128, 4),
    "Ti": Size(6, 192, 3),
    "S": Size(12, 384, 6),
    "B": Size(12, 768, 12),
    "L": Size(24, 1024, 16),
    "XL": Size(28, 1152, 16),
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
}
