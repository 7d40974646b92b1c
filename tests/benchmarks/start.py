"""How long a build of a large data set takes before it encodes, and training before it reads.

    python tests/benchmarks/start.py FOLDER [--images 1281167] [--classes 1000]
        [--source imagefolder|zip] [--rounds 3]

A build that goes on is timed until it asks for the first image, after all imports: the data set is
listed and compared with the rows of the cache. Training is timed until it may draw the first batch:
the row table, checksums and which rows are valid, for one column. Beside both stands the least that
they have to do, measured in turn: to list the folder and ask the system for every file's size and
time; to read all those files of the cache. Memory is what is added to that of imports, at most.

The images are hard links to a few small JPEG files, so that 1,281,167 of them take 20 seconds and
no space. FOLDER is left as it is, to measure again; remove it by hand.
"""

import argparse
import multiprocessing
import os
import platform
import time
import zipfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image

from cache.layout import VALID, ArraySpec, Column
from cache.metadata import create_column
from cache.reader import Cache
from cache.rows import create_cache, read_rows
from cache.writer import ShardWriter
from pipeline.config import Config, load_config
from stages.encode.build import build
from stages.encode.build_options import BuildOptions
from stages.encode.building.columns import load_makers
from stages.encode.images.crop_batches import CropReader

# A file has no more than some 65,000 names.
LINKS = 30_000
COLUMN = "features/x"
ARRAYS = (ArraySpec("class_token", "float16", (4,)), VALID)
CPU = torch.device("cpu")

CONFIG = """
[dataset]
source = "{source}"
path = "{path}"
resolution = 64

[cache]
path = "{source}.zarr"

[latents]
vae = "demo-autoencoder"

[train]
run = "run"
align = []
"""


class FirstImageError(Exception):
    """A build asked for the first image."""


def write_images(folder: Path, images: int, classes: int) -> None:
    if folder.exists():
        return
    generator = np.random.default_rng(0)
    source = folder
    for number in range(images):
        label = number * classes // images
        name = f"n{1440764 + 13577 * label:08}"
        (folder / name).mkdir(parents=True, exist_ok=True)
        path = folder / name / f"{name}_{number * 7919 % 100_003}_{number}.JPEG"
        if number % LINKS == 0:
            Image.fromarray(generator.integers(0, 256, (72, 64, 3), np.uint8)).save(path)
            source = path
        else:
            os.link(source, path)


def write_zip(path: Path, folder: Path) -> None:
    if path.exists():
        return
    with zipfile.ZipFile(path, "w") as file:
        for image in sorted(folder.rglob("*.JPEG")):
            file.write(image, image.relative_to(folder))


def write_column(path: Path, rows_of: Path) -> None:
    """A cache with one finished column of small rows, of the images of another cache."""
    if path.exists():
        return
    rows = read_rows(rows_of)
    create_cache(path, rows, 1024, 0)
    column = Column(COLUMN, path / COLUMN, ARRAYS, {"storage": "float16"}, len(rows), 1024)
    create_column(column, {})
    for shard in range(column.shards):
        span = column.shard_rows(shard)
        with ShardWriter(column, shard, rows.digest(span)) as writer:
            writer.write({a.name: np.ones((len(span), *a.row_shape), a.dtype) for a in ARRAYS})


def peak_bytes() -> int:
    """The most memory that this process has had since `forget_peak`."""
    line = next(s for s in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in s)
    return int(line.split()[1]) << 10


def forget_peak() -> int:
    Path("/proc/self/clear_refs").write_text("5")
    return peak_bytes()


def timed(work: Callable[[], object]) -> tuple[float, float, int]:
    """Seconds, seconds of the processor, and bytes of memory added at most."""
    before, start, used = forget_peak(), time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start, time.process_time() - used, peak_bytes() - before


def start_building(config: Config) -> None:
    def stop(*_: object, **__: object) -> None:
        raise FirstImageError

    CropReader.crop = stop  # type: ignore[method-assign]
    try:
        build(config.encode, CPU)
    except FirstImageError:
        return
    raise AssertionError("the build had nothing to do")


def start_training(config: Config) -> None:
    reader = Cache(config.cache.path.with_name("column.zarr")).column(COLUMN, verify=True)
    assert reader.valid.all()


def ask_for_stamps(config: Config) -> None:
    assert config.dataset.path is not None
    for parent, _, files in os.walk(config.dataset.path.with_name("images")):
        for file in files:
            os.stat(f"{parent}/{file}")  # noqa: PTH116 - what a build does


def read_files(config: Config) -> None:
    folder = config.cache.path.with_name("column.zarr")
    for kind in ("rows", f"{COLUMN}/crc32c", f"{COLUMN}/valid", f"{COLUMN}/ledger"):
        for file in (folder / kind).rglob("*"):
            if file.is_file():
                file.read_bytes()


WORK: dict[str, Callable[[Config], None]] = {
    "a build, until the first image": start_building,
    "  listing and asking for stamps alone": ask_for_stamps,
    "training, until the first batch": start_training,
    "  reading the files alone": read_files,
}


def answer(config: Path, name: str, answers: Connection) -> None:
    """Do one piece of work in a process of its own."""
    loaded = load_config(config)
    load_makers(loaded.encode, CPU)  # What is imported only when it is needed.
    answers.send(timed(lambda: WORK[name](loaded)))


def measure(config: Path, name: str) -> tuple[float, float, int]:
    context, (here, there) = multiprocessing.get_context("spawn"), multiprocessing.Pipe()
    child: Any = context.Process(target=answer, args=(config, name, there))
    child.start()
    result: tuple[float, float, int] = here.recv()
    child.join()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=1_281_167, help="more than a shard")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--source", choices=("imagefolder", "zip"), default="imagefolder")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    folder = options.folder.resolve()
    write_images(folder / "images", options.images, options.classes)
    path = folder / "images"
    if options.source == "zip":
        path = folder / "images.zip"
        write_zip(path, folder / "images")
    file = folder / f"{options.source}.toml"
    file.write_text(CONFIG.format(source=options.source, path=path))
    config = load_config(file)
    if not config.cache.path.exists():
        build(config.encode, CPU, BuildOptions(shards=slice(1)))
    write_column(folder / "column.zarr", config.cache.path)
    print(f"{platform.machine()}, {os.cpu_count()} cores; {options.images:,} images, {path.name}")
    taken: dict[str, list[tuple[float, float, int]]] = {name: [] for name in WORK}
    for _ in range(options.rounds):
        for name, found in taken.items():
            found.append(measure(file, name))
    for name, found in taken.items():
        seconds, used, added = (median(values) for values in zip(*found, strict=True))
        print(f"{name:<38} {seconds:6.1f} s  {used:6.1f} s of a core  {added / 1e6:6.0f} MB")


if __name__ == "__main__":
    main()
