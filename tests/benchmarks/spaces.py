"""How fast the latents of each space are read, in random order, by one thread, from memory.

    python tests/benchmarks/spaces.py FOLDER [--rows 2048]

Against `np.memmap` of the same bytes in one file, which checks nothing, in the same run; a ratio is
the median over the rounds. Latents are random numbers, crops are of photographs. FOLDER is removed.
"""

import argparse
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median

import numpy as np
import numpy.typing as npt

from cache.arrays import CheckedRows, RowReader, open_rows
from cache.layout import PIXELS, VALID, ArraySpec, Column
from cache.metadata import create_column
from cache.rows import RowTable, create_cache
from cache.storage import row_checksums
from cache.writer import ShardWriter
from stages.encode.images.sources.samples import open_photograph

ROUNDS, BATCH, SIDE = 5, 256, 256
# Of an image at 256 px, as they are cached.
SPACES: Mapping[str, tuple[str, tuple[int, ...]]] = {
    "DC-AE": ("latents", (32, 8, 8)),
    "TAESD": ("latents", (4, 32, 32)),
    "SD-VAE": ("moments", (8, 32, 32)),
    "VA-VAE": ("moments", (64, 16, 16)),
    "SD3, FLUX.1": ("moments", (32, 32, 32)),
    "FLUX.2": ("moments", (256, 16, 16)),
    "RAE": ("latents", (768, 16, 16)),
}


def crops(count: int) -> npt.NDArray[np.uint8]:
    """Parts of photographs, [N, 3, S, S]."""
    pixels = np.asarray(open_photograph("coffee", 2 * SIDE))
    random = np.random.default_rng(0)
    corners = zip(
        *(random.integers(0, side - SIDE, count) for side in pixels.shape[:2]), strict=True
    )
    parts = [pixels[top : top + SIDE, left : left + SIDE] for top, left in corners]
    return np.ascontiguousarray(np.stack(parts).transpose(0, 3, 1, 2))


def written(path: Path, name: str, spec: ArraySpec, values: npt.NDArray[np.generic]) -> RowReader:
    """A column with one shard of some values, opened with checksums compared."""
    rows = len(values)
    column = Column(name, path / name, (spec, VALID), {"storage": "float16"}, rows, rows)
    create_column(column, {})
    with ShardWriter(column, 0, b"\0" * 32) as writer:
        writer.write({spec.name: values, VALID.name: np.ones(rows, np.uint8)})
    opened = open_rows(column.folder / spec.name, unbuffered=False)
    return CheckedRows(opened, row_checksums(values), name, lambda _: False)


def seconds(read: object, rows: int) -> float:
    """What reading all rows once takes, in batches, in random order."""
    assert callable(read)
    order = np.random.default_rng(1).permutation(rows)
    started = time.perf_counter()
    for part in np.split(order, range(BATCH, rows, BATCH)):
        read(part)
    return time.perf_counter() - started


def measure(
    path: Path, title: str, name: str, spec: ArraySpec, values: npt.NDArray[np.generic]
) -> None:
    rows, source = len(values), written(path, name, spec, values)
    out = np.empty((BATCH, *spec.row_shape), spec.dtype)
    values.tofile(path / "plain")
    plain = np.memmap(path / "plain", spec.dtype, "r", shape=values.shape)
    works = {
        "own": lambda part: source.read(part, out[: len(part)]),
        "memmap": lambda part: np.take(plain, part, axis=0, out=out[: len(part)], mode="clip"),
    }
    spent = {
        key: [seconds(work, rows) for _ in range(ROUNDS + 1)][1:] for key, work in works.items()
    }
    ratio = median(m / o for o, m in zip(spent["own"], spent["memmap"], strict=True))
    stored = sum(file.stat().st_size for file in (path / name / spec.name).iterdir()) / rows
    print(f"| {title} | {stored / 1e3:.0f} KB | {rows / median(spent['own']):,.0f} | {ratio:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=2048)
    options = parser.parse_args()
    path, count = options.folder.resolve(), options.rows
    table = RowTable(
        key=np.array([str(row) for row in range(count)], np.dtypes.StringDType()),
        label=np.zeros(count, np.int32),
        source_index=np.arange(count),
        content_hash=np.arange(2 * count, dtype=np.uint64).reshape(count, 2),
        stamp=np.ones(count, np.uint64),
        classes=("all",),
    )
    try:
        create_cache(path, table, count, seed=0)
        print("| space | stored | images/s | of np.memmap |\n|---|---|---|---|")
        random = np.random.default_rng(0)
        for title, (array, shape) in SPACES.items():
            values = random.normal(size=(count, *shape)).astype(np.float16)
            name = f"latents/{title.replace(', ', '-')}"
            measure(path, title, name, ArraySpec(array, "float16", shape), values)
        spec = ArraySpec("pixels", "uint8", (3, SIDE, SIDE), is_compressed=True)
        measure(path, "pixels, losslessly compressed", PIXELS, spec, crops(count))
    finally:
        shutil.rmtree(path)


if __name__ == "__main__":
    main()
