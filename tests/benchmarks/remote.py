"""How fast rows are read from an object store that is 30 ms away, against others and its limit.

    pip install mosaicml-streaming s3fs
    python tests/benchmarks/remote.py FOLDER [--rows 2048] [--in-flight 64] [--row tokens latents]

The store is a server on loopback that answers any request a round trip late. All are given the
same rows in random order, with as many requests at a time as they can have; the limit is a bare
loop of obstore's ranges with as many. Batches alternate, round after round; a ratio is the median
over the rounds. FOLDER is left empty.
"""

import argparse
import asyncio
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import obstore
import zarr

from cache.arrays import CheckedRows, aligned_buffer, open_rows
from cache.layout import ArraySpec, Column
from cache.metadata import create_column
from cache.order import block_permutation
from cache.ring import BatchRing
from cache.stores.kept_rows import ArrayIdentity, StoreReading
from cache.stores.local_shards import LocalShards
from cache.stores.places import StorePath
from cache.writer import ShardWriter
from stages import vision  # noqa: F401 - makes torchvision importable for a peer

ROUNDS, BATCH = 5, 128
# Batches of those that would take minutes.
SLOW_STEPS = 1
ROWS_PER_SHARD = 256
DELAY_SECONDS = 0.03
SHAPES = {"tokens": (256, 768), "latents": (8, 32, 32)}
# In an order that keeps a shard's rows together, as the peer that downloads shards has it.
BLOCKS = "this project, shard after shard"
OURS, LIMIT = "this project, checksums compared", "obstore, ranges alone"
CLIENT: Any = {"allow_http": True}
Take = Callable[[np.ndarray], None]


@contextmanager
def distant(folder: Path) -> Iterator[None]:
    """The folder as `s3://bucket`, for all clients that look into the environment."""
    program = Path(__file__).parents[1] / "tools/distant_files.py"
    command = [sys.executable, str(program), str(folder), str(DELAY_SECONDS)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        os.environ |= {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "S3_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "somebody",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        try:
            yield
        finally:
            process.kill()


def write(folder: Path, name: str, rows: int) -> np.ndarray:
    """Rows as a column, and as MosaicML's format; returns the checksums of the column."""
    values = np.random.default_rng(0).normal(size=(ROWS_PER_SHARD, *SHAPES[name]))
    batch = values.astype(np.float16)
    spec = ArraySpec("tokens", "float16", SHAPES[name])
    column = Column(
        "features/x", folder / name, (spec,), {"storage": "float16"}, rows, ROWS_PER_SHARD
    )
    create_column(column, {})
    for shard in range(column.shards):
        with ShardWriter(column, shard, b"") as writer:
            writer.write({"tokens": np.roll(batch, shard, axis=0)})
    if find_spec("streaming"):
        from streaming import MDSWriter

        columns = {"x": f"ndarray:float16:{','.join(map(str, SHAPES[name]))}"}
        with MDSWriter(out=str(folder / f"{name}-mds"), columns=columns) as writer:
            for shard in range(column.shards):
                for row in np.roll(batch, shard, axis=0):
                    writer.write({"x": row})
    checksums = np.empty((rows, 1), np.uint32)
    open_rows(folder / name / "crc32c").read(np.arange(rows), checksums)
    return checksums[:, 0].copy()


class Ours:
    """Batches as training gets them, compared with their checksums."""

    def __init__(self, name: str, checksums: np.ndarray, reading: StoreReading) -> None:
        names = {shard: f"{name}-{shard}" for shard in range(len(checksums) // ROWS_PER_SHARD)}
        self._in_flight = reading.in_flight
        place = StorePath("s3://bucket") / name / "tokens"
        source = open_rows(place, reading=reading, identity=ArrayIdentity(names, checksums))
        self.source = CheckedRows(source, checksums, name, lambda _: False)
        count = max(4, 2 * self._in_flight // BATCH + 1)
        shape = (BATCH, *SHAPES[name])
        self._slots = [[aligned_buffer(shape, np.float16)] for _ in range(count)]

    def __call__(self, rows: np.ndarray) -> None:
        batches = rows.reshape(-1, BATCH)
        ring = BatchRing(
            [self.source],
            lambda step: [batches[step]],
            self._slots,
            threads=self._in_flight,
            pieces=8,
            stop=len(batches),
            timeout_seconds=100,
        )
        with closing(ring):
            for step in range(len(batches)):
                ring.take(step)


def ranges(name: str, in_flight: int) -> Take:
    """The least that a reader of this layout does, without a place for what arrives."""
    from obstore import get_range_async

    place = StorePath("s3://bucket") / name / "tokens"
    store, size = place.store, int(np.prod(SHAPES[name])) * 2
    zeros = ["0"] * len(SHAPES[name])

    async def read(rows: np.ndarray) -> None:
        free = asyncio.Semaphore(in_flight)

        async def one(row: int) -> None:
            shard, position = divmod(row, ROWS_PER_SHARD)
            key = f"{place.key}/{'.'.join(['c', str(shard), *zeros])}"
            async with free:
                await get_range_async(store, key, start=position * size, length=size)

        await asyncio.gather(*map(one, rows.tolist()))

    return lambda rows: asyncio.run(read(rows))


def zarr_python(name: str, store: Any) -> Take:
    array = zarr.open_array(store, mode="r", zarr_format=3)
    out = np.empty((BATCH, *SHAPES[name]), np.float16)

    def take(rows: np.ndarray) -> None:
        for batch in rows.reshape(-1, BATCH):
            out[...] = array.oindex[batch]

    return take


def with_obstore(name: str) -> Take:
    store = obstore.store.from_url("s3://bucket/" + f"{name}/tokens", client_options=CLIENT)
    return zarr_python(name, zarr.storage.ObjectStore(store, read_only=True))


def with_s3fs(name: str) -> Take:
    url, options = f"s3://bucket/{name}/tokens", {"endpoint_url": os.environ["AWS_ENDPOINT_URL"]}
    return zarr_python(
        name, zarr.storage.FsspecStore.from_url(url, storage_options=options, read_only=True)
    )


def mosaicml(folder: Path, name: str) -> Take:
    """An epoch of its own order, shards fetched ahead, from an empty local folder."""
    from streaming import StreamingDataset

    def take(rows: np.ndarray) -> None:
        local = folder / "mosaicml"
        shutil.rmtree(local, ignore_errors=True)
        remote = f"s3://bucket/{name}-mds"
        data = StreamingDataset(
            remote=remote, local=str(local), shuffle=True, batch_size=BATCH, download_timeout=60
        )
        for count, row in enumerate(data, 1):
            np.asarray(row["x"])
            if count == len(rows):
                break

    return take


def measured(takes: Mapping[str, Take], rows: int, steps: int) -> dict[str, list[float]]:
    """Rows a second of each, round by round; the first round, in which all open files, is none."""
    speeds: dict[str, list[float]] = {name: [] for name in takes}
    for turn in range(ROUNDS + 1):
        # Each row at most once a round, as in an epoch.
        order = np.random.default_rng(turn).permutation(rows)[: steps * BATCH]
        for name in np.random.default_rng(turn).permutation(list(takes)).tolist():
            some = order[: BATCH * min(steps, SLOW_STEPS)] if name.startswith("zarr") else order
            start = time.perf_counter()
            takes[name](some)
            if turn:
                speeds[name].append(len(some) / (time.perf_counter() - start))
    return speeds


def show(title: str, speeds: Mapping[str, list[float]], row_bytes: int) -> None:
    print(f"\n{title}")
    for name, values in speeds.items():
        ratios = [ours / other for ours, other in zip(speeds[OURS], values, strict=True)]
        print(
            f"  {name:<36} {median(values):8.0f} rows/s {median(values) * row_bytes / 1e9:6.2f} "
            f"GB/s   {OURS} / this: {median(ratios):6.2f}"
        )


def compare(folder: Path, name: str, rows: int, in_flight: int) -> None:
    checksums, steps = write(folder, name, rows), rows // BATCH
    zarr.config.set({"async.concurrency": in_flight})
    ours = Ours(name, checksums, StoreReading(in_flight))
    takes: dict[str, Take] = {
        OURS: ours,
        BLOCKS: lambda taken: ours(block_permutation(rows, int(taken[0]), 0, ROWS_PER_SHARD)),
        LIMIT: ranges(name, in_flight),
        "zarr-python with obstore": with_obstore(name),
    }
    if find_spec("s3fs"):
        takes["zarr-python with s3fs"] = with_s3fs(name)
    if find_spec("streaming"):
        takes["MosaicML streaming, a first epoch"] = mosaicml(folder, name)
    row_bytes = int(np.prod(SHAPES[name])) * 2
    title = f"{name}, {row_bytes:,} bytes a row, {in_flight} requests at a time"
    show(title, measured(takes, rows, steps), row_bytes)
    kept = Ours(name, checksums, StoreReading(in_flight, LocalShards(folder / "kept")))
    kept.source.expect(np.arange(rows))
    while len(list((folder / "kept").glob("[!.]*"))) < rows // ROWS_PER_SHARD:
        time.sleep(0.1)
    local = Ours(name, checksums, StoreReading(in_flight))
    local.source = CheckedRows(
        open_rows(folder / name / "tokens"), checksums, name, lambda _: False
    )
    takes = {OURS: kept, "a local cache": local}
    show(f"{name}, kept on the local disk", measured(takes, rows, steps), row_bytes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--in-flight", type=int, nargs="+", default=[64])
    parser.add_argument("--row", nargs="+", choices=SHAPES, default=list(SHAPES))
    options = parser.parse_args()
    packages = ("numpy", "zarr", "obstore", "s3fs", "mosaicml-streaming")
    print(f"{os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}")
    for package in packages:
        with suppress(PackageNotFoundError):
            print(package, version(package))
    options.folder.mkdir(parents=True)
    try:
        with distant(options.folder):
            for in_flight in options.in_flight:
                for name in options.row:
                    compare(options.folder, name, options.rows, in_flight)
                    for made in options.folder.iterdir():
                        shutil.rmtree(made)
    finally:
        shutil.rmtree(options.folder)


if __name__ == "__main__":
    main()
