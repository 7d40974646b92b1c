"""Samples of webdataset shards: files that share a key, which ends at the first dot."""

import json
import re
from collections.abc import Sequence

from stages.encode.sources.archives import ReadAt
from stages.encode.sources.source import IMAGE_SUFFIXES, SourceError
from stages.encode.sources.tar_members import Member

# Room for captions and more beside the label.
MAX_LABEL_BYTES = 1 << 20
LABEL_SUFFIXES = frozenset({".cls", ".json"})
INTEGER = re.compile(rb"\s*-?\d{1,9}\s*")


def has_labels(members: Sequence[Member]) -> bool:
    """Whether any image has a label beside it."""
    parts = [_split(member.name) for member in members]
    labelled = {key for key, suffix in parts if suffix in LABEL_SUFFIXES}
    return any(suffix in IMAGE_SUFFIXES and key in labelled for key, suffix in parts)


def samples(
    read: ReadAt, members: Sequence[Member], where: object
) -> tuple[list[Member], list[int]]:
    """The images of a shard, in its order, and their labels.

    Raises SourceError for an image without a label, and for two images with one key.
    """
    images: dict[str, Member] = {}
    labels: dict[str, Member] = {}
    for member in members:
        key, suffix = _split(member.name)
        if suffix in IMAGE_SUFFIXES:
            if key in images:
                raise SourceError(f"{where}: two images for {key}: which is to be used?")
            images[key] = member
        elif suffix == ".cls" or (suffix == ".json" and key not in labels):
            labels[key] = member
    if not images:
        raise SourceError(f"{where}: no images.")
    if lacking := [key for key in images if key not in labels]:
        raise SourceError(
            f"{where}: {len(lacking)} images have no label: {lacking[0]} has neither .cls nor "
            ".json beside it."
        )
    return list(images.values()), [_label(read, labels[key], where) for key in images]


def _split(name: str) -> tuple[str, str]:
    """The key of a file, and its suffix in small letters; folders have none."""
    folder, slash, file = name.rpartition("/")
    key, dot, suffix = file.partition(".")
    return f"{folder}{slash}{key}", f"{dot}{suffix}".lower()


def _label(read: ReadAt, member: Member, where: object) -> int:
    """The number in a .cls file, or at "label" in a .json file."""
    if member.size > MAX_LABEL_BYTES:
        raise SourceError(f"{where}: {member.name} is no label: it has {member.size} bytes.")
    content = read(member.start, member.size)
    if member.name.lower().endswith(".cls"):
        if INTEGER.fullmatch(content):
            return int(content)
    else:
        label = _json_label(content)
        if label is not None:
            return label
    raise SourceError(f"{where}: {member.name} has no label that is a number: {content[:40]!r}.")


def _json_label(content: bytes) -> int | None:
    try:
        label = json.loads(content)["label"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return label if type(label) is int else None
