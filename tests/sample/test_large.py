"""Memory does not grow with the number of images: 50,000 of them, in processes of their own."""

import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

pytestmark = pytest.mark.slow

BEGIN = """
import resource, sys
from collections.abc import Iterator
from pathlib import Path
import numpy as np
import torch

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
"""
ARCHIVE = """
from stages.evaluate.image_sets import NpzFile, write_images

def images(count):
    pixels = np.zeros((64, 64, 3), np.uint8)
    for number in range(count):
        pixels[0, 0] = number % 256
        yield pixels

for count in (500, 50_000):
    write_images(Path(sys.argv[1]), images(count), np.zeros(count, np.int64))
    for batch in NpzFile(Path(sys.argv[1])).rows("arr_0", range(count), 64):
        pass
    print(peak())
"""
MEASURE = """
from stages.placement import Placement
from stages.evaluate.measure import Wanted, measure

class Noise:
    side = 64

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def batches(self, rows, size):
        for start in range(rows.start, rows.stop, size):
            shape = (min(size, rows.stop - start), 3, 64, 64)
            yield torch.randint(0, 256, shape, dtype=torch.uint8)

class Pixels:
    name, features, identity, weights_sha256 = "pixels", ("pixels",), "", ""

    def __call__(self, images):
        return {"pixels": images.flatten(1)[:, :256].float()}

for count in (5_000, 50_000):
    wanted = Wanted(frozenset({"pixels"}))
    measure("noise", Noise(count), [Pixels()], wanted, 64, Placement(torch.device("cpu")))
    print(peak())
"""
MANIFOLDS = """
from stages.evaluate.metrics import precision_and_recall

for count in (1_500, 50_000):
    samples, reference = torch.randn(count, 64), torch.randn(10_000, 64)
    precision_and_recall(samples, reference)
    print(peak())
"""


def peaks(program: str, *arguments: object) -> list[int]:
    """Peak memory in bytes after few images, and after 50,000."""
    command = [sys.executable, "-c", BEGIN + program, *map(str, arguments)]
    done = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True)
    return [int(line) for line in done.stdout.splitlines()[-2:]]


def test_an_archive_of_50_000_images_is_written_and_read_in_flat_memory(tmp_path: Path) -> None:
    few, many = peaks(ARCHIVE, tmp_path / "images.npz")
    # The images are 614 MB.
    assert many - few < 30e6


def test_50_000_images_are_measured_in_flat_memory() -> None:
    few, many = peaks(MEASURE)
    # As float32, these features are 51 MB, and the images 614 MB.
    assert many - few < 30e6


def test_precision_and_recall_of_50_000_against_10_000_take_bounded_memory() -> None:
    few, many = peaks(MANIFOLDS)
    # All distances between samples would be 10 GB.
    assert many - few < 2e9
