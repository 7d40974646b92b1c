"""Images in tar files, read in place: ImageNet's tar of tars, class folders, webdataset shards."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from stages.encode.sources import webdataset
from stages.encode.sources.archives import (
    Archive,
    ReadAt,
    collector_paused,
    files_of,
    locate,
    means_several,
    opened_ahead,
)
from stages.encode.sources.labels import numbered
from stages.encode.sources.names import check_unique, class_folders
from stages.encode.sources.source import Labels, Source, SourceError, is_image
from stages.encode.sources.tar_members import TAR, Member, check_uncompressed, list_members


@collector_paused()
def tar_archive(path: Path | None, _resolution: int) -> Source:
    """Any of three kinds of tar files.

    A tar of a tar per class, as ImageNet's; or a tar of class folders: both ordered and labelled
    as torchvision does with the unpacked tree. Or webdataset shards, a file, a folder or a
    pattern (`train-*.tar`): KEY.jpg, or another image, beside KEY.cls or KEY.json, in the order
    of shard names and within a shard. A path that goes on inside a file (`train.tar/train`)
    means that folder.
    """
    if means_several(path):
        return _shards(files_of(path, TAR))
    archive, folder = locate(path)
    with archive.listed() as read:
        members = _members(archive, read, folder)
        if tars := [member for member in members if member.name.endswith(TAR)]:
            if any(is_image(member.name) for member in members):
                raise SourceError(f"{path} has both tars and images. Name a folder inside it.")
            members = list(_classes(read, tars, archive.path))
        elif webdataset.has_labels(members):
            members, numbers = webdataset.samples(read, members, archive.path)
            labels, classes = numbered(numbers, archive.path)
            return _source([archive], [0] * len(members), members, labels, classes)
    order, labels, classes = class_folders([member.name for member in members], path)
    return _source([archive], [0] * len(order), [members[i] for i in order], labels, classes)


def _members(archive: Archive, read: ReadAt, folder: str = "") -> list[Member]:
    """The members of a tar that lie in a folder, by their names in it."""
    check_uncompressed(archive, read)
    return [
        member._replace(name=member.name.removeprefix(folder))
        for member in list_members(read, 0, archive.size, archive.path)
        if member.name.startswith(folder) and member.name != folder
    ]


def _classes(read: ReadAt, tars: Sequence[Member], where: Path) -> Iterator[Member]:
    """The members of the tars in a tar, in folders that are called like these."""
    folders = [PurePosixPath(tar.name).stem for tar in tars]
    check_unique(folders, where)

    def members(tar: Member) -> list[Member]:
        return list_members(read, tar.start, tar.start + tar.size, f"{where}/{tar.name}")

    for folder, found in zip(folders, opened_ahead(tars, members, "tars"), strict=True):
        # Also of an empty tar, so that it does not go unnoticed.
        yield Member(f"{folder}/", 0, 0)
        yield from (member._replace(name=f"{folder}/{member.name}") for member in found)


def _shards(archives: Sequence[Archive]) -> Source:
    """Several webdataset shards; the shard is part of the key."""

    def samples(archive: Archive) -> tuple[list[Member], list[int]]:
        with archive.listed() as read:
            return webdataset.samples(read, _members(archive, read), archive.path)

    shards: list[int] = []
    members: list[Member] = []
    numbers: list[int] = []
    for shard, (found, labels) in enumerate(opened_ahead(archives, samples, "tars")):
        name = archives[shard].path.name
        members += [member._replace(name=f"{name}/{member.name}") for member in found]
        shards += [shard] * len(found)
        numbers += labels
    return _source(archives, shards, members, *numbered(numbers, archives[0].path.parent))


@dataclass(frozen=True)
class _Images:
    """table: int64 [N, 3]: which tar an image is in, where it begins there, and its bytes."""

    archives: Sequence[Archive]
    table: npt.NDArray[np.int64]

    def read(self, index: int) -> bytes:
        """The content of an image."""
        archive, start, size = map(int, self.table[index])
        with self.archives[archive].opened() as read:
            return read(start, size)

    def stamp(self, index: int) -> int:
        """A number that changes when the tar does."""
        archive, start, size = map(int, self.table[index])
        return self.archives[archive].stamp(start, size)


def _source(
    archives: Sequence[Archive],
    tars: Sequence[int],
    members: Sequence[Member],
    labels: Labels,
    classes: tuple[str, ...],
) -> Source:
    places = [(tar, member.start, member.size) for tar, member in zip(tars, members, strict=True)]
    images = _Images(archives, np.array(places, np.int64))
    keys = tuple(member.name for member in members)
    return Source(keys, labels, classes, images.read, images.stamp)
