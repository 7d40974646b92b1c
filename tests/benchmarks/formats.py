"""Ways to keep rows of float16 tokens on disk, each behind the same three functions.

A format writes rows [N, T, D] into a folder of its own and opens them for reading: `take` fills
a buffer [B, T, D] with rows in any order.
"""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import tensorstore
import zarr
from safetensors.numpy import load_file, save_file

from cache.arrays import open_rows
from cache.layout import ArraySpec, Column
from cache.metadata import create_column
from cache.writer import ShardWriter
from stages import vision  # noqa: F401 - makes torchvision importable for the peers

TOKENS, FEATURES = 256, 768
ROW_SHAPE = (TOKENS, FEATURES)
ROW_BYTES = TOKENS * FEATURES * 2
ROWS_PER_SHARD = 1024
BATCH = 256

Take = Callable[[np.ndarray, np.ndarray], None]
Batches = Iterator[np.ndarray]


@dataclass(frozen=True)
class Format:
    """write: rows from batches into a folder, synced or not as it does; open: for reading."""

    write: Callable[[Path, Batches, int], None]
    open: Callable[[Path, int], Take]
    is_random: bool = True


def column(folder: Path, rows: int) -> Column:
    spec = ArraySpec("tokens", "float16", ROW_SHAPE)
    return Column("features/x", folder, (spec,), {"storage": "float16"}, rows, ROWS_PER_SHARD)


def write_ours(folder: Path, batches: Batches, rows: int) -> None:
    own = column(folder, rows)
    create_column(own, {})
    for shard in range(own.shards):
        with ShardWriter(own, shard, b"") as writer:
            for _ in range(0, len(own.shard_rows(shard)), BATCH):
                writer.write({"tokens": next(batches)})


def open_ours(folder: Path, _rows: int, *, unbuffered: bool = False) -> Take:
    return open_rows(folder / "tokens", unbuffered=unbuffered).read


def write_raw(folder: Path, batches: Batches, _rows: int) -> None:
    folder.mkdir(parents=True)
    with (folder / "raw").open("wb") as file:
        for batch in batches:
            file.write(batch.data)
        file.flush()
        os.fsync(file.fileno())


def open_raw(folder: Path, rows: int) -> Take:
    mapped = np.memmap(folder / "raw", np.float16, "r", shape=(rows, *ROW_SHAPE))
    return lambda index, out: np.take(mapped, index, axis=0, out=out, mode="clip")


def one_by_one(read: Callable[[int], Any]) -> Take:
    def take(index: np.ndarray, out: np.ndarray) -> None:
        for place, row in enumerate(index.tolist()):
            out[place] = read(row)

    return take


def write_npy(folder: Path, batches: Batches, _rows: int) -> None:
    folder.mkdir(parents=True)
    for number, row in enumerate(row for batch in batches for row in batch):
        np.save(folder / f"{number:08d}.npy", row)


def open_npy(folder: Path, _rows: int) -> Take:
    return one_by_one(lambda row: np.load(folder / f"{row:08d}.npy"))


def write_safetensors(folder: Path, batches: Batches, _rows: int) -> None:
    folder.mkdir(parents=True)
    for number, row in enumerate(row for batch in batches for row in batch):
        save_file({"tokens": row}, folder / f"{number:08d}.safetensors")


def open_safetensors(folder: Path, _rows: int) -> Take:
    return one_by_one(lambda row: load_file(folder / f"{row:08d}.safetensors")["tokens"])


def write_hdf5(folder: Path, batches: Batches, rows: int) -> None:
    folder.mkdir(parents=True)
    with h5py.File(folder / "x.h5", "w") as file:
        data = file.create_dataset("x", (rows, *ROW_SHAPE), "f2", chunks=(1, *ROW_SHAPE))
        for start in range(0, rows, BATCH):
            data[start : start + BATCH] = next(batches)


def open_hdf5(folder: Path, _rows: int) -> Take:
    data = h5py.File(folder / "x.h5", "r")["x"]

    def take(index: np.ndarray, out: np.ndarray) -> None:
        for place, row in enumerate(index.tolist()):
            data.read_direct(out, np.s_[row], np.s_[place])

    return take


def write_litdata(folder: Path, batches: Batches, _rows: int) -> None:
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(str(folder), chunk_bytes="64MB")
    for number, row in enumerate(row for batch in batches for row in batch):
        writer[number] = row
    writer.done()
    writer.merge()


def open_litdata(folder: Path, _rows: int) -> Take:
    from litdata import StreamingDataset

    dataset = StreamingDataset(str(folder))
    return one_by_one(lambda row: dataset[row])


def write_mds(folder: Path, batches: Batches, _rows: int) -> None:
    from streaming import MDSWriter

    shape = ",".join(map(str, ROW_SHAPE))
    with MDSWriter(out=str(folder), columns={"x": f"ndarray:float16:{shape}"}) as writer:
        for row in (row for batch in batches for row in batch):
            writer.write({"x": row})


def open_mds(folder: Path, _rows: int) -> Take:
    from streaming import LocalDataset

    dataset = LocalDataset(local=str(folder))
    return one_by_one(lambda row: dataset[row]["x"])


def write_webdataset(folder: Path, batches: Batches, _rows: int) -> None:
    import webdataset

    folder.mkdir(parents=True)
    with webdataset.ShardWriter(
        str(folder / "%06d.tar"), maxcount=ROWS_PER_SHARD, verbose=0
    ) as tar:
        for number, row in enumerate(row for batch in batches for row in batch):
            tar.write({"__key__": f"{number:08d}", "npy": row})


def open_webdataset(folder: Path, _rows: int) -> Take:
    """In the order of the files, the only one that tar files have."""
    import webdataset

    urls = [str(path) for path in sorted(folder.glob("*.tar"))]

    def samples() -> Iterator[Any]:
        while True:
            yield from webdataset.WebDataset(urls, shardshuffle=False).decode()

    stream = samples()
    return one_by_one(lambda _: next(stream)["npy"])


def write_zarr(folder: Path, batches: Batches, rows: int) -> None:
    array = zarr.create_array(
        folder,
        shape=(rows, *ROW_SHAPE),
        dtype="float16",
        chunks=(1, *ROW_SHAPE),
        shards=(ROWS_PER_SHARD, *ROW_SHAPE),
        compressors=None,
    )
    for start in range(0, rows, ROWS_PER_SHARD):
        shard = [next(batches) for _ in range(0, min(ROWS_PER_SHARD, rows - start), BATCH)]
        array[start : start + ROWS_PER_SHARD] = np.concatenate(shard)


def open_zarr(folder: Path, _rows: int) -> Take:
    array = zarr.open_array(folder, mode="r")

    def take(index: np.ndarray, out: np.ndarray) -> None:
        out[...] = array.oindex[index]

    return take


def open_tensorstore(folder: Path, _rows: int) -> Take:
    metadata = json.loads((folder / "zarr.json").read_text())
    assert metadata["zarr_format"] == 3
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(folder)}}
    store = tensorstore.open(spec).result()

    def take(index: np.ndarray, out: np.ndarray) -> None:
        out[...] = store[index].read().result()

    return take


FORMATS = {
    "this project": Format(write_ours, open_ours),
    "np.memmap": Format(write_raw, open_raw),
    ".npy per sample": Format(write_npy, open_npy),
    "safetensors per sample": Format(write_safetensors, open_safetensors),
    "HDF5, a row per chunk": Format(write_hdf5, open_hdf5),
    "litdata": Format(write_litdata, open_litdata),
    "MosaicML streaming": Format(write_mds, open_mds),
    "webdataset, in order": Format(write_webdataset, open_webdataset, is_random=False),
    "zarr-python": Format(write_zarr, open_zarr),
    "tensorstore": Format(write_zarr, open_tensorstore),
}
