"""A program for torchrun: measures the same images in all processes, and writes what rank 0 gets.

torchrun --nproc-per-node 3 tests/tools/measuring.py IMAGES.npz OUT.pt
"""

import sys
from pathlib import Path

import torch
from torch import Tensor

from pipeline.process_group import placement
from stages.evaluate.image_sets import NpzFile, NpzImages
from stages.evaluate.measure import Wanted, measure


class FirstPixels:
    """Features that are pixels."""

    name = "first pixels"
    features: tuple[str, ...] = ("pixels",)
    identity = weights_sha256 = "none"

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        return {"pixels": images.flatten(1)[:, :5].float()}


def main() -> None:
    images = NpzImages(NpzFile(Path(sys.argv[1])))
    with placement("cpu") as place:
        for kept in (None, 7):
            wanted = Wanted(frozenset({"pixels"}), {"pixels": kept})
            found = measure("pixels", images, [FirstPixels()], wanted, 4, place)
            if place.is_main:
                gaussian = found.gaussians["pixels"]
                saved = {"mean": gaussian.mean, "covariance": gaussian.covariance}
                torch.save({**saved, "rows": found.rows["pixels"]}, f"{sys.argv[2]}.{kept}")


if __name__ == "__main__":
    main()
