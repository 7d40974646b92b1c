"""What is in an Arrow file: record batches, labels and names; and single images of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from stages.encode.images.sources.archives import Archive
from stages.encode.images.sources.source import Places, SourceError
from stages.encode.images.sources.table_columns import (
    Columns,
    content_of,
    find_columns,
    listing,
    listing_of,
    part_of,
)
from stages.encode.images.sources.tables import Listing, TableSettings

# How a file with an index of its batches begins and ends; others are streams.
MAGIC = b"ARROW1"
# How a stream ends that was written to its end.
END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


@dataclass(frozen=True)
class ArrowFile:
    """A file of R rows in B record batches, which stays on the disk and is mapped for reading.

    columns: None if there are no batches; places: int64 [B], the byte of a stream where each
    begins, or its number in a file with an index; starts: int64 [B + 1], its first row, and R.
    """

    listing: Listing
    columns: Columns | None
    schema: pa.Schema
    places: Places
    starts: Places

    @classmethod
    def of(cls, archive: Archive, dataset: TableSettings) -> "ArrowFile":
        """Everything but the images. Raises SourceError, NoImagesError if there are none."""
        with listing_of(archive, "Arrow"):
            _check_end(archive)
            with _mapped(archive) as file:
                return cls._of(file, archive, dataset)

    @classmethod
    def _of(
        cls, file: pa.MemoryMappedFile, archive: Archive, dataset: TableSettings
    ) -> "ArrowFile":
        memory, places = _memory(file), np.array(list(_places(file)), np.int64)
        reader = pa.ipc.open_file(file) if _is_indexed(file) else pa.ipc.open_stream(file)
        schema = reader.schema
        if not len(places):
            return cls(Listing.empty(archive), None, schema, places, places)
        columns = find_columns(schema, dataset, archive.path)
        batches = []
        for batch in map(reader.get_batch, places) if _is_indexed(file) else reader:
            _check_stored_plainly(batch[columns.image], memory, archive)
            batches.append(batch.select([columns.image, *columns.told]))
        table = pa.Table.from_batches(batches)
        images = table[columns.image]
        # What is mapped is as it lies on the disk, and may point anywhere.
        for name in columns.told:
            table[name].validate(full=True)
        paths, may_lack = None, np.zeros(len(images), np.bool_)
        if columns.has_path:
            paths = part_of(images, "path")
            paths.validate(full=True)
            lacks = part_of(images, "bytes").is_null() if columns.has_content else paths.is_valid()
            may_lack = lacks.to_numpy()
        return cls(
            listing=listing(archive, schema, columns, table, paths, may_lack),
            columns=columns,
            schema=schema,
            places=places,
            starts=np.cumsum([0, *(batch.num_rows for batch in batches)]),
        )

    def read(self, row: int) -> bytes | None:
        """The bytes of an image, if it has any. Raises OSError if they cannot be had."""
        if self.columns is None or not self.columns.has_content:
            return None
        number = int(np.searchsorted(self.starts, row, side="right")) - 1
        place = row - int(self.starts[number])
        archive = self.listing.archive
        try:
            with _mapped(archive) as file:
                batch = _batch(file, int(self.places[number]), self.schema)
                image = part_of(batch[self.columns.image], "bytes")[place : place + 1]
                image.validate(full=True)
                return content_of(image[0])
        except (pa.ArrowException, OSError, EOFError, IndexError) as error:
            raise OSError(f"{archive.path}: record batch {number} is damaged: {error}") from error


@contextmanager
def _mapped(archive: Archive) -> Iterator[pa.MemoryMappedFile]:
    """The file. Raises SourceError if it is another than was listed."""
    with archive.opened(), pa.memory_map(str(archive.path)) as file:
        yield file


def _check_end(archive: Archive) -> None:
    """Raise OSError or ValueError if the file does not end as it should.

    Arrow takes a stream that was cut off between two batches for a whole one.
    """
    with archive.opened() as read:
        begin = read(0, len(MAGIC))
        end = read(archive.size - len(END_OF_STREAM), len(END_OF_STREAM))
    if not (end.endswith(MAGIC) if begin == MAGIC else end == END_OF_STREAM):
        raise ValueError("it does not end as one")


def _is_indexed(file: pa.MemoryMappedFile) -> bool:
    return bool(file.read_at(len(MAGIC), 0) == MAGIC)


def _places(file: pa.MemoryMappedFile) -> Iterator[int]:
    """Where the record batches are."""
    if _is_indexed(file):
        yield from range(pa.ipc.open_file(file).num_record_batches)
        return
    messages = pa.ipc.MessageReader.open_stream(file)
    place = file.tell()
    for message in messages:
        if message.type == "record batch":
            yield place
        place = file.tell()
    file.seek(0)


def _batch(file: pa.MemoryMappedFile, place: int, schema: pa.Schema) -> pa.RecordBatch:
    """A record batch; one of a stream has numbers in place of what is in a dictionary."""
    if _is_indexed(file):
        return pa.ipc.open_file(file).get_batch(place)
    file.seek(place)
    return pa.ipc.read_record_batch(pa.ipc.read_message(file), pa.schema(map(_stored, schema)))


def _stored(field: pa.Field) -> pa.Field:
    if pa.types.is_dictionary(field.type):
        return field.with_type(field.type.index_type)
    if pa.types.is_struct(field.type):
        return field.with_type(pa.struct([_stored(part) for part in field.type]))
    return field


def _memory(file: pa.MemoryMappedFile) -> range:
    """Where the file lies in memory."""
    begin = file.read_buffer(1).address
    file.seek(0)
    return range(begin, begin + file.size())


def _check_stored_plainly(images: pa.Array, memory: range, archive: Archive) -> None:
    """Raise SourceError for images that Arrow could not give as they lie in the file."""
    if any(buffer and buffer.size and buffer.address not in memory for buffer in images.buffers()):
        raise SourceError(
            "its record batches are compressed, so that no image can be read alone",
            where=archive.path,
            remedy="Write it again without compression, as `save_to_disk` does, or as parquet.",
        )
