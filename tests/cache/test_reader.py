import errno
import fcntl
import multiprocessing
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore
import zarr
from hypothesis import given, settings
from reading import ROW_LISTS, read
from tiny_cache import ARRAYS, ROWS, SHARDED, make_cache, read_elsewhere, values
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec, TransposeCodec, ZstdCodec

from cache.arrays import (
    MemoryRows,
    ZarrRows,
    aligned_buffer,
    open_rows,
)
from cache.errors import DamagedCacheError, IncompleteCacheError
from cache.reader import Cache
from cache.shard_files import DirectRows

LITTLE = BytesCodec(endian="little")


def sharding(inner: tuple[int, ...], **options: Any) -> dict[str, Any]:
    codecs = options.pop("codecs", (LITTLE,))
    index = options.pop("index_codecs", (LITTLE, Crc32cCodec()))
    shards = options.pop("shards", (8, *inner[1:]))
    codec = ShardingCodec(chunk_shape=inner, codecs=codecs, index_codecs=index, **options)
    return {"chunks": shards, "serializer": codec}


# Shape, type and layout of arrays, and whether their rows can be read as they lie.
LAYOUTS: dict[str, tuple[tuple[int, ...], str, dict[str, Any], bool]] = {
    "a row per chunk": ((21, 4, 6), "float16", sharding((1, 4, 6)), True),
    "rows of whole pages": ((21, 4, 1024), "float16", sharding((1, 4, 1024)), True),
    "several rows per chunk": ((21, 5), "int8", sharding((2, 5)), True),
    "index at the start": ((21, 5), "float32", sharding((1, 5), index_location="start"), True),
    "index without checksum": ((21, 5), "float64", sharding((1, 5), index_codecs=(LITTLE,)), True),
    "dense": ((21, 3, 2), "uint32", {"chunks": (8, 3, 2), "serializer": LITTLE}, True),
    "one dimension": ((21,), "int32", {"chunks": (5,), "serializer": LITTLE}, True),
    "compressed": ((21, 5), "float32", sharding((1, 5), codecs=(LITTLE, ZstdCodec())), False),
    "big-endian": (
        (21, 5),
        "float32",
        {"chunks": (8, 5), "serializer": BytesCodec(endian="big")},
        False,
    ),
    "rows in parts": ((21, 6), "float32", sharding((1, 3), shards=(8, 6)), False),
    "columns first": (
        (21, 4, 6),
        "float16",
        sharding((1, 4, 6), codecs=(TransposeCodec(order=(0, 2, 1)), LITTLE)),
        False,
    ),
}


@pytest.fixture(scope="module", params=LAYOUTS)
def stored(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, np.ndarray, bool]:
    """An array on disk, its content, and whether it can be read directly."""
    shape, dtype, layout, is_direct = LAYOUTS[request.param]
    path = tmp_path_factory.mktemp("array") / "x"
    content = np.random.default_rng(0).integers(-100, 100, shape).astype(dtype)
    array = zarr.create_array(
        path, shape=shape, dtype=dtype, compressors=None, filters=None, **layout
    )
    array[:] = content
    return path, content, is_direct


@settings(max_examples=40)
@given(rows=ROW_LISTS)
def test_any_rows_are_what_zarr_python_and_tensorstore_read(
    stored: tuple[Path, np.ndarray, bool], rows: list[int]
) -> None:
    path, content, is_direct = stored
    source = open_rows(path)
    assert type(source) is (DirectRows if is_direct else ZarrRows)
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}}
    peer = tensorstore.open(spec).result()
    index = np.array(rows, np.int64)
    for got in (
        read(source, rows),
        read(open_rows(path, unbuffered=True), rows),
        read(MemoryRows(source), rows),
        zarr.open_array(path, mode="r").oindex[index],
        peer[index].read().result(),
    ):
        np.testing.assert_array_equal(got, content[rows])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cache") / "x.zarr"
    make_cache(path)
    return path


@settings(max_examples=50)
@given(ROW_LISTS)
def test_a_column_reads_any_rows_in_any_order(finished: Path, rows: list[int]) -> None:
    reader = Cache(finished).column("features/x", verify=True)
    for spec in ARRAYS:
        np.testing.assert_array_equal(reader.read(spec.name, rows), values(spec)[rows])


def test_rows_are_read_into_the_callers_buffer(finished: Path) -> None:
    buffer = np.zeros((2, *SHARDED.row_shape), np.float16)
    reader = Cache(finished).column("features/x")
    assert reader.read("tokens", [20, 0], out=buffer) is buffer
    np.testing.assert_array_equal(buffer, values(SHARDED)[[20, 0]])
    for wrong in (buffer[:1], buffer.astype(np.float32), buffer[:, :, ::2]):
        with pytest.raises(ValueError, match=r"expected a contiguous buffer of float16 \(2, 16"):
            reader.read("tokens", [20, 0], out=wrong)


@pytest.mark.parametrize("row", [-1, ROWS])
def test_rows_out_of_range_are_refused(finished: Path, row: int) -> None:
    with pytest.raises(IndexError, match="rows lie in 0 to 20"):
        Cache(finished).column("features/x").read("tokens", [0, row])


def open_flags(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The flags of the descriptors that rows are read from, as they are read."""
    flags: list[int] = []
    real = os.preadv

    def preadv(descriptor: int, buffers: Any, offset: int) -> int:
        flags.append(fcntl.fcntl(descriptor, fcntl.F_GETFL))
        return real(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    return flags


def whole_pages(folder: Path) -> tuple[Path, np.ndarray]:
    content = np.random.default_rng(0).normal(size=(21, 4, 1024)).astype(np.float16)
    layout = LAYOUTS["rows of whole pages"][2]
    array = zarr.create_array(
        folder / "x", shape=content.shape, dtype="float16", compressors=None, **layout
    )
    array[:] = content
    return folder / "x", content


def supports_unbuffered(file: Path) -> bool:
    try:
        os.close(os.open(file, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        return False
    return True


def test_unbuffered_reads_bypass_the_page_cache_where_rows_and_buffers_are_aligned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, content = whole_pages(tmp_path)
    flags = open_flags(monkeypatch)
    source = open_rows(path, unbuffered=True)
    np.testing.assert_array_equal(read(source, [3, 20, 4]), content[[3, 20, 4]])
    expected = supports_unbuffered(path / "c/0/0/0")
    assert {bool(flag & os.O_DIRECT) for flag in flags} == {expected}
    flags.clear()
    unaligned = np.empty(2 * content[0].size + 1, np.float16)[1:].reshape(2, 4, 1024)
    source.read(np.array([5, 6]), unaligned)
    np.testing.assert_array_equal(unaligned, content[[5, 6]])
    assert not any(flag & os.O_DIRECT for flag in flags)


@pytest.mark.parametrize("refused", ["open", "preadv"])
def test_a_file_system_without_unbuffered_reads_is_read_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    path, content = whole_pages(tmp_path)
    real: Callable[..., int] = getattr(os, refused)

    def refuse(first: Any, *rest: Any, **named: Any) -> int:
        flags = rest[0] if refused == "open" else fcntl.fcntl(first, fcntl.F_GETFL)
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(first, *rest, **named)

    source = open_rows(path, unbuffered=True)
    monkeypatch.setattr(os, refused, refuse)
    np.testing.assert_array_equal(read(source, [3, 20, 4]), content[[3, 20, 4]])


def test_memory_that_a_disk_cannot_write_to_is_filled_by_way_of_some_that_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, content = whole_pages(tmp_path)
    # Larger than what is read at once, and no multiple of it.
    monkeypatch.setattr("cache.bounced_reads.BOUNCE_BYTES", 3 * 4096)
    monkeypatch.setattr("cache.bounced_reads._bounce", threading.local())
    pinned = aligned_buffer((8, 4, 1024), np.float16)
    first, last = pinned.ctypes.data, pinned.ctypes.data + pinned.nbytes
    real, direct = os.preadv, [0]

    def refuse(descriptor: int, views: list[memoryview], offset: int) -> int:
        is_direct = bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT)
        if is_direct and first <= np.frombuffer(views[0], np.uint8).ctypes.data < last:
            raise OSError(errno.EFAULT, "Bad address")
        count = real(descriptor, views, offset)
        direct[0] += count * is_direct
        return count

    source = open_rows(path, unbuffered=True)
    monkeypatch.setattr(os, "preadv", refuse)
    rows = np.array([0, 1, 2, 3, 4, 20, 7, 7])
    source.read(rows, pinned)
    np.testing.assert_array_equal(pinned, content[rows])
    assert direct[0] == (pinned.nbytes if supports_unbuffered(path / "c/0/0/0") else 0)


def test_arrays_larger_than_memory_are_read_unbuffered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = whole_pages(tmp_path)
    flags = open_flags(monkeypatch)
    monkeypatch.setattr("cache.arrays.physical_memory_bytes", lambda: 21 * 4 * 1024 * 2 - 1)
    read(open_rows(path), [0])
    monkeypatch.setattr("cache.arrays.physical_memory_bytes", lambda: 21 * 4 * 1024 * 2)
    read(open_rows(path), [0])
    assert [bool(flag & os.O_DIRECT) for flag in flags] == [
        supports_unbuffered(path / "c/0/0/0"),
        False,
    ]


def damaged(folder: Path, change: Callable[[bytearray], None]) -> Path:
    make_cache(folder / "x.zarr")
    file = folder / "x.zarr/features/x/tokens/c.1.0.0"
    content = bytearray(file.read_bytes())
    change(content)
    file.write_bytes(content)
    return folder / "x.zarr"


def flip(offset: int) -> Callable[[bytearray], None]:
    def change(content: bytearray) -> None:
        content[offset] ^= 1

    return change


def test_a_flipped_bit_is_an_error_if_checksums_are_verified(tmp_path: Path) -> None:
    path = damaged(tmp_path, flip(3 * SHARDED.row_bytes + 77))
    plain, checked = (Cache(path).column("features/x", verify=v) for v in (False, True))
    assert (plain.read("tokens", [11]) != values(SHARDED)[[11]]).sum() == 1
    checked.read("tokens", [10, 12])
    with pytest.raises(DamagedCacheError, match=r"features/x/tokens: row 11 is not what was"):
        checked.read("tokens", [10, 11])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (flip(-9), "its index is damaged"),
        (lambda content: content.__delitem__(slice(-50, None)), "its index is damaged"),
        (lambda content: content.clear(), "its index is damaged"),
    ],
    ids=["index", "truncated", "empty"],
)
def test_a_damaged_index_is_an_error(
    tmp_path: Path, change: Callable[[bytearray], None], message: str
) -> None:
    reader = Cache(damaged(tmp_path, change)).column("features/x")
    reader.read("tokens", [0])
    with pytest.raises(DamagedCacheError, match=message):
        reader.read("tokens", [8])


def test_a_shard_that_vanished_or_is_short_is_an_error(tmp_path: Path) -> None:
    make_cache(tmp_path / "x.zarr")
    folder = tmp_path / "x.zarr/features/x"
    (folder / "tokens/c.1.0.0").unlink()
    (folder / "class_token/c.2.0").write_bytes(b"short")
    reader = Cache(tmp_path / "x.zarr").column("features/x")
    with pytest.raises(IncompleteCacheError, match=r"c\.1\.0\.0: it is missing"):
        reader.read("tokens", [9])
    with pytest.raises(DamagedCacheError, match="shorter"):
        reader.read("class_token", [16])


def test_absent_rows_of_a_sparse_array_are_never_taken_for_data(tmp_path: Path) -> None:
    layout = sharding((1, 5))
    array = zarr.create_array(
        tmp_path / "x", shape=(21, 5), dtype="float32", compressors=None, **layout
    )
    array[3] = 1
    with pytest.raises(IncompleteCacheError, match="row 4 of the shard is absent"):
        read(open_rows(tmp_path / "x"), [3, 4])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_reader_works_in_another_process(finished: Path, method: str) -> None:
    reader = Cache(finished).column("features/x", verify=True)
    reader.read("tokens", [0, 9])
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    process = context.Process(target=read_elsewhere, args=(reader, queue))
    process.start()
    np.testing.assert_array_equal(queue.get(timeout=60), values(SHARDED))
    process.join()
    assert process.exitcode == 0
