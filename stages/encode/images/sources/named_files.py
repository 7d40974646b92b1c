"""Named files of a data set, in a folder or in one HDF5 file: images, listings and arrays."""

import json
import os
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from tokenize import TokenError
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from stages.encode.images.sources.folders import file_stamp, files_below, on_disk
from stages.encode.images.sources.names import DATASET_JSON, MAX_JSON_BYTES, parse_labels
from stages.encode.images.sources.source import LeftOut, SourceError, is_image, stamp_of
from stages.packages import is_installed, needs

ARRAY = ".npy"


class NamedFiles(Protocol):
    """path: where they lie; names: of images, arrays and the listing of labels."""

    path: Path

    @property
    def names(self) -> Sequence[str]: ...

    def read(self, name: str) -> bytes: ...

    def array(self, name: str) -> object: ...

    def stamp(self, name: str) -> int:
        """As `Source.stamp`."""
        ...


class FolderFiles:
    """Those in a folder, and in folders below it. left_out: is given what is none of them."""

    def __init__(self, path: Path, left_out: LeftOut) -> None:
        self.path = path
        self._left_out = left_out

    @cached_property
    def names(self) -> Sequence[str]:
        return files_below(self.path, _is_wanted, self._left_out)

    def read(self, name: str) -> bytes:
        return on_disk(self.path, name).read_bytes()

    def array(self, name: str) -> object:
        return stored_array(self.path / name)

    def stamp(self, name: str) -> int:
        return file_stamp(on_disk(self.path, name))


class Hdf5Files:
    """Those in an HDF5 file, each a data set in groups that are called like folders.

    The names lie beside it, as NAME_h5.json beside NAME.h5. Raises SourceError.
    """

    def __init__(self, path: Path) -> None:
        if not is_installed("h5py"):
            raise SourceError(f"{path} {needs('h5py')}")
        self.path = path

    @cached_property
    def names(self) -> Sequence[str]:
        listing = self.path.with_name(f"{self.path.stem}_h5.json")
        try:
            names = json.loads(listing.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise SourceError(f"{listing}: no list of the names in {self.path}: {error}.") from None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise SourceError(f"{listing}: expected a list of names.")
        return [name for name in names if _is_wanted(name)]

    def read(self, name: str) -> bytes:
        return np.asarray(self._stored(name)[()]).tobytes()

    def array(self, name: str) -> object:
        stored = self._stored(name)
        # Its header may claim more than there is.
        if stored.nbytes > self.path.stat().st_size:
            raise SourceError(f"{self.path}: {name} claims {stored.nbytes} bytes.")
        return stored[()]

    def stamp(self, name: str) -> int:
        return stamp_of(file_stamp(self.path), len(name))

    def _stored(self, name: str) -> Any:
        import h5py

        try:
            stored = _opened(self.path, file_stamp(self.path), os.getpid())[name]
        except OSError as error:
            raise SourceError(f"{self.path}: {error}.") from error
        except KeyError:
            stored = None
        if not isinstance(stored, h5py.Dataset):
            raise SourceError(f"{self.path}: {name} is not there, but its list has it.")
        return stored


@lru_cache
def _opened(path: Path, _stamp: int, _process: int) -> Any:
    """An HDF5 file, which cannot be sent to another process, and is of no use to one."""
    import h5py

    return h5py.File(path, "r")


def find_files(folder: Path, name: str, left_out: LeftOut) -> NamedFiles | None:
    """The folder of that name in another one, or the HDF5 file; None if there is neither."""
    if (folder / name).is_dir():
        return FolderFiles(folder / name, left_out)
    path = folder / f"{name}.h5"
    return Hdf5Files(path) if path.is_file() else None


def labels_in(files: NamedFiles) -> dict[str, int] | None:
    """The label of each file, by the listing among them, if there is one."""
    if DATASET_JSON not in files.names:
        return None
    return parse_labels(files.read(DATASET_JSON), files.path / DATASET_JSON)


def labels_of(listing: Path) -> dict[str, int]:
    """The label of each file, by a listing."""
    with listing.open("rb") as file:
        return parse_labels(file.read(MAX_JSON_BYTES + 1), listing)


def stored_array(path: Path) -> object:
    """What an array's file holds. Raises SourceError."""
    try:
        # Mapped, because a header may claim more than there is.
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError, TokenError) as error:
        raise SourceError(f"{path} is missing or no array: {error}.") from error


def checked_array(stored: object, axes: int, where: object) -> npt.NDArray[np.float32]:
    """An array of so many axes, in float32. Raises SourceError if it is none of finite numbers."""
    if not isinstance(stored, np.ndarray) or stored.dtype.name not in {"float16", "float32"}:
        raise SourceError(f"{where}: expected an array of float32, got {stored}.")
    array: npt.NDArray[Any] = stored
    if array.ndim == axes + 1 and len(array) == 1:
        array = array[0]
    if array.ndim != axes:
        raise SourceError(f"{where}: expected {axes} axes, got {list(array.shape)}.")
    values: npt.NDArray[np.float32] = array.astype(np.float32)
    if not np.isfinite(values).all():
        raise SourceError(f"{where}: expected finite numbers.")
    return values


def _is_wanted(name: str) -> bool:
    return is_image(name) or name.endswith(ARRAY) or name == DATASET_JSON
