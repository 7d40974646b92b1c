"""Settings of models and precisions that compute a step in ways of their own."""

from pathlib import Path

from runs import CPU
from texts import TEXTS, save_text_model, write_beside
from tiny import TINY, write_images

from pipeline.config import load_config
from stages.encode.build import build

LATENTS = {
    "layers": (
        *("train.norm=rms-affine", "train.mlp=swiglu", "train.rotary=true"),
        *("train.value_residual=true", "train.qk_norm=true"),
    ),
    "float8": ("train.precision=float8",),
    "tf32": ("train.precision=tf32", "train.compute.recompute_activations=true"),
}
_DROPPED = ("train.pixels.dropout=0.4", "train.second_ema_decay=0.9")
PIXELS = {
    "plain": ("train.second_ema_decay=0.9",),
    "dropout": _DROPPED,
    "dropout-recomputed": (*_DROPPED, "train.compute.recompute_activations=true"),
    "adapter": ("train.align=[{kind='pixel-repa', encoder='efficientnet-lite0', depth=2}]",),
}


def build_captioned(folder: Path, vae: Path, kind: str) -> Path:
    """A built cache of captioned images; returns its configuration. kind: of the text encoder."""
    write_images(folder / "images")
    write_beside(folder / "images")
    text = save_text_model(folder / "text", kind)
    document = TINY.format(vae=vae) + TEXTS.format(folder=text)
    (folder / "pipeline.toml").write_text(document)
    build(load_config(folder / "pipeline.toml").encode, CPU.device)
    return folder / "pipeline.toml"
