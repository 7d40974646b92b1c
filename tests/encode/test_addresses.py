"""Data sets at addresses: the same as on the disk, read in ranges, on real servers."""

import itertools
import json
import math
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import packing
import pytest
import torch
from file_server import Served, files_in, serving
from marking import few_fast

from cache import object_requests
from cache.stores import StorePath
from pipeline.config import Config, ConfigError
from stages.encode.build import build
from stages.encode.images.remote import blocks
from stages.encode.images.remote.paths import Kept, RemotePath
from stages.encode.images.remote.requests import Status
from stages.encode.images.sources import SourceError

# The data sets that are read from anywhere.
KINDS = [
    name
    for name in packing.PACKERS
    if name.startswith(("imagefolder", "zip", "tar", "webdataset", "parquet"))
]


def upload(local: Path, place: StorePath) -> None:
    """A file, or all in a folder."""
    files = [file for file in local.rglob("*") if file.is_file()] if local.is_dir() else [local]
    for file in files:
        (place / file.relative_to(local.parent).as_posix()).put(file)


def remote(path: Path, folder: Path, place: StorePath) -> RemotePath:
    """Where a path in a folder is that was uploaded to a place."""
    return RemotePath(f"{place}/{path.relative_to(folder.parent).as_posix()}")


@pytest.fixture
def place(bucket: StorePath, request: pytest.FixtureRequest) -> StorePath:
    return bucket / request.node.name.replace("[", "-").replace("]", "")


@pytest.mark.parametrize("name", KINDS)
def test_a_data_set_is_the_same_in_a_store(
    name: str, images: Path, tmp_path: Path, place: StorePath
) -> None:
    (tmp_path / "packed").mkdir()
    packed = packing.PACKERS[name](images, tmp_path / "packed")
    folder = images if name == "imagefolder" else tmp_path / "packed"
    upload(folder, place)
    local = packed.open()
    found = packing.opened(packed.source, remote(packed.path, folder, place))
    assert list(found.keys) == list(local.keys) == list(packed.images)
    assert (found.labels.tolist(), found.classes) == (local.labels.tolist(), local.classes)
    contents = [found.read(index) for index in range(len(found.keys))]
    assert contents == list(packed.images.values())
    assert found.left_out.counts == local.left_out.counts
    stamps = [found.stamp(index) for index in range(len(found.keys))]
    again = packing.opened(packed.source, remote(packed.path, folder, place))
    assert 0 not in stamps
    assert stamps == [again.stamp(index) for index in range(len(again.keys))]


HUB = "hf://datasets/somebody/pictures"
# What a process without anything but a configuration sees of a data set.
SEEN = """
import json, sys
from stages.encode.images.remote.paths import RemotePath
from stages.encode.images.sources import SOURCES, SourceError, open_dataset
from packing import digest
name, address = sys.argv[1:]
try:
    source = open_dataset(SOURCES[name].settings(source=name, path=RemotePath(address)))
except SourceError as error:
    print(json.dumps(str(error)))
else:
    places = range(len(source.keys))
    contents = [digest(source.read(place)) for place in places]
    print(json.dumps([list(source.keys), contents, [source.stamp(place) for place in places]]))
"""


def seen(source: str, address: str, hub: Served) -> Any:
    """The same, of the hub: its library reads where it is as it is imported."""
    tools = str(Path(packing.__file__).parent)
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.address,
        "PYTHONPATH": os.pathsep.join([tools, *filter(None, sys.path)]),
        "HF_TOKEN": "hf_nobody_may_see_this",
    }
    command = [sys.executable, "-c", SEEN, source, address]
    done = subprocess.run(command, env=environment, capture_output=True, check=False, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", few_fast(["parquet_of_datasets", "imagefolder", "tar_shards"]))
def test_a_data_set_is_the_same_on_the_hub(name: str, images: Path, tmp_path: Path) -> None:
    (tmp_path / "packed").mkdir()
    packed = packing.PACKERS[name](images, tmp_path / "packed")
    folder = images if name == "imagefolder" else tmp_path / "packed"
    files = {f"data/{name}": content for name, content in files_in(folder).items()}
    address = f"{HUB}/data/{packed.path.relative_to(folder).as_posix()}".removesuffix("/.")
    with serving(files) as hub:
        keys, contents, stamps = seen(packed.source, address, hub)
        assert (keys, contents) == (list(packed.images), packed.digests())
        assert 0 not in stamps
        # Neither the time nor the commit tells an image from another.
        assert seen(packed.source, f"{HUB}@v2/{address.removeprefix(HUB)[1:]}", hub)[2] == stamps


def test_the_hub_says_who_may_see_a_data_set() -> None:
    with serving({"data/train-0.parquet": b""}) as hub:
        assert "no file hf://datasets/somebody/pictures/date" in seen("parquet", f"{HUB}/date", hub)
        hub.is_closed = True
        said = seen("parquet", f"{HUB}/data", hub)
    assert said.startswith(f"{HUB}/data: ")
    assert "only to those who accept its terms. Accept them on its page" in said
    assert "nobody" not in said


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
        with pytest.raises(SourceError, match=rf"{address}: .*Who you are is found"):
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


def test_any_file_system_that_fsspec_knows_will_do(images: Path) -> None:
    files = fsspec.filesystem("memory")
    for name, content in packing.tree(images).items():
        files.pipe_file(f"/set/{name}", content)
    path = pickle.loads(pickle.dumps(RemotePath("memory://set")))
    source = packing.opened("imagefolder", path)
    assert [source.read(i) for i in range(len(source.keys))] == list(packing.tree(images).values())
    with pytest.raises(SourceError, match=r"nothing is known .* Install the package"):
        packing.opened("zip", RemotePath("nothing://x/y.zip"))
    with pytest.raises(SourceError, match=r"sftp://.*not installed.*paramiko"):
        packing.opened("zip", RemotePath("sftp://host/y.zip"))
    with pytest.raises(SourceError, match=r"'arrow' reads files of this machine"):
        packing.opened("arrow", RemotePath("memory://set"))


@pytest.mark.parametrize(
    "address", ["https://somebody:hidden@host/x.zip", "https://host/x.zip?sig=hidden", "hf://x"]
)
def test_addresses_tell_no_secrets(address: str, tiny: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError, match=r"dataset\.path: ") as error:
        tiny("dataset.source=zip", f"dataset.path={address}")
    assert "hidden" not in str(error.value)


def test_a_build_of_images_in_a_store_gives_the_same_cache(
    images: Path, place: StorePath, tiny: Callable[..., Config], tmp_path: Path
) -> None:
    upload(images, place)
    for name, path in (("local", images), ("remote", f"{place}/images")):
        config = tiny(f"dataset.path={path}", f"cache.path={name}.zarr")
        assert str(config.dataset.path) == str(path)
        assert Config.model_validate_json(config.model_dump_json()) == config
        build(config.encode, torch.device("cpu"))
    local, remote = (files_in(tmp_path / f"{name}.zarr") for name in ("local", "remote"))
    assert local.keys() == remote.keys()

    def told(content: bytes) -> Any:
        document = json.loads(content)
        for name in ("provenance", "build_times"):
            document["attributes"].pop(name, None)
        return document

    for name in local:
        if name.endswith("zarr.json"):
            assert told(local[name]) == told(remote[name])
        elif not name.startswith("rows/stamp/"):
            assert local[name] == remote[name], name
    assert not [name for name, content in remote.items() if b"s3://" in content]
