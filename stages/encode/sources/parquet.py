"""Images in parquet files, as Hugging Face keeps ImageNet."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stages.encode.sources.archives import files_of, opened_ahead
from stages.encode.sources.labels import numbered
from stages.encode.sources.names import check_unique, member_name
from stages.encode.sources.source import Labels, Source, SourceError

if TYPE_CHECKING:
    from stages.encode.sources.parquet_files import ParquetFile

SUFFIX = ".parquet"


def parquet_rows(path: Path | None, _resolution: int) -> Source:
    """Parquet files with a column `image`, bytes or a struct of bytes and path, and `label`.

    The path is a file, or a folder or pattern (`data/train-*.parquet`) of files of one split, in
    the order of their names. Keys are the paths in the column if no two are equal, otherwise
    file name and row; classes are called as the metadata of `datasets` say, otherwise by number.
    """
    try:
        from stages.encode.sources.parquet_files import ParquetFile
        from stages.encode.sources.row_groups import RowGroups
    except ModuleNotFoundError as error:
        raise SourceError(
            f"dataset.source: parquet needs {error.name}. Run `pip install 'pyarrow>=17'`."
        ) from error
    archives = files_of(path, SUFFIX)
    files = list(opened_ahead(archives, ParquetFile.of, "files"))
    labels, classes = _labels(files, path)
    groups = RowGroups(files)
    return Source(
        keys=_keys(files, path),
        labels=labels,
        classes=classes,
        read=groups.read,
        stamp=groups.stamp,
        block_rows=groups.block_rows,
    )


def _keys(files: Sequence["ParquetFile"], where: object) -> tuple[str, ...]:
    paths = [path for file in files for path in file.paths or [""] * len(file.labels)]
    if all(paths) and len(set(paths)) == len(paths):
        keys = tuple(member_name(path or "", where) for path in paths)
        check_unique(keys, where)
        return keys
    rows = [(file.archive.path.name, row) for file in files for row in range(len(file.labels))]
    return tuple(f"{name}/{row}" for name, row in rows)


def _labels(files: Sequence["ParquetFile"], where: object) -> tuple[Labels, tuple[str, ...]]:
    numbers = [label for file in files for label in file.labels.tolist()]
    if not numbers:
        raise SourceError(f"{where}: no rows.")
    labels, classes = numbered(numbers, where)
    names = {file.classes for file in files}
    if len(names) > 1:
        raise SourceError(f"{where}: the files call the classes differently: mixed data sets?")
    named = names.pop() or classes
    if len(named) < len(classes):
        raise SourceError(f"{where}: label {len(classes) - 1}, but names for {len(named)} classes.")
    return labels, named
