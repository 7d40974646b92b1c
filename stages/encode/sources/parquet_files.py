"""What is in a parquet file: row groups, labels and names; and the images of a row group."""

import json
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from stages.encode.sources.archives import Archive
from stages.encode.sources.source import SourceError

# A row group is decoded as a whole; those of `datasets` hold 100 images, 11 MB of ImageNet.
MAX_GROUP_BYTES = 1 << 30
# Rows decoded at a time, so that a group that is larger than it claims is noticed early.
BATCH_ROWS = 16


@dataclass(frozen=True)
class ParquetFile:
    """A file of R rows in G row groups.

    column: where the bytes of the images are; groups: [G] rows of each; labels: int64 [R];
    paths: [R] names of the images, if it has them; classes: names of the labels, likewise.
    """

    archive: Archive
    column: str
    groups: tuple[int, ...]
    labels: npt.NDArray[np.int64]
    paths: tuple[str | None, ...] | None
    classes: tuple[str, ...] | None

    @classmethod
    def of(cls, archive: Archive) -> "ParquetFile":
        """Everything but the images. Raises SourceError."""
        try:
            with pq.ParquetFile(archive.path) as file:
                schema = file.schema_arrow
                column, has_paths = _image_column(schema, archive)
                groups = _groups(file.metadata, archive)
                wanted = ["label", "image.path"] if has_paths else ["label"]
                table = file.read(wanted, use_threads=False)
            paths = tuple(table["image"].flatten()[0].to_pylist()) if has_paths else None
        except (pa.ArrowException, OSError, ValueError) as error:
            raise SourceError(
                f"{archive.path} is no parquet file, or is cut off or damaged: {error}."
            ) from error
        if table["label"].null_count or table.num_rows != sum(groups):
            raise SourceError(f"{archive.path}: images without a label cannot be used.")
        return cls(
            archive=archive,
            column=column,
            groups=groups,
            labels=table["label"].to_numpy().astype(np.int64),
            paths=paths,
            classes=_class_names(schema),
        )

    def read_group(self, group: int) -> pa.ChunkedArray:
        """The images of a row group. Raises OSError if it is damaged."""
        images, size = [], 0
        try:
            with (
                # Fails if the file is another than was opened.
                self.archive.opened(),
                pq.ParquetFile(self.archive.path, page_checksum_verification=True) as file,
            ):
                # Arrow's own threads do not survive a fork.
                batches = file.iter_batches(BATCH_ROWS, [group], [self.column], use_threads=False)
                for batch in batches:
                    images.append(batch.column(0))
                    size += batch.nbytes
                    if size > MAX_GROUP_BYTES:
                        raise pa.ArrowInvalid("larger than it claims")
        except (pa.ArrowException, OSError) as error:
            raise OSError(f"{self.archive.path}: row group {group} is damaged: {error}") from error
        column = pa.chunked_array(images)
        if len(column) != self.groups[group]:
            raise OSError(f"{self.archive.path}: row group {group} has {len(column)} rows only")
        return column.flatten()[0] if pa.types.is_struct(column.type) else column


def _image_column(schema: pa.Schema, archive: Archive) -> tuple[str, bool]:
    """Where the bytes of the images are, and whether there are paths beside them."""
    types = dict(zip(schema.names, schema.types, strict=True))
    if "image" not in types or not pa.types.is_integer(types.get("label", pa.null())):
        raise SourceError(
            f"{archive.path}: expected columns `image` and `label` (a number), got "
            f"{', '.join(f'{name} ({kind})' for name, kind in types.items())}."
        )
    if not pa.types.is_struct(types["image"]):
        fields, column = {"bytes": types["image"]}, "image"
    else:
        fields, column = {field.name: field.type for field in types["image"]}, "image.bytes"
    content = fields.get("bytes", pa.null())
    if not (pa.types.is_binary(content) or pa.types.is_large_binary(content)):
        raise SourceError(
            f"{archive.path}: column `image` has no bytes of image files, but {types['image']}."
        )
    return column, pa.types.is_string(fields.get("path", pa.null()))


def _groups(metadata: pq.FileMetaData, archive: Archive) -> tuple[int, ...]:
    """The rows of each row group. Raises SourceError for one too large to be decoded."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    for number, group in enumerate(groups):
        if group.total_byte_size > MAX_GROUP_BYTES:
            raise SourceError(
                f"{archive.path}: row group {number} has {group.total_byte_size / 1e9:.1f} GB, "
                "which would be read for each image. Write the file again with "
                "`row_group_size=100`."
            )
    return tuple(group.num_rows for group in groups)


def _class_names(schema: pa.Schema) -> tuple[str, ...] | None:
    """The names of the labels, from the metadata that `datasets` writes."""
    metadata = (schema.metadata or {}).get(b"huggingface", b"")
    try:
        names = json.loads(metadata)["info"]["features"]["label"]["names"]
    except (ValueError, TypeError, KeyError):
        return None
    is_listing = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return tuple(names) if is_listing else None
