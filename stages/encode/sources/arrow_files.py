"""What is in an Arrow file: record batches, labels and names; and single images of it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from stages.encode.sources.archives import Archive
from stages.encode.sources.source import SourceError
from stages.encode.sources.table_columns import (
    Columns,
    content_of,
    find_columns,
    listing,
    part_of,
)
from stages.encode.sources.tables import Choice, Listing

# How a file for random access begins and ends; what is between the padding and the footer is a
# stream.
MAGIC, STREAM_PLACE = b"ARROW1", 8
# How a stream ends that was written to its end.
END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


@dataclass(frozen=True)
class ArrowFile:
    """A file of R rows in B record batches, which stays on the disk and is mapped for reading.

    columns: None if nothing is in the file; schema: of the batches as they are stored; places:
    int64 [B], the byte where each begins; starts: int64 [B + 1], its first row, and R.
    """

    listing: Listing
    columns: Columns | None
    schema: pa.Schema
    places: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]

    @classmethod
    def of(cls, archive: Archive, choice: Choice) -> "ArrowFile":
        """Everything but the images. Raises SourceError, NoImagesError if there are none."""
        try:
            _check_end(archive)
            with _mapped(archive) as file:
                places = list(_places(file))
            if not places:
                return cls(Listing.empty(archive), None, pa.schema([]), np.array([]), np.array([]))
            return cls._of(archive, choice, places)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise SourceError(
                f"{archive.path} is no Arrow file, or is cut off or damaged: {error}."
            ) from error

    @classmethod
    def _of(cls, archive: Archive, choice: Choice, places: list[int]) -> "ArrowFile":
        with _mapped(archive) as file:
            here = file.read_buffer(1).address
            mapped = range(here - archive.size, here + archive.size)
            file.seek(-1, os.SEEK_CUR)
            with pa.ipc.open_stream(file) as stream:
                schema = stream.schema
                columns = find_columns(schema, choice, archive.path)
                batches = [_checked(batch, columns.image, mapped, archive) for batch in stream]
        table = pa.Table.from_batches(batches, schema)
        images, labels = table[columns.image], table[columns.label]
        labels.validate(full=True)
        paths = part_of(images, "path") if columns.has_path else None
        may_lack = np.full(len(images), columns.has_path)
        if paths is not None:
            paths.validate(full=True)
            if columns.has_content:
                may_lack = part_of(images, "bytes").is_null().to_numpy()
        return cls(
            listing=listing(archive, schema, columns.label, labels, paths, may_lack),
            columns=columns,
            schema=pa.schema([_stored(field) for field in schema]),
            places=np.array(places, np.int64),
            starts=np.cumsum([0, *(batch.num_rows for batch in batches)]),
        )

    def read(self, row: int) -> bytes | None:
        """The bytes of an image, if it has any. Raises OSError if they cannot be had."""
        if self.columns is None or not self.columns.has_content:
            return None
        batch = int(np.searchsorted(self.starts, row, side="right")) - 1
        place = row - int(self.starts[batch])
        archive = self.listing.archive
        try:
            with _mapped(archive) as file:
                file.seek(int(self.places[batch]))
                stored = pa.ipc.read_record_batch(pa.ipc.read_message(file), self.schema)
                image = part_of(stored[self.columns.image], "bytes")[place : place + 1]
                # What is mapped is as it lies on the disk, and may point anywhere.
                image.validate(full=True)
                return content_of(image[0])
        except (pa.ArrowException, OSError, EOFError) as error:
            raise OSError(f"{archive.path}: record batch {batch} is damaged: {error}") from error


@contextmanager
def _mapped(archive: Archive) -> Iterator[pa.MemoryMappedFile]:
    """The file where its stream begins. Raises SourceError if it is another than was listed."""
    with archive.opened() as read, pa.memory_map(str(archive.path)) as file:
        file.seek(STREAM_PLACE if read(0, len(MAGIC)) == MAGIC else 0)
        yield file


def _check_end(archive: Archive) -> None:
    """Raise OSError or ValueError if the file does not end as it should.

    Arrow takes a stream that was cut off between two batches for a whole one.
    """
    with archive.opened() as read:
        begin = read(0, len(MAGIC))
        end = read(archive.size - len(END_OF_STREAM), len(END_OF_STREAM))
    if not (end.endswith(MAGIC) if begin == MAGIC else end == END_OF_STREAM):
        raise ValueError("it does not end as it should")


def _places(file: pa.MemoryMappedFile) -> Iterator[int]:
    """The byte where each record batch begins."""
    messages = pa.ipc.MessageReader.open_stream(file)
    while True:
        place = file.tell()
        try:
            message = messages.read_next_message()
        except StopIteration:
            return
        if message.type == "record batch":
            yield place


def _checked(batch: pa.RecordBatch, image: str, mapped: range, archive: Archive) -> pa.RecordBatch:
    """A batch whose images are not compressed: they lie in the memory that is mapped."""
    buffers = batch[image].buffers()
    if any(
        buffer is not None and buffer.size and buffer.address not in mapped for buffer in buffers
    ):
        raise SourceError(
            f"{archive.path}: its record batches are compressed, so that no image can be read "
            "alone. Write it again without compression, as `save_to_disk` does, or as parquet."
        )
    return batch


def _stored(field: pa.Field) -> pa.Field:
    """A column as a batch has it, which has numbers in place of what is in a dictionary."""
    is_dictionary = pa.types.is_dictionary(field.type)
    return field.with_type(field.type.index_type) if is_dictionary else field
