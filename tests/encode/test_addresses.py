"""Data sets at addresses: the same as on the disk, read in ranges, on real servers."""

import json
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

from cache.stores import requests as object_requests
from cache.stores.places import StorePath
from pipeline.config import Config, ConfigError
from stages.encode.build import build
from stages.encode.images.remote.paths import RemotePath
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


def test_who_may_not_see_a_bucket_is_told_so(
    place: StorePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another-secret")
    object_requests._opened.cache_clear()
    try:
        for source in ("imagefolder", "zip"):
            with pytest.raises(SourceError, match=rf"^{place}: .*Who you are is told") as error:
                packing.opened(source, RemotePath(str(place)))
            assert "secret" not in str(error.value)
    finally:
        object_requests._opened.cache_clear()


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


def test_files_are_named_by_their_numbers_where_nothing_lists_them(
    images: Path, tmp_path: Path
) -> None:
    (tmp_path / "packed").mkdir()
    packed = packing.tar_shards(images, tmp_path / "packed")
    shards = sorted((tmp_path / "packed").rglob("*.tar"))
    files = {f"some/x-{i:03d}.tar": file.read_bytes() for i, file in enumerate(shards)}
    with serving(files) as server:
        last = len(shards) - 1
        path = RemotePath(f"{server.address}/some/x-{{000..{last:03d}}}.tar")
        source = packing.opened(packed.source, path)
        contents = [source.read(place) for place in range(len(source.keys))]
        assert contents == list(packed.images.values())
        with pytest.raises(SourceError, match=rf"some/x-00{len(shards)}\.tar: there is no such"):
            packing.opened("tar", RemotePath(f"{server.address}/some/x-{{000..{len(shards)}}}.tar"))


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
