"""What `cache.files` does with files and folders, for objects of a store.

Objects are written to a local file first (TMPDIR says where), and appear in one step. A folder is
there once its `zarr.json` is, which comes last and goes first. One that takes the place of another
is written beside it, complete, before an object that says so makes it valid; from then on whoever
prepares the cache next copies it to its place, also if the first one died.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from cache.stores.places import StorePath, for_each

GROUP = "zarr.json"


@contextmanager
def uploaded_file(path: StorePath) -> Iterator[BinaryIO]:
    """A local file to write, which becomes an object on success."""
    with tempfile.NamedTemporaryFile() as stream:
        yield stream  # type: ignore[misc]
        stream.flush()
        path.put(Path(stream.name))


@contextmanager
def uploaded_folder(path: StorePath) -> Iterator[Path]:
    """A local folder to fill, which becomes one of the store on success."""
    with tempfile.TemporaryDirectory() as local:
        folder = Path(local)
        yield folder
        if not (path / GROUP).is_file():
            path.remove_tree()
            _upload(folder, path)
            return
        new = _new(path)
        new.remove_tree()
        _upload(folder, new)
        _is_valid(path).put(b"")
        _take_over(path)


def standing(path: StorePath) -> StorePath:
    """Where the folder at `path` is: beside it while it is being replaced."""
    return _new(path) if _is_valid(path).is_file() else path


def recover(path: StorePath) -> None:
    """Finish replacing the folder at `path`, or forget the one that was not complete."""
    if _is_valid(path).is_file():
        _take_over(path)
    else:
        _new(path).remove_tree()


def remove_folder(path: StorePath) -> None:
    """Remove a folder, which is no group any more from the first moment on."""
    (path / GROUP).unlink(missing_ok=True)
    path.remove_tree()


def _upload(folder: Path, path: StorePath) -> None:
    """Make objects of all files in a local folder, the group's own last."""
    names = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
    for_each(lambda name: (path / name).put(folder / name), [n for n in names if n != GROUP])
    (path / GROUP).put(folder / GROUP)


def _take_over(path: StorePath) -> None:
    """Copy what stands beside a folder to its place, and let go of what was there before."""
    new = _new(path)
    names = {one.relative_to(new).as_posix() for one in new.tree()}
    for_each(lambda name: (new / name).copy_to(path / name), sorted(names))
    former = [one for one in path.tree() if one.relative_to(path).as_posix() not in names]
    for_each(lambda one: one.unlink(missing_ok=True), former)
    _is_valid(path).unlink(missing_ok=True)
    new.remove_tree()


def _new(path: StorePath) -> StorePath:
    return path.with_name(f".{path.name}.new")


def _is_valid(path: StorePath) -> StorePath:
    """The object whose presence makes the new folder valid."""
    return path.with_name(f".{path.name}.new-is-valid")
