"""The samples of webdataset's shards: images, and their labels and captions beside them."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from stages.encode.images.sources.archives import ReadAt
from stages.encode.images.sources.caption_files import lines_of, texts_in
from stages.encode.images.sources.names import candidates
from stages.encode.images.sources.source import (
    IMAGE_SUFFIXES,
    TEXT,
    LeftOut,
    Reason,
    SourceError,
    is_image,
)
from stages.encode.images.sources.tar_trees import Member

# Room for captions and more beside the label.
MAX_LABEL_BYTES = 1 << 20
LABEL_SUFFIXES = frozenset({".cls", ".json"})
INTEGER = re.compile(rb"\s*-?\d{1,9}\s*")
NAMED = 3


def has_labels(members: Sequence[Member]) -> bool:
    """Whether any image has a label beside it, or would have one by another rule for keys."""
    parts = [_split(member.name) for member in members]
    labelled = {key for key, suffix in parts if suffix in LABEL_SUFFIXES}
    called = {key for key, suffix in parts if suffix.endswith(".cls")}
    return any(
        (suffix in IMAGE_SUFFIXES and key in labelled) or (is_image(suffix) and key in called)
        for key, suffix in parts
    )


class Samples(NamedTuple):
    """The images of a shard, in its order, their labels, and the files of their captions."""

    images: list[Member]
    labels: list[int]
    captions: list[Member | None]


def samples(
    read: ReadAt,
    members: Sequence[Member],
    where: object,
    left_out: LeftOut,
    *,
    has_classes: bool = True,
) -> Samples:
    """What there is in a shard; nothing, if it has no images.

    Raises SourceError for an image without a label, if it has to have one, for two images with one
    key, and for one that is no sample's.
    """
    members = [members[i] for i in candidates([member.name for member in members], left_out)]
    images: dict[str, Member] = {}
    labels: dict[str, Member] = {}
    texts: dict[str, Member] = {}
    for member in members:
        key, suffix = _split(member.name)
        if suffix in IMAGE_SUFFIXES:
            if key in images:
                raise SourceError(f"{where}: two images for {key}: which is to be used?")
            images[key] = member
        elif suffix == ".cls" or (suffix == ".json" and key not in labels):
            labels[key] = member
        if suffix == TEXT or (suffix == ".json" and key not in texts):
            texts[key] = member
    beside = (found[key] for found in (labels, texts) for key in images if key in found)
    used = {*images.values(), *beside}
    unused = [member.name for member in members if member not in used]
    _leave_out([name for name in unused if not name.endswith("/")], images, where, left_out)
    captions = [texts.get(key) for key in images]
    if not has_classes:
        return Samples(list(images.values()), [0] * len(images), captions)
    if lacking := [key for key in images if key not in labels]:
        raise SourceError(
            f"{where}: {len(lacking)} images have no label: {lacking[0]} has neither .cls nor "
            ".json beside it."
        )
    numbers = [_label(read, labels[key], where) for key in images]
    return Samples(list(images.values()), numbers, captions)


def captions_in(content: bytes, name: str) -> list[str]:
    """The captions in a file beside an image: lines of a text, or what its JSON tells."""
    if name.endswith(TEXT):
        return lines_of(content)
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return []
    return texts_in(found) if isinstance(found, dict) else []


def _leave_out(
    names: Sequence[str], images: Mapping[str, Member], where: object, left_out: LeftOut
) -> None:
    """Leave out what is no sample's image or label, but no image that its sample would lack."""
    stray = [name for name in names if is_image(name) and _split(name)[0] not in images]
    if stray:
        key, suffix = _split(stray[0])
        more = f" and {len(stray) - NAMED} more" if len(stray) > NAMED else ""
        raise SourceError(
            f"{where}: {len(stray)} images are those of no sample: "
            f"{', '.join(stray[:NAMED])}{more}. A sample's name ends at the first dot, as "
            f"webdataset has it, so that {stray[0]} is the file {suffix!r} of {key!r}, which has "
            "no image of its own (as .jpg). Rename the files so that only a suffix follows the "
            "first dot, labels too: a_001.jpg, a_001.cls."
        )
    for name in names:
        left_out.add(Reason.BESIDE_IMAGE if is_image(name) else Reason.OTHER, name)


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
