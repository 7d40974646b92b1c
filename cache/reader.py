"""Reading rows of the finished columns of a cache."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from cache import ledger
from cache.arrays import CheckedRows, RowReader, open_rows
from cache.errors import (
    CacheReplacedError,
    DamagedCacheError,
    IncompleteCacheError,
    StaleCacheError,
)
from cache.files import of_one_version
from cache.layout import VALID, ArraySpec, Column
from cache.metadata import (
    column_names,
    has_column,
    read_column,
    root_attributes,
    source_changes,
)
from cache.rows import RowTable, count_rows, read_rows
from cache.shard_files import Buffer
from cache.storage import STORAGES, row_checksums
from cache.stores.kept_rows import BY_RANGES, ArrayIdentity, StoreReading
from cache.stores.places import Place, for_each

Floats = npt.NDArray[np.float32]


class Cache:
    """A cache opened for reading.

    reading: of arrays in a store. What is read of it belongs to its rows, also while a build adds
    more.
    """

    def __init__(self, path: Place, reading: StoreReading = BY_RANGES) -> None:
        root_attributes(path)
        self.path, self._reading = path, reading
        self.rows: RowTable = read_rows(path)

    def column(self, name: str, *, verify: bool = False) -> "ColumnReader":
        """A reader for a column, for example `features/dinov2-vit-b`.

        verify: compare every row that is read with its checksum. Raises IncompleteCacheError if
        the column is missing or not finished, CacheReplacedError if it is for other rows,
        StaleCacheError if it was made of a column that is another now.
        """
        return of_one_version(lambda: self._open(name, verify=verify), self.path / name)

    def states(self) -> dict[str, str]:
        """How each column is stored and how far it is, in words, finished or not."""
        return {name: self._state(name) for name in column_names(self.path)}

    def _state(self, name: str) -> str:
        try:
            column = read_column(self.path, name, len(self.rows))
        except DamagedCacheError:
            return "damaged"
        finished = column.shards - len(ledger.missing(column, self.rows))
        shards = f"{finished:,} of {column.shards:,} shards"
        is_complete = finished == column.shards
        return f"{column.recipe.get('storage')}, {'complete' if is_complete else shards}"

    def _open(self, name: str, *, verify: bool) -> "ColumnReader":
        if not has_column(self.path, name):
            raise IncompleteCacheError(
                f"it has no column {name}",
                where=self.path,
                remedy="Run `repa-cache build` to add it.",
            )
        column = read_column(self.path, name, len(self.rows))
        if source_changes(column):
            raise StaleCacheError(
                f"it was made of {column.recipe['source']} as that was once",
                where=column.folder,
                remedy=f"Run `repa-cache build --rebuild {column.folder.name}` to make it anew.",
            )
        recorded = ledger.Recorded.of(column)
        missing = recorded.missing(self.rows)
        if missing and not self._are_outgrown(column, missing):
            raise IncompleteCacheError(
                f"{len(missing)} of {column.shards} shards are missing",
                where=f"{self.path}/{name}",
                remedy="Run `repa-cache build` to finish it.",
            )
        return ColumnReader(column, recorded, verify=verify, reading=self._reading)

    def _are_outgrown(self, column: Column, shards: Sequence[int]) -> bool:
        """Whether shards have more rows than they would need, as images were added meanwhile."""
        rows = read_rows(self.path)
        if rows.looks_like(self.rows):
            return False
        if not rows.begins_with(self.rows):
            raise CacheReplacedError("images or labels changed while it was read", where=self.path)
        grown = replace(column, rows=len(rows))
        return all(
            ledger.finished_rows(grown, rows, shard) >= len(column.shard_rows(shard))
            for shard in shards
        )


class ColumnReader:
    """Reads any rows of any array of one column.

    recorded: its ledger; verify: compare every row that is read with its checksum; reading: of
    one in a store.
    """

    def __init__(
        self,
        column: Column,
        recorded: ledger.Recorded | None = None,
        *,
        verify: bool = False,
        reading: StoreReading = BY_RANGES,
    ) -> None:
        self.column = column
        if recorded is None or not (verify or reading.local):
            self._arrays = {a.name: _open_array(column, a, reading) for a in column.arrays}
            return
        checksums = np.empty((column.rows, len(column.arrays)), np.uint32)
        _open_array(column, column.crc32c, reading).read(np.arange(column.rows), checksums)
        self._arrays = {}
        for position, array in enumerate(column.arrays):
            own, where = checksums[:, position].copy(), f"{column.folder}/{array.name}"
            identity = ArrayIdentity(recorded.names(array), own)
            rows = _open_array(column, array, reading, identity)
            checked = CheckedRows(rows, own, where, recorded.is_outdated)
            self._arrays[array.name] = checked if verify else rows

    @cached_property
    def valid(self) -> npt.NDArray[np.bool_]:
        """Which rows, [N], hold tensors: all but those whose image could not be decoded."""
        return self.read(VALID.name, np.arange(self.column.rows)).astype(np.bool_)

    @property
    def has_class_token(self) -> bool:
        """Whether an encoder's column has a vector for the whole image, beside its tokens."""
        return any(array.name == "class_token" for array in self.column.arrays)

    def rows(self, name: str) -> RowReader:
        return self._arrays[name]

    def read(self, name: str, rows: npt.ArrayLike, out: Buffer | None = None) -> Buffer:
        """Rows [B], in any order and repeated at will, of an array as [B, *row_shape].

        out: a C-contiguous buffer of that shape and the array's dtype; made if not given.
        """
        array = self.column.array(name)
        wanted = np.asarray(rows, dtype=np.int64).reshape(-1)
        if wanted.size and not 0 <= wanted.min() <= wanted.max() < self.column.rows:
            raise IndexError(f"{self.column.name}: rows lie in 0 to {self.column.rows - 1}")
        shape = (len(wanted), *array.row_shape)
        if out is None:
            out = np.empty(shape, array.dtype)
        if out.shape != shape or out.dtype != array.dtype or not out.flags.c_contiguous:
            raise ValueError(
                f"{self.column.name}/{name}: expected a contiguous buffer of {array.dtype} "
                f"{shape}, got {out.dtype} {out.shape}"
            )
        self._arrays[name].read(wanted, out)
        return out

    def values(self, name: str, rows: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Rows [B] of the column's main array as numbers, however they are stored."""
        arrays = {array.name: self.read(array.name, rows) for array in self.column.arrays}
        return _decoded(self.column, name, arrays)

    def vectors(self, rows: npt.ArrayLike, *, pooled: bool = False) -> npt.NDArray[np.float32]:
        """One vector of an encoder's column for each of rows [B], as [B, D].

        The class token where the encoder has one, else, or if `pooled`, the mean of the tokens.
        """
        if self.has_class_token and not pooled:
            return self.read("class_token", rows).astype(np.float32)
        means: npt.NDArray[np.float32] = self.values("tokens", rows).mean(axis=1)
        return means


class PartialReader:
    """Reads the finished shards of a column that may lack others, and compares every checksum."""

    def __init__(self, column: Column) -> None:
        self.column = column
        specs = (*column.arrays, column.crc32c)
        self._arrays = [
            (spec, _open_array(column, spec, BY_RANGES, is_whole=False)) for spec in specs
        ]

    def read(self, rows: npt.NDArray[np.int64]) -> dict[str, Buffer]:
        """Rows [B] of all arrays. Raises DamagedCacheError if they are not what was written."""
        arrays = {}
        for spec, reader in self._arrays:
            arrays[spec.name] = np.empty((len(rows), *spec.row_shape), spec.dtype)
            reader.read(rows, arrays[spec.name])
        checksums = arrays.pop(self.column.crc32c.name)
        for position, (name, values) in enumerate(arrays.items()):
            if (row_checksums(values) != checksums[:, position]).any():
                raise DamagedCacheError(
                    "rows do not have their checksums", where=f"{self.column.folder}/{name}"
                )
        return arrays

    def values(self, name: str, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Rows [B] of the column's main array as numbers, however they are stored."""
        return self.decoded(name, self.read(rows))

    def decoded(self, name: str, arrays: Mapping[str, Buffer]) -> npt.NDArray[np.float32]:
        """The same of what was read of all arrays."""
        return _decoded(self.column, name, arrays)


def _decoded(column: Column, name: str, arrays: Mapping[str, Buffer]) -> npt.NDArray[np.float32]:
    """The main array of a column as numbers, from all arrays of some rows."""
    storage = STORAGES[str(column.recipe["storage"])]
    values: npt.NDArray[np.float32] = storage.decode(name, arrays, column.constants)
    return values


def invalid_rows(column: Column, missing: Sequence[int]) -> list[int]:
    """The rows of all but the missing shards whose image could not be decoded."""
    shards = sorted(set(range(column.shards)).difference(missing))
    flags = for_each(lambda shard: column.shard_path(VALID, shard).read_bytes(), shards)
    found: list[int] = []
    for shard, content in zip(shards, flags, strict=True):
        span = column.shard_rows(shard)
        valid = np.frombuffer(content, np.uint8, len(span))
        found += (span.start + np.flatnonzero(valid == 0)).tolist()
    return found


def _open_array(
    column: Column,
    spec: ArraySpec,
    reading: StoreReading,
    identity: ArrayIdentity | None = None,
    *,
    is_whole: bool = True,
) -> RowReader:
    """A reader for an array that is what its column says of it.

    is_whole: whether it has all rows already, or may be from before images were added.
    """
    path = column.folder / spec.name
    try:
        rows = open_rows(path, reading=reading, identity=identity)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedCacheError(f"its zarr.json cannot be read ({error})", where=path) from error
    is_as_written = rows.shape[1:] == spec.row_shape and rows.dtype == spec.dtype
    if not is_as_written or not _has_length(column, rows.shape[0], is_whole=is_whole):
        raise DamagedCacheError(
            f"its zarr.json was edited: expected {spec.dtype} {(column.rows, *spec.row_shape)}, "
            f"got {rows.dtype} {rows.shape}",
            where=path,
        )
    return rows


def _has_length(column: Column, rows: int, *, is_whole: bool) -> bool:
    """Whether an array can have so many rows: those of its column, or more that were added."""
    if rows <= column.rows:
        return rows == column.rows or not is_whole
    return rows <= count_rows(column.cache)
