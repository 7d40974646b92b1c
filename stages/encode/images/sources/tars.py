"""Images in tars, read in place: ImageNet's tar of tars, class folders, webdataset's shards."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from stages.encode.images.sources.archives import (
    Archive,
    ReadAt,
    collector_paused,
    locate,
    means_several,
    opened_ahead,
)
from stages.encode.images.sources.names import candidates, check_unique, numbered, passed_over
from stages.encode.images.sources.source import (
    IMAGE_SUFFIXES,
    FileSettings,
    LeftOut,
    Places,
    Reason,
    Source,
    SourceError,
    is_image,
)
from stages.encode.images.sources.tar_trees import (
    TAR,
    Member,
    TarImages,
    check_uncompressed,
    images_in,
    in_folder,
    list_members,
    one_tree,
    tar_files,
    tar_tree,
)
from stages.progress import progress

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


def samples(
    read: ReadAt, members: Sequence[Member], where: object, left_out: LeftOut
) -> tuple[list[Member], list[int]]:
    """The images of a shard, in its order, and their labels; none, if it has no images.

    Raises SourceError for an image without a label, for two images with one key, and for one that
    is no sample's.
    """
    members = [members[i] for i in candidates([member.name for member in members], left_out)]
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
    used = {*images.values(), *(labels[key] for key in images if key in labels)}
    unused = [member.name for member in members if member not in used]
    _leave_out([name for name in unused if not name.endswith("/")], images, where, left_out)
    if lacking := [key for key in images if key not in labels]:
        raise SourceError(
            f"{where}: {len(lacking)} images have no label: {lacking[0]} has neither .cls nor "
            ".json beside it."
        )
    return list(images.values()), [_label(read, labels[key], where) for key in images]


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


@collector_paused()
def tar_archive(dataset: FileSettings) -> Source:
    """Tar files: one, or those in a folder or of a pattern (`train-*.tar`).

    Ordered and labelled as torchvision does with the unpacked tree: a tar per class, in a tar as
    ImageNet's or in a folder; tars of class folders; Hugging Face's tars of ImageNet. Or webdataset
    shards: KEY.jpg, or another image, beside KEY.cls or KEY.json, in the order of shard names and
    within a shard. A path that goes on inside a file (`train.tar/train`) means that folder.
    """
    path, left_out = dataset.path, LeftOut()
    if means_several(path):
        archives = tar_files(path, left_out)
        images = _of_several(archives, path, left_out)
    else:
        archive, folder = locate(path)
        archives = [archive]
        images = _of_one(archive, folder, path, left_out)
    places = zip(images.tars, images.members, strict=True)
    table = [(tar, member.start, member.size) for tar, member in places]
    reader = _Images(archives, np.array(table, np.int64))
    return Source(
        keys=tuple(member.name for member in images.members),
        labels=images.labels,
        classes=images.classes,
        read=reader.read,
        stamp=reader.stamp,
        left_out=left_out,
    )


def _of_one(archive: Archive, folder: str, where: object, left_out: LeftOut) -> TarImages:
    """The images in a folder of a tar."""
    with archive.listed() as read:
        with progress(f"listing {archive.path}", None, ""):
            members = _members(archive, read, folder)
        if any(member.name.endswith(TAR) and not passed_over(member.name) for member in members):
            return one_tree([_classes(read, members, archive.path, left_out)], where, left_out)
        if has_labels(members):
            found, labels = samples(read, members, archive.path, left_out)
            return _labelled([found], labels, archive.path)
        return one_tree([members], where, left_out)


def _of_several(archives: Sequence[Archive], where: object, left_out: LeftOut) -> TarImages:
    """The images in several tars, of which the first with images tells what they are."""
    for archive in archives:
        members = _listed(archive)
        if has_labels(members):
            return _shards(archives, left_out)
        if any(images_in(members)):
            break
    listings = list(opened_ahead(archives, _listed, "tars"))
    return tar_tree([archive.path for archive in archives], listings, where, left_out)


def _members(archive: Archive, read: ReadAt, folder: str = "") -> list[Member]:
    """The members of a tar that lie in a folder, by their names in it."""
    check_uncompressed(archive, read)
    return [
        member._replace(name=member.name.removeprefix(folder))
        for member in list_members(read, 0, archive.size, archive.path)
        if member.name.startswith(folder) and member.name != folder
    ]


def _listed(archive: Archive) -> list[Member]:
    """The members of a tar."""
    with archive.listed() as read:
        return _members(archive, read)


def _classes(
    read: ReadAt, members: Sequence[Member], where: Path, left_out: LeftOut
) -> list[Member]:
    """The members of the tars in a tar, in folders that are called like these."""
    tars = []
    for i in candidates([member.name for member in members], left_out):
        name = members[i].name
        if is_image(name):
            raise SourceError(f"{where} has both tars and images. Name a folder inside it.")
        if name.endswith(TAR):
            tars.append(members[i])
        elif not name.endswith("/"):
            left_out.add(Reason.OTHER, name)
    folders = [PurePosixPath(tar.name).stem for tar in tars]
    check_unique(folders, where)

    def inside(tar: Member) -> list[Member]:
        return list_members(read, tar.start, tar.start + tar.size, f"{where}/{tar.name}")

    listings = zip(folders, opened_ahead(tars, inside, "tars"), strict=True)
    return [member for folder, found in listings for member in in_folder(folder, found)]


def _shards(archives: Sequence[Archive], left_out: LeftOut) -> TarImages:
    """Several webdataset shards; the shard is part of the key."""

    def labelled(archive: Archive) -> tuple[list[Member], list[int], LeftOut]:
        own = LeftOut()
        with archive.listed() as read:
            members = _members(archive, read)
            return *samples(read, members, archive.path, own), own

    listings: list[list[Member]] = []
    numbers: list[int] = []
    for shard, (found, labels, own) in enumerate(opened_ahead(archives, labelled, "tars")):
        name = archives[shard].path.name
        left_out.join(own, f"{name}/")
        if not found:
            left_out.add(Reason.EMPTY, name)
        listings.append([member._replace(name=f"{name}/{member.name}") for member in found])
        numbers += labels
    return _labelled(listings, numbers, archives[0].path.parent)


def _labelled(
    listings: Sequence[Sequence[Member]], numbers: Sequence[int], where: object
) -> TarImages:
    """Images in the tars' own order, with their labels."""
    if not numbers:
        raise SourceError(f"{where}: no images.")
    tars = [tar for tar, found in enumerate(listings) for _ in found]
    members = [member for found in listings for member in found]
    return TarImages(tars, members, *numbered(numbers, where))


@dataclass(frozen=True)
class _Images:
    """table: int64 [N, 3]: which tar an image is in, where it begins there, and its bytes."""

    archives: Sequence[Archive]
    table: Places

    def read(self, index: int) -> bytes:
        """The content of an image."""
        archive, start, size = map(int, self.table[index])
        with self.archives[archive].opened() as read:
            return read(start, size)

    def stamp(self, index: int) -> int:
        """A number that changes when the tar does."""
        archive, start, size = map(int, self.table[index])
        return self.archives[archive].stamp(start, size)
