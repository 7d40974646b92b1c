"""Which columns of a table hold images and labels, and what is in them."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from stages.encode.images.remote.paths import DataPath
from stages.encode.images.sources.archives import Archive
from stages.encode.images.sources.caption_files import CAPTION_NAMES, texts_in
from stages.encode.images.sources.source import Places, SourceError
from stages.encode.images.sources.tables import Listing, NoImagesError, TableSettings

# What they are called in published data sets.
IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "photo")
LABEL_NAMES = ("label", "labels", "cls", "class", "class_label", "fine_label", "target")

Schema = Mapping[str, pa.DataType]


@dataclass(frozen=True)
class Columns:
    """image, label, caption: their names, of the last two if there are such that are read.

    has_content, has_path: whether images have bytes, and paths.
    """

    image: str
    label: str | None
    caption: str | None
    has_content: bool
    has_path: bool

    @property
    def told(self) -> list[str]:
        """The columns that tell of images."""
        return [name for name in (self.label, self.caption) if name is not None]


@contextmanager
def listing_of(archive: Archive, kind: str) -> Iterator[None]:
    """In which whatever cannot be read is a SourceError. kind: what the file should be."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        raise SourceError(
            f"{archive.path} is no {kind} file, or is cut off or damaged: {error}."
        ) from error


def find_columns(schema: pa.Schema, dataset: TableSettings, where: DataPath) -> Columns:
    """The columns of images, and of labels and captions.

    Raises NoImagesError if there is none of images, SourceError if several may be meant or labels
    are missing.
    """
    types = dict(zip(schema.names, schema.types, strict=True))
    features = _features(schema)
    image = dataset.image_column
    if image is None:
        image = _found("image", IMAGE_NAMES, _holds_images, types, features, where)
    if image is None or image not in types:
        raise NoImagesError(_absence("image", image, types, where))
    parts = _parts(types[image])
    if not parts:
        raise _unfit("image", image, "bytes or paths of image files", types, where)
    caption = _caption_column(types, dataset, where)
    label = _label_column(types, features, dataset, where) if dataset.classes else None
    return Columns(image, label, caption, "bytes" in parts, "path" in parts)


def _label_column(
    types: Schema, features: Mapping[str, Any], dataset: TableSettings, where: DataPath
) -> str:
    label = dataset.label_column
    if label is None:
        label = _found("label", LABEL_NAMES, _holds_labels, types, features, where)
    if label is None or label not in types:
        raise SourceError(_absence("label", label, types, where))
    if not _holds_labels(types[label]):
        raise _unfit("label", label, "whole numbers or names", types, where)
    return label


def _caption_column(types: Schema, dataset: TableSettings, where: DataPath) -> str | None:
    caption = dataset.caption_column
    if caption is None:
        usual = (name for name in CAPTION_NAMES if name in types)
        return next((name for name in usual if _holds_captions(types[name])), None)
    if caption not in types or not _holds_captions(types[caption]):
        raise _unfit("caption", caption, "strings or lists of them", types, where)
    return caption


def _absence(what: str, name: str | None, types: Schema, where: DataPath) -> str:
    called = f"{name!r}" if name is not None else f"of {what}s"
    return (
        f"{where}: expected a column {called}, got {_listing(types)}. "
        f"Name it: dataset.{what}_column."
    )


def _unfit(what: str, name: str, expected: str, types: Schema, where: DataPath) -> SourceError:
    return SourceError(
        f"expected {expected} in the column {name!r}, got {types.get(name, 'no such column')}",
        where=where,
        remedy=f"Name another: dataset.{what}_column. There are {_listing(types)}.",
    )


def _listing(types: Schema) -> str:
    return ", ".join(f"{name} ({kind})" for name, kind in types.items())


def _found(
    what: str,
    names: Sequence[str],
    fits: Callable[[pa.DataType], bool],
    types: Schema,
    features: Mapping[str, Any],
    where: DataPath,
) -> str | None:
    """The column of a usual name, or else the only one that `datasets` declares to be such."""
    if names[0] in types:
        return names[0]
    feature = {"image": "Image", "label": "ClassLabel"}[what]
    declared = [name for name in types if _kind(features.get(name)) == feature]
    for found in ([name for name in names if name in types and fits(types[name])], declared):
        if len(found) > 1:
            raise SourceError(
                f"{where}: which column is meant, {' or '.join(found)}? Name it: "
                f'dataset.{what}_column = "{found[0]}". There are {_listing(types)}.'
            )
        if found:
            return found[0]
    return None


def _features(schema: pa.Schema) -> Mapping[str, Any]:
    """What the metadata that `datasets` writes says of the columns."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (ValueError, TypeError, KeyError):
        return {}
    return features if isinstance(features, dict) else {}


def _kind(feature: Any) -> object:
    return feature.get("_type") if isinstance(feature, dict) else None


def _class_names(schema: pa.Schema, label: str) -> tuple[str, ...] | None:
    """The names of the labels, if `datasets` has written them down."""
    feature = _features(schema).get(label)
    names = feature.get("names") if isinstance(feature, dict) else None
    is_listing = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return tuple(names) if names and is_listing else None


def is_text(kind: pa.DataType) -> bool:
    """Whether values are strings, in any of Arrow's ways."""
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(test(_plain(kind)) for test in tests)


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_content(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return bool(kind.value_type == pa.uint8())
    return any(
        test(_plain(kind))
        for test in (
            pa.types.is_binary,
            pa.types.is_large_binary,
            pa.types.is_binary_view,
            pa.types.is_fixed_size_binary,
        )
    )


def _parts(kind: pa.DataType) -> frozenset[str]:
    """Which of `bytes` and `path` an image has."""
    if not pa.types.is_struct(kind):
        return frozenset({"path"} if is_text(kind) else {"bytes"} if _is_content(kind) else ())
    fields = {field.name: field.type for field in kind}
    fits = {"bytes": _is_content, "path": is_text}
    return frozenset(part for part, test in fits.items() if part in fields and test(fields[part]))


def _holds_images(kind: pa.DataType) -> bool:
    # Names of files alone may be of anything: they have to be asked for.
    return bool(_parts(kind)) and not is_text(kind)


def _holds_labels(kind: pa.DataType) -> bool:
    return pa.types.is_integer(_plain(kind)) or is_text(kind)


def _holds_captions(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _holds_captions(kind.value_type)
    if pa.types.is_struct(kind):
        return any(field.name in CAPTION_NAMES and is_text(field.type) for field in kind)
    return is_text(kind)


def captions_of_rows(values: pa.ChunkedArray) -> list[list[str]]:
    """The captions in each row of a column."""
    return [texts_in({CAPTION_NAMES[0]: value}) for value in values.to_pylist()]


def part_of(images: pa.ChunkedArray, part: str) -> pa.ChunkedArray:
    """The bytes or the paths of images; nothing where an image is nothing."""
    if not pa.types.is_struct(images.type):
        return images
    names = [field.name for field in images.type]
    return images.flatten()[names.index(part)]


def content_of(image: pa.Scalar) -> bytes | None:
    """The bytes of an image, in any of Arrow's ways; None if there are none."""
    if not image.is_valid:
        return None
    if isinstance(image, pa.ListScalar | pa.LargeListScalar):
        return bytes(image.values.to_numpy())
    content: bytes | None = image.as_py()
    return content


def listing(
    archive: Archive,
    schema: pa.Schema,
    columns: Columns,
    told: pa.Table,
    paths: pa.ChunkedArray | None,
    may_lack: np.ndarray,
) -> Listing:
    """What a file tells of its images.

    told: its columns of labels and captions; may_lack: bool [R], whether an image may have no
    bytes. Raises SourceError if a label is missing.
    """
    numbers, names = np.zeros(len(may_lack), np.int64), None
    if columns.label is not None:
        numbers, names = _numbers(told[columns.label], archive.path)
    captions = None if columns.caption is None else captions_of_rows(told[columns.caption])
    return Listing(
        archive=archive,
        labels=numbers,
        classes=names or (columns.label and _class_names(schema, columns.label)) or None,
        are_named=names is not None,
        captions=captions,
        paths=None if paths is None else tuple(paths.to_pylist()),
        may_lack=may_lack,
    )


def _numbers(labels: pa.ChunkedArray, where: DataPath) -> tuple[Places, tuple[str, ...] | None]:
    """Labels as numbers; and what these stand for, sorted, if the labels are names."""
    if labels.null_count:
        row = labels.is_null().index(pa.scalar(value=True)).as_py()
        raise SourceError(
            f"{where}: {labels.null_count} of {len(labels)} images are without a label and cannot "
            f"be used, the first in row {row}."
        )
    kind = _plain(labels.type)
    if pa.types.is_integer(kind):
        # A copy: these may lie in a file that is mapped.
        return np.array(labels.cast(kind).cast(pa.int64()).to_numpy()), None
    words = labels.cast(pa.large_string()).combine_chunks().dictionary_encode()
    names = words.dictionary.to_pylist()
    ordered = sorted(names)
    number = {name: label for label, name in enumerate(ordered)}
    return np.array([number[name] for name in names])[words.indices.to_numpy()], tuple(ordered)
