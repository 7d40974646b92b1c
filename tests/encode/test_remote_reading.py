"""Reading data sets over the network: how much is asked for, what is kept, what goes wrong."""

import itertools
import math
import pickle
from collections.abc import Callable
from pathlib import Path

import packing
import pytest
import torch
from file_server import files_in, serving

from cache.stores import requests as object_requests
from pipeline.config import Config
from stages.encode.build import build
from stages.encode.images.remote import blocks
from stages.encode.images.remote.paths import Kept, RemotePath
from stages.encode.images.remote.requests import Status
from stages.encode.images.sources import SourceError, tar_headers


def test_indexes_are_read_without_what_they_are_of(images: Path, tmp_path: Path) -> None:
    """Images of 300 KB: a megabyte of padding would not be seen by decoding alone."""
    files = {name: content + bytes(300_000) for name, content in packing.tree(images).items()}
    packing.write_zip(tmp_path / "x.zip", files)
    packing.write_tar(tmp_path / "x.tar", files)
    with serving(files_in(tmp_path)) as server:
        for kind, most_requests, share in (("zip", 8, 0.02), ("tar", 30, 0.25)):
            name = f"x.{kind}"
            source = packing.opened(kind, RemotePath(f"{server.address}/{name}"))
            assert server.bytes_of(name) < share * len(server.files[name])
            assert server.requests_of(name) <= most_requests
            before = server.requests_of(name), server.bytes_of(name)
            assert source.read(3) == files[source.keys[3]]
            assert server.requests_of(name) == before[0] + 1
            assert server.bytes_of(name) <= before[1] + len(files[source.keys[3]]) + 2048


def test_headers_of_small_members_come_many_at_once(tmp_path: Path) -> None:
    """2,000 samples in some 4 MB: labels and headers in a few growing parts."""
    files = {f"{i:04d}.{kind}": b"5" for i in range(2000) for kind in ("cls", "jpg")}
    packing.write_tar(tmp_path / "x.tar", files)
    with serving(files_in(tmp_path)) as server:
        source = packing.opened("tar", RemotePath(f"{server.address}/x.tar"))
        assert set(source.labels.tolist()) == {5}
        assert server.requests_of("x.tar") < 12
        assert server.bytes_of("x.tar") <= 1.05 * len(server.files["x.tar"])


def test_long_tars_are_not_walked_for_hours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {f"class/{i:04d}.jpg": bytes(100_000) for i in range(100)}
    packing.write_tar(tmp_path / "x.tar", files)
    monkeypatch.setattr(tar_headers, "PATIENCE", 10)
    with serving(files_in(tmp_path)) as server:
        source = packing.opened("tar", RemotePath(f"{server.address}/x.tar"), classes=False)
        assert len(source.keys) == 100
        assert server.requests_of("x.tar") < 30


def test_what_stayed_as_it_was_is_not_read_again(
    images: Path, tmp_path: Path, tiny: Callable[..., Config]
) -> None:
    packing.write_zip(tmp_path / "x.zip", packing.tree(images))
    with serving({"x.zip": (tmp_path / "x.zip").read_bytes()}) as server:
        config = tiny("dataset.source=zip", f"dataset.path={server.address}/x.zip")
        settings = config.encode.model_copy(update={"encoders": {}})
        # As workers are given them.
        assert pickle.loads(pickle.dumps(settings)) == settings
        build(settings, torch.device("cpu"))
        before = server.requests_of("x.zip")
        assert before >= 2 * 21
        assert build(settings, torch.device("cpu")).counts.shards == 0
        assert server.requests_of("x.zip") < before + 6


def test_parquet_is_read_by_row_groups(images: Path, tmp_path: Path) -> None:
    (tmp_path / "packed").mkdir()
    packed = packing.parquet_of_datasets(images, tmp_path / "packed")
    (file, *_) = sorted(packed.path.parent.glob(packed.path.name))
    with serving({"x.parquet": file.read_bytes()}) as server:
        source = packing.opened("parquet", RemotePath(f"{server.address}/x.parquet"))
        listed = server.bytes_of("x.parquet")
        source.read(0)
        assert listed < server.bytes_of("x.parquet") < len(server.files["x.parquet"])


FAULTS = ("503", "", "reset", "cut", "", "429", "cut")


def test_a_server_that_fails_now_and_then_gives_no_wrong_byte(images: Path, tmp_path: Path) -> None:
    files = packing.tree(images)
    packing.write_zip(tmp_path / "x.zip", files)
    with serving(files_in(tmp_path)) as server:
        server.faults = iter(FAULTS * 4)
        source = packing.opened("zip", RemotePath(f"{server.address}/x.zip"))
        assert [source.read(place) for place in range(len(files))] == list(files.values())
        assert next(server.faults, None) is None


def test_what_a_server_refuses_is_said_with_the_address(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(object_requests.RETRIES, "max_retries", 1)
    packing.write_zip(tmp_path / "x.zip", packing.tree(images))
    with serving(files_in(tmp_path)) as server:
        address = f"{server.address}/x.zip"
        with pytest.raises(SourceError, match=rf"no file {server.address}/y\.zip"):
            packing.opened("zip", RemotePath(f"{server.address}/y.zip"))
        with pytest.raises(SourceError, match=r"does not list what is in a folder.* Name a file"):
            packing.opened("tar", RemotePath(f"{server.address}/*.tar"))
        source = packing.opened("zip", RemotePath(address))
        server.faults = itertools.repeat("503")
        with pytest.raises(SourceError, match=rf"{address}: .*503.*Look at the network"):
            source.read(0)
        server.faults = iter(())
        server.files["x.zip"] += b"more"
        with pytest.raises(SourceError, match=rf"{address}: it changed while it was in use"):
            source.read(0)
        server.has_ranges = False
        with pytest.raises(SourceError, match=rf"{address}: .*gives no parts.*Download it"):
            packing.opened("zip", RemotePath(address))
        server.is_closed = True
        with pytest.raises(SourceError, match=rf"{address}: .*Who you are is told"):
            packing.opened("zip", RemotePath(address))


def test_blocks_are_kept_for_other_processes_and_never_used_damaged(
    images: Path, tmp_path: Path
) -> None:
    files = packing.tree(images)
    (tmp_path / "served").mkdir()
    packing.write_tar(tmp_path / "served/x.tar", files)
    with serving(files_in(tmp_path / "served")) as server:

        def contents(most_bytes: float = math.inf) -> list[bytes]:
            # As another process finds the folder.
            blocks._block_folder.cache_clear()
            path = RemotePath(f"{server.address}/x.tar").keeping(
                Kept(tmp_path / "kept", most_bytes)
            )
            source = packing.opened("tar", path)
            return [source.read(place) for place in range(len(source.keys))]

        assert contents() == list(files.values())
        assert server.requests_of("x.tar") == 1
        assert contents() == list(files.values())
        assert server.requests_of("x.tar") == 1
        (block,) = (tmp_path / "kept").glob("*/*")
        content = bytearray(block.read_bytes())
        content[3000] ^= 1
        block.write_bytes(content)
        assert contents() == list(files.values())
        assert server.requests_of("x.tar") == 2
        block.write_bytes(content[:100])
        assert contents() == list(files.values())
        assert server.requests_of("x.tar") == 3
        # With other content it is another file.
        server.files["x.tar"] = packing.tar_bytes(dict(reversed(files.items())))
        assert contents() == list(files.values())
        assert len(list((tmp_path / "kept").glob("*/*"))) == 2
        contents(most_bytes=1.5 * len(server.files["x.tar"]))
        assert len(list((tmp_path / "kept").glob("*/*"))) <= 2


def test_a_full_folder_lets_go_of_what_was_used_longest_ago(tmp_path: Path) -> None:
    kept = blocks.BlockFolder(tmp_path, 10_000)
    for number in range(20):
        content = bytes([number]) * 1000
        status = Status(1000, number)
        assert kept.read("x", status, 10, 20, lambda *_: content) == content[10:30]  # noqa: B023
        assert sum(file.stat().st_size for file in tmp_path.glob("*/*")) <= 10_000

    def nothing(*_: int) -> bytes:
        raise AssertionError("it is not there")

    assert kept.read("x", Status(1000, 19), 0, 5, nothing) == bytes([19]) * 5
    with pytest.raises(AssertionError, match="not there"):
        kept.read("x", Status(1000, 0), 0, 5, nothing)
