"""Images in Arrow files, as the library `datasets` caches and saves them."""

from pathlib import Path

from stages.encode.images.sources.source import Source
from stages.encode.images.sources.tables import ANY, Choice, needs, open_tables, table_source


def arrow_rows(path: Path | None, _resolution: int, choice: Choice = ANY) -> Source:
    """Arrow files with a column of images, bytes or structs of bytes and path, and of labels.

    The path is what `save_to_disk` wrote, or a folder of the cache of `datasets`, a file or a
    pattern; the files are those of one split, in the order of their names.
    """
    try:
        from stages.encode.images.sources.arrow_files import ArrowFile
    except ModuleNotFoundError as error:
        raise needs(error, "arrow") from error
    files = open_tables(path, ".arrow", ArrowFile.of, choice)
    return table_source(
        path, [file.listing for file in files], lambda file, row: files[file].read(row)
    )
