"""Captions in files: in one for all images, as COCO's or lines of JSON, or beside each image."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from posixpath import basename, splitext
from typing import Any, TypeAlias

from stages.encode.images.remote.paths import DataPath
from stages.encode.images.sources.source import METADATA, TEXT, SourceError

# The captions of an image, by its position.
Captions: TypeAlias = Callable[[int], Sequence[str]]
Table: TypeAlias = Mapping[str, Sequence[str]]

# What published files call the name of an image, and its captions.
FILE_NAMES = ("file_name", "filename", "file", "image", "path")
CAPTION_NAMES = ("caption", "captions", "text", "texts", "sentences", "raw")
NAMED = 3


def captions_of(
    path: DataPath | None, keys: Sequence[str], read: Callable[[str], bytes]
) -> Captions:
    """The captions of images with these keys.

    path: of a file with those of all; read: a file of the data set by its name, raising OSError
    if there is none. Without either, no image has any. Raises SourceError if the file is no such
    file, or is of other images.
    """
    content, where = None, str(path or METADATA)
    if path is not None:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise SourceError(
                f"dataset.captions: {path} cannot be read: {error.strerror}"
            ) from error
    else:
        with suppress(OSError):
            content = read(METADATA)
    if content is not None:
        return _by_name(parsed(content, where), keys, where)

    def beside(index: int) -> Sequence[str]:
        try:
            return lines_of(read(f"{splitext(keys[index])[0]}{TEXT}"))
        except OSError:
            return ()

    return beside


def lines_of(content: bytes) -> list[str]:
    """The captions in a text file, a line each."""
    return [line for line in content.decode(errors="replace").splitlines() if line.strip()]


def parsed(content: bytes, where: object) -> Table:
    """The captions of each image that a file names. Raises SourceError if it is no such file."""
    try:
        return _parsed(content.decode())
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise SourceError(
            f"{where}: neither COCO's JSON of captions nor lines of JSON with "
            f"{' or '.join(FILE_NAMES[:2])} and {' or '.join(CAPTION_NAMES[:3])}: {error!r}."
        ) from None


def _parsed(text: str) -> Table:
    if text.lstrip().startswith("{") and _is_one_document(text):
        return _of_document(json.loads(text))
    table: dict[str, list[str]] = defaultdict(list)
    for line in text.splitlines():
        if line.strip():
            entry = json.loads(line)
            table[_name(entry)] += texts_in(entry)
    return table


def texts_in(entry: Mapping[str, Any]) -> list[str]:
    """The captions that an entry has, under any of the usual names: one, or a list."""
    found = next((entry[name] for name in CAPTION_NAMES if entry.get(name) is not None), None)
    return list(_texts(found))


def _texts(found: Any) -> Iterator[str]:
    if isinstance(found, str):
        yield found
    elif isinstance(found, Mapping):
        yield from texts_in(found)
    elif found is not None:
        for one in found:
            yield from _texts(one)


def _is_one_document(text: str) -> bool:
    """Whether it is one JSON object rather than one a line."""
    first, _, rest = text.strip().partition("\n")
    try:
        json.loads(first)
    except ValueError:
        return True
    return not rest


def _of_document(document: Mapping[str, Any]) -> Table:
    """COCO's annotations, in the order in which its library gives them, or Karpathy's splits."""
    if "images" not in document:
        return {_name(document): texts_in(document)}
    table: dict[str, list[str]] = defaultdict(list)
    if "annotations" not in document:
        for image in document["images"]:
            table[_name(image)] += texts_in(image)
        return table
    names = {image["id"]: _name(image) for image in document["images"]}
    for annotation in document["annotations"]:
        table[names[annotation["image_id"]]].append(annotation["caption"])
    return table


def _name(entry: Mapping[str, Any]) -> str:
    name = next(entry[name] for name in FILE_NAMES if name in entry)
    if not isinstance(name, str):
        raise TypeError(name)
    return name


def _by_name(table: Table, keys: Sequence[str], where: str) -> Captions:
    """Captions by the names of images as a file has them, with folders or without."""
    if not any(key in table or basename(key) in table for key in keys):
        listing = ", ".join(list(table)[:NAMED]) or "none"
        raise SourceError(
            f"{where}: it names none of the images, as {keys[0]}, but {listing}. "
            "dataset.captions tells the file that has their captions."
        )

    def captions(index: int) -> Sequence[str]:
        key = keys[index]
        return table.get(key) or table.get(basename(key)) or ()

    return captions
