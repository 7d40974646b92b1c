"""How fast rows are read and written, against the formats people use and the disk itself.

    pip install h5py litdata mosaicml-streaming webdataset tensorstore; apt install fio
    python tests/benchmarks/storage.py FOLDER [--rows 4096] [--only warm cold ring write]

A row is what DINOv2-B gives for an image: 256 x 768 float16, 393,216 bytes. All figures of a
section come from one run and alternate with one another, round after round; a ratio is the
median over the rounds. FOLDER is left empty.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from itertools import repeat
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from formats import BATCH, FORMATS, ROW_BYTES, ROW_SHAPE, Take
from torch.utils.data import DataLoader, Dataset
from training_loops import write_cache

import repa_cache
from cache.arrays import CheckedRows, aligned_buffer, open_rows
from cache.ring import BatchRing
from pipeline.plan.reading_speed import drop_cached_pages

ROUNDS = 7
OURS = "this project"


def batches(rows: int) -> Iterator[np.ndarray]:
    """The same random batch over and over: making numbers is not what is measured."""
    batch = np.random.default_rng(0).normal(size=(BATCH, *ROW_SHAPE)).astype(np.float16)
    return repeat(batch, rows // BATCH)


def alternate(
    works: Mapping[str, Callable[[int], float]], rounds: int = ROUNDS
) -> dict[str, list[float]]:
    """GB/s of each piece of work, which returns its seconds per GB, round by round."""
    speeds: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(rounds):
        # In another order each time: what runs before leaves caches and memory behind.
        for name in np.random.default_rng(turn).permutation(list(works)).tolist():
            speeds[name].append(1 / works[name](turn))
    return speeds


def show(title: str, speeds: Mapping[str, list[float]], reference: str) -> None:
    print(f"\n{title}")
    for name, values in speeds.items():
        ratios = [ours / other for ours, other in zip(speeds[reference], values, strict=True)]
        print(
            f"  {name:<42} {median(values):6.2f} GB/s   {reference} / this: {median(ratios):6.2f}"
        )


def random_rows(rows: int, turn: int) -> np.ndarray:
    return np.random.default_rng(turn).integers(0, rows, BATCH)


def timed(work: Callable[[], object], gigabytes: float) -> float:
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) / gigabytes


def read_warm(folder: Path, rows: int) -> None:
    """Random rows into one buffer that is used over and over, by one thread, from memory."""
    out = aligned_buffer((BATCH, *ROW_SHAPE), np.float16)
    takes = {name: format_.open(place(folder, name), rows) for name, format_ in FORMATS.items()}
    checksums = np.empty((rows, 1), np.uint32)
    open_rows(place(folder, OURS) / "crc32c").read(np.arange(rows), checksums)
    source = open_rows(place(folder, OURS) / "tokens", unbuffered=False)
    takes["this project, verified"] = CheckedRows(
        source, checksums[:, 0].copy(), OURS, lambda _: False
    ).read
    size = BATCH * ROW_BYTES / 1e9

    def work(take: Take) -> Callable[[int], float]:
        def seconds(turn: int) -> float:
            take(random_rows(rows, turn + 1000), out)
            return timed(lambda: take(random_rows(rows, turn), out), size)

        return seconds

    warm_up = np.arange(rows)
    for take in takes.values():
        for start in range(0, rows, BATCH):
            take(warm_up[start : start + BATCH], out)
    speeds = alternate({name: work(take) for name, take in takes.items()}, rounds=9)
    show("Warm, one thread, random rows", speeds, OURS)


class Rows(Dataset[torch.Tensor]):
    """Samples for a DataLoader: one by one, or a batch at once where `at_once`."""

    def __init__(self, name: str, folder: Path, rows: int, *, at_once: bool) -> None:
        self._open = lambda: FORMATS[name].open(folder, rows)
        self._rows, self._take = rows, None
        if at_once:
            self.__getitems__ = self._getitems

    def __len__(self) -> int:
        return self._rows

    def _getitems(self, index: list[int]) -> torch.Tensor:
        self._take = self._take or self._open()
        out = np.empty((len(index), *ROW_SHAPE), np.float16)
        self._take(np.array(index), out)
        return torch.from_numpy(out)

    def __getitem__(self, row: int) -> torch.Tensor:
        return self._getitems([row])[0]


def same(batch: Any) -> Any:
    return batch


def loader_speed(
    dataset: Rows, workers: int, steps: int, *, at_once: bool
) -> Callable[[int], float]:
    loader = DataLoader(
        dataset,
        BATCH,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=same if at_once else None,
    )

    def work(_turn: int) -> float:
        stream = iter(loader)
        next(stream)
        return timed(lambda: [next(stream) for _ in range(steps)], steps * BATCH * ROW_BYTES / 1e9)

    return work


def of_cache(folder: Path, threads: int) -> Callable[[int], float]:
    """Batches of a cache, with moments: verified, float32, each in memory of its own."""
    path = folder / "cache.zarr"
    if not path.exists():
        write_cache(path, {"encoder": ROW_SHAPE[1]}, "float16")
    stream = repa_cache.open(path).batches(BATCH, ["encoder"], threads=threads)
    moments = next(stream).moments[0].nbytes // 2
    steps = 8

    def work(_turn: int) -> float:
        next(stream)
        size = steps * BATCH * (ROW_BYTES + moments) / 1e9
        return timed(lambda: [next(stream) for _ in range(steps)], size)

    return work


def read_ring(folder: Path, rows: int) -> None:
    """Batches as training gets them, from memory: the ring against DataLoaders."""
    steps = rows // BATCH - 2
    source = open_rows(place(folder, OURS) / "tokens", unbuffered=False)
    slots = [[aligned_buffer((BATCH, *ROW_SHAPE), np.float16)] for _ in range(4)]
    rings = {
        f"ring, {threads} threads": BatchRing(
            [source],
            lambda step: [random_rows(rows, step)],
            slots,
            threads=threads,
            stop=1 << 40,
            timeout_seconds=60,
        )
        for threads in (1, 2, 4)
    }

    def work(ring: BatchRing) -> Callable[[int], float]:
        def take(turn: int) -> float:
            start = 10_000 * turn
            ring.take(start)
            steps_ = range(start + 1, start + 1 + steps)
            return timed(lambda: [ring.take(s) for s in steps_], steps * BATCH * ROW_BYTES / 1e9)

        return take

    works = {name: work(ring) for name, ring in rings.items()}
    works |= {
        f"repa_cache batches, {threads} threads": of_cache(folder, threads) for threads in (1, 2, 4)
    }
    cores = os.cpu_count() or 1
    for name in (OURS, "np.memmap", "litdata", "MosaicML streaming"):
        for workers in (0, cores):
            for at_once in (True, False) if name in (OURS, "np.memmap") else (False,):
                dataset = Rows(name, place(folder, name), rows, at_once=at_once)
                how = "batch at once" if at_once else "row by row"
                works[f"DataLoader, {name}, {workers} workers, {how}"] = loader_speed(
                    dataset, workers, steps, at_once=at_once
                )
    speeds = alternate(works)
    best = max((name for name in rings), key=lambda name: median(speeds[name]))
    show("Batches for training, warm", speeds, best)


def place(folder: Path, name: str) -> Path:
    return folder / ("zarr-python" if name == "tensorstore" else name)


def fio(folder: Path, threads: int) -> float:
    """Seconds per GB of fio's random reads of a row's size from our shards, past the cache."""
    files = ":".join(str(path) for path in sorted((folder / "tokens").glob("c.*")))
    command = [
        *("fio", "--name=x", f"--filename={files}", "--rw=randread", f"--bs={ROW_BYTES}"),
        *("--direct=1", "--ioengine=psync", f"--numjobs={threads}", "--thread", "--time_based"),
        *("--runtime=4", "--readonly", "--group_reporting", "--output-format=json"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return 1e9 / float(json.loads(done.stdout)["jobs"][0]["read"]["bw_bytes"])


def read_cold(folder: Path, rows: int) -> None:
    """Random rows from the disk, by several threads where a format can; fio sets the limit."""
    ours = place(folder, OURS)
    slots = [[aligned_buffer((BATCH, *ROW_SHAPE), np.float16)] for _ in range(4)]
    steps = rows // BATCH // 2

    def ring(threads: int, *, unbuffered: bool) -> Callable[[int], float]:
        def work(turn: int) -> float:
            drop_cached_pages(ours)
            order = np.random.default_rng(turn).permutation(rows)
            source = open_rows(ours / "tokens", unbuffered=unbuffered)
            ring = BatchRing(
                [source],
                lambda step: [order[step * BATCH : (step + 1) * BATCH]],
                slots,
                threads=threads,
                stop=steps,
                timeout_seconds=600,
            )
            seconds = timed(
                lambda: [ring.take(s) for s in range(steps)], steps * BATCH * ROW_BYTES / 1e9
            )
            ring.close()
            return seconds

        return work

    def peer(name: str) -> Callable[[int], float]:
        def work(turn: int) -> float:
            drop_cached_pages(place(folder, name), "*")
            take = FORMATS[name].open(place(folder, name), rows)
            out, index = slots[0][0], np.random.default_rng(turn).permutation(rows)[:BATCH]
            return timed(lambda: take(index, out), BATCH * ROW_BYTES / 1e9)

        return work

    for threads in (16, 4, 1):
        works = {
            f"fio, {threads} threads": lambda _, t=threads: fio(ours, t),
            f"ring, {threads} threads, unbuffered": ring(threads, unbuffered=True),
            f"ring, {threads} threads, buffered": ring(threads, unbuffered=False),
        }
        show(
            f"Cold, {threads} threads, random rows",
            alternate(works, rounds=5),
            f"ring, {threads} threads, unbuffered",
        )
    works = {"ring, 16 threads, unbuffered": ring(16, unbuffered=True)}
    works |= {name: peer(name) for name, format_ in FORMATS.items() if format_.is_random}
    show("Cold, random rows", alternate(works, rounds=3), "ring, 16 threads, unbuffered")


def write(folder: Path, rows: int) -> None:
    """Writing, until the bytes are on the disk."""

    def work(name: str) -> Callable[[int], float]:
        def seconds(turn: int) -> float:
            target = folder / f"written-{turn}"
            spent = timed(
                lambda: FORMATS[name].write(target, batches(rows), rows), rows * ROW_BYTES / 1e9
            )
            os.sync()
            shutil.rmtree(target)
            os.sync()
            return spent

        return seconds

    names = (OURS, "np.memmap", "zarr-python")
    speeds = alternate({name: work(name) for name in names})
    speeds["raw file, fsync"] = speeds.pop("np.memmap")
    show("Writing", speeds, OURS)


SECTIONS = {"warm": read_warm, "ring": read_ring, "cold": read_cold, "write": write}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    options = parser.parse_args()
    packages = (
        "numpy",
        "zarr",
        "tensorstore",
        "h5py",
        "litdata",
        "mosaicml-streaming",
        "webdataset",
    )
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
        f"Linux {platform.release()}, Python {platform.python_version()}, torch {torch.__version__}"
    )
    print(", ".join(f"{package} {version(package)}" for package in packages))
    options.folder.mkdir(parents=True)
    try:
        if set(options.only) != {"write"}:
            for name, format_ in FORMATS.items():
                if name != "tensorstore":
                    format_.write(place(options.folder, name), batches(options.rows), options.rows)
            os.sync()
        for name in options.only:
            SECTIONS[name](options.folder, options.rows)
    finally:
        shutil.rmtree(options.folder)


if __name__ == "__main__":
    main()
