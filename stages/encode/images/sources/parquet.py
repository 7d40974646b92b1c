"""Images in parquet files, as Hugging Face keeps ImageNet."""

from pathlib import Path

from stages.encode.images.sources.source import Source
from stages.encode.images.sources.tables import ANY, Choice, needs, open_tables, table_source


def parquet_rows(path: Path | None, _resolution: int, choice: Choice = ANY) -> Source:
    """Parquet files with a column of images, bytes or structs of bytes and path, and of labels.

    The path is a file, a folder or a pattern (`data/train-*.parquet`); the files are those of one
    split, in the order of their names.
    """
    try:
        from stages.encode.images.sources.parquet_files import ParquetFile
        from stages.encode.images.sources.row_groups import RowGroups
    except ModuleNotFoundError as error:
        raise needs(error, "parquet") from error
    files = open_tables(path, ".parquet", ParquetFile.of, choice)
    groups = RowGroups(files)
    return table_source(path, [file.listing for file in files], groups.read, groups.block_rows)
