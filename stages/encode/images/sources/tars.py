"""Images in tar files, read in place: ImageNet's tar of tars, class folders, webdataset shards."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from stages.encode.images.sources import webdataset
from stages.encode.images.sources.archives import (
    Archive,
    ReadAt,
    collector_paused,
    locate,
    means_several,
    opened_ahead,
)
from stages.encode.images.sources.labels import numbered
from stages.encode.images.sources.left_out import EMPTY, OTHER, LeftOut
from stages.encode.images.sources.names import candidates, check_unique, passed_over
from stages.encode.images.sources.source import Source, SourceError, is_image
from stages.encode.images.sources.tar_members import (
    TAR,
    Member,
    check_uncompressed,
    list_members,
    tar_files,
)
from stages.encode.images.sources.tar_trees import (
    TarImages,
    images_in,
    in_folder,
    one_tree,
    tar_tree,
)
from stages.progress import progress


@collector_paused()
def tar_archive(path: Path | None, _resolution: int) -> Source:
    """Tar files: one, or those in a folder or of a pattern (`train-*.tar`).

    Ordered and labelled as torchvision does with the unpacked tree: a tar per class, in a tar as
    ImageNet's or in a folder; tars of class folders; Hugging Face's tars of ImageNet. Or webdataset
    shards: KEY.jpg, or another image, beside KEY.cls or KEY.json, in the order of shard names and
    within a shard. A path that goes on inside a file (`train.tar/train`) means that folder.
    """
    left_out = LeftOut()
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
        if webdataset.has_labels(members):
            found, labels = webdataset.samples(read, members, archive.path, left_out)
            return _labelled([found], labels, archive.path)
        return one_tree([members], where, left_out)


def _of_several(archives: Sequence[Archive], where: object, left_out: LeftOut) -> TarImages:
    """The images in several tars, of which the first with images tells what they are."""
    for archive in archives:
        members = _listed(archive)
        if webdataset.has_labels(members):
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
            left_out.add(OTHER, name)
    folders = [PurePosixPath(tar.name).stem for tar in tars]
    check_unique(folders, where)

    def inside(tar: Member) -> list[Member]:
        return list_members(read, tar.start, tar.start + tar.size, f"{where}/{tar.name}")

    listings = zip(folders, opened_ahead(tars, inside, "tars"), strict=True)
    return [member for folder, found in listings for member in in_folder(folder, found)]


def _shards(archives: Sequence[Archive], left_out: LeftOut) -> TarImages:
    """Several webdataset shards; the shard is part of the key."""

    def samples(archive: Archive) -> tuple[list[Member], list[int], LeftOut]:
        own = LeftOut()
        with archive.listed() as read:
            members = _members(archive, read)
            return *webdataset.samples(read, members, archive.path, own), own

    listings: list[list[Member]] = []
    numbers: list[int] = []
    for shard, (found, labels, own) in enumerate(opened_ahead(archives, samples, "tars")):
        name = archives[shard].path.name
        left_out.join(own, f"{name}/")
        if not found:
            left_out.add(EMPTY, name)
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
