"""A tiny but real pipeline: its configuration, and JPEG files."""

from pathlib import Path

import numpy as np
from PIL import Image

from stages.encode.images.sources.samples import open_photograph

TINY = """
[dataset]
source = "imagefolder"
path = "images"
resolution = 32

[cache]
path = "tiny.zarr"
rows_per_shard = 8

[latents]
vae = "{vae}"

[encoders.efficientnet-lite0]
input_size = 64

[build]
batch_size = 3

[train]
run = "run"
model = "SiT-XS/2"
batch_size = 4
steps = 4
learning_rate = 1e-3
checkpoint_every = 2
log_every = 1
device = "cpu"

[[train.align]]
kind = "repa"
encoder = "efficientnet-lite0"
depth = 2
projector_width = 32

[sample]
images = 6
steps = 2
grid = [2, 3]
batch_size = 4
labels = "balanced"

[evaluate]
metrics = []
frechet_encoders = ["efficientnet-lite0"]
"""

# What is put behind it for components of the tokens.
COMPONENTS = """
[components.pca4]
encoder = "efficientnet-lite0"
count = 4
"""


def write_images(folder: Path, classes: int = 3, each: int = 7) -> None:
    """Class folders with small JPEG files of real photographs, no two alike."""
    photograph = open_photograph("coffee", 160)
    generator = np.random.default_rng(0)
    for label in range(classes):
        (folder / f"class{label}").mkdir(parents=True)
        for number in range(each):
            left, top = generator.integers(0, 80, size=2).tolist()
            crop = photograph.crop((left, top, left + 40 + 8 * label, top + 48))
            crop.save(folder / f"class{label}" / f"{number}.jpg")


def save_jpeg(path: Path, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
