"""Images in the rows of parquet and Arrow files: their keys, labels and bytes."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, Protocol, TypeVar

import numpy as np
from pydantic import Field

from stages.encode.images.remote.paths import DataPath
from stages.encode.images.sources.archives import Archive, opened_ahead
from stages.encode.images.sources.caption_files import Captions, captions_of
from stages.encode.images.sources.folders import file_stamp
from stages.encode.images.sources.names import (
    MAX_CLASSES,
    UNSAFE,
    check_unique,
    member_name,
    numbered,
    of_one_class,
)
from stages.encode.images.sources.source import (
    FileSettings,
    Labels,
    Places,
    Source,
    SourceError,
    stamp_of,
)
from stages.encode.images.sources.table_files import folder_of, say_unread, table_files

# What `datasets` gives images that have no class.
UNLABELLED = -1

Name = Annotated[str, Field(min_length=1)]


class TableSettings(FileSettings):
    """Of a source that reads files of tables."""

    split: Name | None = None
    """The one to use, where there are files of several."""
    image_column: Name | None = None
    """The name of the column of images, where the usual ones do not tell."""
    label_column: Name | None = None
    """The name of the column of labels, where the usual ones do not tell."""
    caption_column: Name | None = None
    """The name of the column of captions, strings or lists of them, where the usual do not tell."""


class NoImagesError(SourceError):
    """A table has no column of images."""


@dataclass(frozen=True)
class Listing:
    """What a file of R rows tells of its images.

    labels: int64 [R]; classes: names of the labels, if it has them; are_named: whether labels are
    those names and not numbers; paths: [R] names of image files, if it has them; may_lack: bool
    [R]: whether an image may have no bytes here but only that name; captions: [R] of each, if there
    are any.
    """

    archive: Archive
    labels: Places
    classes: tuple[str, ...] | None
    are_named: bool
    paths: tuple[str | None, ...] | None
    may_lack: np.ndarray
    captions: Sequence[Sequence[str]] | None = None

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.labels)

    @classmethod
    def empty(cls, archive: Archive) -> "Listing":
        """Of a file without rows."""
        nothing = np.array([], np.int64)
        return cls(archive, nothing, None, False, None, nothing.astype(np.bool_))


class TableRows:
    """The images in the rows of several files, one after the other.

    content: the bytes in a row of a file, by their numbers, or None; root: the data set's folder.
    """

    def __init__(
        self, files: Sequence[Listing], content: Callable[[int, int], bytes | None], root: DataPath
    ) -> None:
        self._files = files
        self._content = content
        self._root = root
        self._starts = np.cumsum([0, *map(len, files)])

    def read(self, row: int) -> bytes:
        """The content of an image. Raises OSError or ValueError if it cannot be had."""
        number, place = self._place(row)
        content = self._content(number, place)
        if content is None:
            return self._linked(self._files[number], place).read_bytes()
        return content

    def stamp(self, row: int) -> int:
        """A number that changes when the file does, or the image file that it names."""
        number, place = self._place(row)
        file = self._files[number]
        stamp = file.archive.stamp(place)
        if file.may_lack[place]:
            with suppress(OSError, ValueError):
                return stamp_of(stamp, file_stamp(self._linked(file, place)))
        return stamp

    def captions(self, row: int) -> Sequence[str]:
        """The captions of an image."""
        number, place = self._place(row)
        return (self._files[number].captions or {place: ()})[place]

    def _place(self, row: int) -> tuple[int, int]:
        """The number of the file that a row is in, and its number there."""
        file = int(np.searchsorted(self._starts, row, side="right")) - 1
        return file, row - int(self._starts[file])

    def _linked(self, file: Listing, place: int) -> DataPath:
        """The image file that a row names. Raises ValueError if it is none of the data set."""
        path = file.paths[place] if file.paths else None
        where = f"{file.archive.path}, row {place}"
        if not path:
            raise ValueError(f"no bytes in this row ({where})")
        name = _relative(path)
        if name is None or "://" in name:
            raise ValueError(
                f"no bytes in this row ({where}) but the path {path!r}, which is not one inside "
                "the data set and is not followed; write the images themselves into the file, as "
                "`save_to_disk` does"
            )
        beside, below = file.archive.path.parent / name, self._root / name
        if not (beside.is_file() or below.is_file()):
            raise ValueError(f"no bytes in this row ({where}), and no file {beside}")
        return beside if beside.is_file() else below


class Table(Protocol):
    """A file with images in its rows."""

    @property
    def listing(self) -> Listing:
        """What it tells of them."""
        ...


Opened = TypeVar("Opened", bound=Table)


def open_tables(
    dataset: TableSettings, suffix: str, opened: Callable[[Archive, TableSettings], Opened]
) -> list[Opened]:
    """The files of a data set that have images; others are named.

    opened: opens one, and raises NoImagesError. Raises SourceError if there are none.
    """

    def attempt(archive: Archive) -> Opened | NoImagesError:
        try:
            return opened(archive, dataset)
        except NoImagesError as error:
            return error

    path = dataset.place
    archives = table_files(path, suffix, dataset.split)
    tables: list[Opened] = []
    lacking: dict[DataPath, NoImagesError] = {}
    empty: list[DataPath] = []
    is_remote = any(archive.is_remote for archive in archives)
    opening = opened_ahead(archives, attempt, "files", is_remote=is_remote)
    for archive, found in zip(archives, opening, strict=True):
        if isinstance(found, NoImagesError):
            lacking[archive.path] = found
        elif len(found.listing):
            tables.append(found)
        else:
            empty.append(archive.path)
    if not tables:
        raise next(iter(lacking.values()), SourceError(f"{path}: no rows."))
    say_unread(list(lacking), path, "without a column of images")
    say_unread(empty, path, "without rows")
    return tables


def table_source(
    dataset: TableSettings,
    files: Sequence[Listing],
    content: Callable[[int, int], bytes | None],
    block_rows: int = 1,
) -> Source:
    """The data set that files hold. content: as for `TableRows`.

    Keys are the paths in the column if all are relative and no two are equal, otherwise file name
    and row. Raises SourceError for labels that are none.
    """
    path, root = dataset.path, folder_of(dataset.place)
    rows = TableRows(files, content, root)
    if len({file.are_named for file in files}) > 1:
        raise SourceError(f"{path}: labels are numbers in some files and names in others.")
    if dataset.classes:
        labels, classes = (_named_labels if files[0].are_named else _labels)(files, path)
    else:
        labels, classes = of_one_class(sum(map(len, files)), path)
    keys = _keys(files, path)
    captions: Captions = rows.captions
    if dataset.captions is not None:
        captions = captions_of(dataset.captions, keys, lambda name: (root / name).read_bytes())
    return Source(
        keys=keys,
        labels=labels,
        classes=classes,
        read=rows.read,
        stamp=rows.stamp,
        block_rows=block_rows,
        are_keys_places=True,
        captions=captions,
    )


def _relative(path: str) -> str | None:
    """A path with slashes, whatever system wrote it; None if it leads out of the data set."""
    name = path.replace("\\", "/")
    return None if UNSAFE.search(name) else name


def _keys(files: Sequence[Listing], where: object) -> tuple[str, ...]:
    paths = chain.from_iterable(file.paths or [None] * len(file) for file in files)
    names = [_relative(path) if path else None for path in paths]
    if all(names) and len(set(names)) == len(names):
        keys = tuple(member_name(name or "", where) for name in names)
        check_unique(keys, where)
        return keys
    rows = [(file.archive.path.name, row) for file in files for row in range(len(file))]
    return tuple(f"{name}/{row}" for name, row in rows)


def _named_labels(files: Sequence[Listing], where: object) -> tuple[Labels, tuple[str, ...]]:
    """Labels that are names, in the order of these over all files, as of class folders."""
    classes = tuple(sorted(set(chain.from_iterable(file.classes or () for file in files))))
    if len(classes) > MAX_CLASSES:
        raise SourceError(f"{where}: {len(classes)} different labels: are they captions?")
    number = {name: label for label, name in enumerate(classes)}
    parts = [np.array([number[n] for n in file.classes or ()])[file.labels] for file in files]
    return np.concatenate(parts).astype(np.int32), classes


def _labels(files: Sequence[Listing], where: object) -> tuple[Labels, tuple[str, ...]]:
    numbers = np.concatenate([file.labels for file in files])
    if unlabelled := int((numbers == UNLABELLED).sum()):
        raise SourceError(
            f"{where}: {unlabelled} of {len(numbers)} images have label {UNLABELLED}, as those of "
            "published test splits; images without a class cannot be used."
        )
    labels, classes = numbered(numbers.tolist(), where)
    names = {file.classes for file in files} - {None}
    if len(names) > 1:
        raise SourceError(f"{where}: the files call the classes differently: mixed data sets?")
    named = names.pop() if names else classes
    if named is None or len(named) < len(classes):
        raise SourceError(
            f"{where}: label {len(classes) - 1}, but names for {len(named or ())} classes."
        )
    return labels, named


def arrow_rows(dataset: TableSettings) -> Source:
    """Arrow files with a column of images, bytes or structs of bytes and path, and of labels.

    The path is what `save_to_disk` wrote, or a folder of the cache of `datasets`, a file or a
    pattern; the files are those of one split, in the order of their names.
    """
    from stages.encode.images.sources.arrow_files import ArrowFile  # which needs pyarrow

    files = open_tables(dataset, ".arrow", ArrowFile.of)
    return table_source(
        dataset, [file.listing for file in files], lambda file, row: files[file].read(row)
    )


def parquet_rows(dataset: TableSettings) -> Source:
    """Parquet files with a column of images, bytes or structs of bytes and path, and of labels.

    The path is a file, a folder or a pattern (`data/train-*.parquet`); the files are those of one
    split, in the order of their names.
    """
    from stages.encode.images.sources.parquet_files import ParquetFile  # which needs pyarrow
    from stages.encode.images.sources.row_groups import RowGroups

    files = open_tables(dataset, ".parquet", ParquetFile.of)
    groups = RowGroups(files)
    return table_source(dataset, [file.listing for file in files], groups.read, groups.block_rows)
