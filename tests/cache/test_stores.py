"""Places in an object store, on a real one."""

import pickle
from pathlib import Path, PurePosixPath

import pytest

from cache.stores.places import AddressError, StorePath, for_each, is_address, place_of
from cache.stores.requests import StoreError


@pytest.fixture
def folder(bucket: StorePath, request: pytest.FixtureRequest) -> StorePath:
    """An empty one."""
    return bucket / request.node.name.replace("[", "-").replace("]", "")


def test_places_are_called_as_paths() -> None:
    place = StorePath("s3://bucket/some//folder/x.zarr/")
    assert str(place) == "s3://bucket/some/folder/x.zarr"
    assert (place.name, place.stem, place.suffix) == ("x.zarr", "x", ".zarr")
    assert str(place.parent) == "s3://bucket/some/folder"
    assert [str(one) for one in place.parents] == [
        "s3://bucket/some/folder",
        "s3://bucket/some",
        "s3://bucket",
    ]
    assert str(place.with_name(".y")) == "s3://bucket/some/folder/.y"
    assert (place / "a" / "b").relative_to(place) == PurePosixPath("a/b")
    assert pickle.loads(pickle.dumps(place)) == place
    assert str(StorePath("gs://bucket").parent) == "gs://bucket"


@pytest.mark.parametrize("text", ["cache.zarr", "/data/x.zarr", "C:/x", "s3:/x", "ftp://x/y"])
def test_what_is_no_address_is_a_path(text: str) -> None:
    assert not is_address(text)
    assert place_of(text) == Path(text)
    with pytest.raises(AddressError):
        StorePath(text)


def test_an_object_is_written_read_and_removed(folder: StorePath, tmp_path: Path) -> None:
    place = folder / "object"
    assert not place.exists()
    place.put(b"0123456789")
    assert place.read_bytes() == b"0123456789"
    assert bytes(place.read_range(3, 4)) == b"3456"
    before = place.stat()
    (tmp_path / "file").write_bytes(b"other")
    place.put(tmp_path / "file")
    assert place.read_bytes() == b"other"
    assert (before.st_size, place.stat().st_size) == (10, 5)
    assert before.version != place.stat().version
    place.unlink()
    assert not place.is_file()
    place.unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError, match=str(place)):
        place.unlink()


def test_what_is_not_there_is_said_with_its_address(folder: StorePath) -> None:
    for ask in (folder.read_bytes, folder.stat, lambda: folder.read_range(0, 1)):
        with pytest.raises(FileNotFoundError, match=f"there is nothing at {folder}"):
            ask()
    assert list(folder.iterdir()) == []


def test_only_one_makes_an_object_that_has_to_be_new(folder: StorePath) -> None:
    (folder / "lock").put(b"mine", is_new=True)
    with pytest.raises(FileExistsError, match="something at"):
        (folder / "lock").put(b"yours", is_new=True)
    assert (folder / "lock").read_bytes() == b"mine"


def test_folders_are_seen_by_what_lies_in_them(folder: StorePath) -> None:
    for name in ("c.0.0", "c.1.0", "zarr.json", "sub/c.2.0", "sub/deep/x", ".hidden/y"):
        (folder / name).put(b"")
    assert folder.is_dir()
    assert not folder.is_file()
    assert (folder / "sub").exists()
    names = [one.name for one in folder.iterdir()]
    assert names == [".hidden", "c.0.0", "c.1.0", "sub", "zarr.json"]
    assert [one.name for one in folder.glob("c.*.0")] == ["c.0.0", "c.1.0"]
    assert [one.name for one in folder.glob("[!.]*/")] == ["sub"]
    below = sorted(one.relative_to(folder).as_posix() for one in (folder / "sub").tree())
    assert below == ["sub/c.2.0", "sub/deep/x"]
    (folder / "sub").remove_tree()
    assert not (folder / "sub").exists()
    assert (folder / "c.0.0").is_file()


def test_a_name_that_begins_like_another_is_not_in_it(folder: StorePath) -> None:
    (folder / "cache.zarr2" / "x").put(b"")
    assert not (folder / "cache.zarr").is_dir()
    assert list((folder / "cache.zarr").tree()) == []


def test_more_objects_than_a_page_has(folder: StorePath) -> None:
    for_each(lambda number: (folder / f"{number:04}").put(b""), range(1100))
    assert len(list(folder.tree())) == len(list(folder.iterdir())) == 1100
    folder.remove_tree()
    assert not folder.is_dir()


def test_an_object_is_a_file_that_is_read_from_any_place(folder: StorePath) -> None:
    content = bytes(range(256)) * 100_000
    (folder / "large").put(content)
    with (folder / "large").open() as file:
        assert file.read(5) == content[:5]
        assert file.seek(-10, 2) == len(content) - 10
        assert file.read() == content[-10:]
        assert file.seek(9_000_000) == 9_000_000
        assert file.read(300) == content[9_000_000:9_000_300]
        file.seek(0)
        assert file.read() == content


@pytest.mark.usefixtures("bucket")
def test_errors_tell_the_address_and_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "guessed-wrongly")
    with pytest.raises(StoreError, match="s3://others/x: ") as error:
        StorePath("s3://others/x").read_bytes()
    assert "guessed" not in str(error.value)
    reason = "does not match the signature you provided. Check your key and signing method"
    assert error.value.what.endswith(reason)
    assert "\n" not in str(error.value)
