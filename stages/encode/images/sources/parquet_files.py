"""What is in a parquet file: row groups, labels and names; and the images of a row group."""

import struct
from collections.abc import Generator, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.encode.images.sources.archives import Archive
from stages.encode.images.sources.source import SourceError
from stages.encode.images.sources.table_columns import (
    Columns,
    find_columns,
    listing,
    listing_of,
    part_of,
)
from stages.encode.images.sources.tables import Listing, TableSettings

# What is decoded at a time of a row group. Those of `datasets` have 100 images, 11 MB of ImageNet;
# other programs write a whole file as one.
PART_BYTES = 16 << 20
# What claims to be no larger than that, and is by far, is a mistake or an attack.
MAX_PART_BYTES = 1 << 30
# Rows decoded at a time, so that a part that is larger than it claims is noticed early.
BATCH_ROWS = 16
# Without a buffer, Arrow reads all bytes of a row group at once.
BUFFER_BYTES = 1 << 20
# A remote file would be waited for at every one of these; parts of it come at once.
REMOTE_BUFFER_BYTES = 16 << 20

# How a file ends: after the footer come its length and four letters.
FOOTER_END, MAGIC = struct.Struct("<I4s"), b"PAR1"
# Under which the types of Arrow are in the footer.
ARROW_TYPES = b"ARROW:schema"


@dataclass(frozen=True)
class ParquetFile:
    """A file of R rows in G row groups.

    metadata: but for Arrow's types; column: where the bytes of the images are, if the file has
    them; groups: [G] rows of each; parts: [G] how many rows of each are decoded at a time.
    """

    listing: Listing
    metadata: pq.FileMetaData
    column: str | None
    groups: tuple[int, ...]
    parts: tuple[int, ...]

    @classmethod
    def of(cls, archive: Archive, dataset: TableSettings) -> "ParquetFile":
        """Everything but the images. Raises SourceError, NoImagesError if there are none."""
        with (
            listing_of(archive, "parquet"),
            pq.ParquetFile(archive.for_library(), metadata=_metadata(archive)) as file,
        ):
            return cls._of(file, archive, dataset)

    @classmethod
    def _of(cls, file: pq.ParquetFile, archive: Archive, dataset: TableSettings) -> "ParquetFile":
        if not file.metadata.num_rows:
            return cls(Listing.empty(archive), file.metadata, None, (), ())
        columns = find_columns(file.schema_arrow, dataset, archive.path)
        content, path = _leaves(file.schema_arrow, columns)
        groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
        _check_whole(groups, archive)
        rows = tuple(group.num_rows for group in groups)
        chunks = [_chunk(group, content) for group in groups]
        wanted = [*columns.told, *([path] if path else [])]
        table = file.read(wanted, use_threads=False)
        if wanted and table.num_rows != sum(rows):
            raise SourceError(f"{archive.path}: {sum(rows)} rows, but {table.num_rows} labels.")
        paths = part_of(table[columns.image], "path") if path else None
        may_lack = np.repeat([path is not None and _may_lack(chunk) for chunk in chunks], rows)
        found = listing(archive, file.schema_arrow, columns, table, paths, may_lack)
        return cls(found, file.metadata, content, rows, tuple(map(_part_rows, rows, chunks)))

    def images(self, group: int) -> Generator[pa.ChunkedArray]:
        """The images of a row group from its beginning, a part at a time.

        Raises OSError if it is damaged, SourceError if the file is another than was listed.
        """
        archive, rows, part_rows = self.listing.archive, self.groups[group], self.parts[group]
        try:
            with (
                archive.opened(),
                pq.ParquetFile(
                    archive.for_library(),
                    metadata=self.metadata,
                    pre_buffer=False,
                    buffer_size=REMOTE_BUFFER_BYTES if archive.is_remote else BUFFER_BYTES,
                    page_checksum_verification=True,
                ) as file,
            ):
                # Arrow's own threads do not survive a fork.
                batches = file.iter_batches(
                    min(BATCH_ROWS, part_rows), [group], [self.column], use_threads=False
                )
                for start in range(0, rows, part_rows):
                    yield _joined(batches, min(part_rows, rows - start))
        except (pa.ArrowException, OSError) as error:
            raise OSError(f"{archive.path}: row group {group} is damaged: {error}") from error


def _metadata(archive: Archive) -> pq.FileMetaData:
    """What a file tells of itself, but for the types that its columns had in Arrow.

    Arrow cannot read all of them where they are nested (views, dictionaries), and needs none to
    read what lies in the file. Raises OSError or ValueError.
    """
    with archive.opened() as read:
        end = read(archive.size - FOOTER_END.size, FOOTER_END.size)
        length, magic = FOOTER_END.unpack(end)
        if magic != MAGIC:
            raise ValueError("it does not end as one")
        footer = read(archive.size - FOOTER_END.size - length, length)
    footer = footer.replace(ARROW_TYPES, bytes(len(ARROW_TYPES)))
    return pq.read_metadata(pa.BufferReader(MAGIC + footer + end))


def _joined(batches: Iterator[pa.RecordBatch], rows: int) -> pa.ChunkedArray:
    """The images in the next rows."""
    images: list[pa.Array] = []
    size = count = 0
    while count < rows:
        batch = next(batches, None)
        if batch is None:
            break
        images.append(batch.column(0))
        size, count = size + batch.nbytes, count + batch.num_rows
        if size > MAX_PART_BYTES:
            raise OSError("larger than it claims")
    if count != rows:
        raise OSError(f"{count} rows where {rows} should be")
    return part_of(pa.chunked_array(images), "bytes")


def _leaves(schema: pa.Schema, columns: Columns) -> tuple[str | None, str | None]:
    """Where the bytes and the paths of images are."""
    image = columns.image
    nested = "." if pa.types.is_struct(schema.field(image).type) else ""
    content, path = (f"{image}.bytes", f"{image}.path") if nested else (image, image)
    return content if columns.has_content else None, path if columns.has_path else None


def _check_whole(groups: list[pq.RowGroupMetaData], archive: Archive) -> None:
    """Raise SourceError if there is not all that the footer tells of."""
    for number, group in enumerate(groups):
        for i in range(group.num_columns):
            column = group.column(i)
            start = column.dictionary_page_offset or column.data_page_offset
            if start + column.total_compressed_size > archive.size:
                raise SourceError(
                    f"{archive.path} is cut off: row group {number} ends at byte "
                    f"{start + column.total_compressed_size}, the file at {archive.size}."
                )


def _chunk(group: pq.RowGroupMetaData, name: str | None) -> pq.ColumnChunkMetaData | None:
    """A column of a row group; that of the elements, where it holds lists."""
    columns = (group.column(i) for i in range(group.num_columns))
    return next((c for c in columns if f"{c.path_in_schema}.".startswith(f"{name}.")), None)


def _may_lack(chunk: pq.ColumnChunkMetaData | None) -> bool:
    """Whether some images may have no bytes."""
    statistics = chunk and chunk.statistics
    return not statistics or not statistics.has_null_count or statistics.null_count > 0


def _part_rows(rows: int, chunk: pq.ColumnChunkMetaData | None) -> int:
    size = chunk.total_uncompressed_size if chunk else 0
    if size <= PART_BYTES:
        return max(rows, 1)
    fitting = max(rows * PART_BYTES // size, 1)
    return fitting - fitting % BATCH_ROWS if fitting > BATCH_ROWS else fitting
