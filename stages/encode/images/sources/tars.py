"""Images in tars, read in place: ImageNet's tar of tars, class folders, webdataset's shards."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from stages.encode.images.remote.paths import DataPath
from stages.encode.images.sources.archives import (
    Archive,
    ReadAt,
    collector_paused,
    locate,
    means_several,
    opened_ahead,
)
from stages.encode.images.sources.caption_files import Captions, captions_of
from stages.encode.images.sources.names import (
    candidates,
    check_unique,
    numbered,
    of_one_class,
    passed_over,
)
from stages.encode.images.sources.source import (
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
from stages.encode.images.sources.webdataset import Samples, captions_in, has_labels, samples
from stages.progress import progress


@collector_paused()
def tar_archive(dataset: FileSettings) -> Source:
    """Tar files: one, or those in a folder or of a pattern (`train-*.tar`).

    Ordered and labelled as torchvision does with the unpacked tree: a tar per class, in a tar as
    ImageNet's or in a folder; tars of class folders; Hugging Face's tars of ImageNet. Or webdataset
    shards: KEY.jpg, or another image, beside KEY.cls or KEY.json, in the order of shard names and
    within a shard; captions are those in KEY.txt or KEY.json. A path that goes on inside a file
    (`train.tar/train`) means that folder.
    """
    path, left_out = dataset.place, LeftOut()
    if means_several(path):
        archives = tar_files(path, left_out)
        images = _of_several(archives, path, left_out, has_classes=dataset.classes)
    else:
        archive, folder = locate(path)
        archives = [archive]
        images = _of_one(archive, folder, path, left_out, has_classes=dataset.classes)
    reader = _Members.of(archives, images.tars, images.members)
    keys = tuple(member.name for member in images.members)
    return Source(
        keys=keys,
        labels=images.labels,
        classes=images.classes,
        read=reader.read,
        stamp=reader.stamp,
        captions=_captions(dataset, archives, images, keys),
        left_out=left_out,
    )


def _captions(
    dataset: FileSettings, archives: Sequence[Archive], images: TarImages, keys: Sequence[str]
) -> Captions:
    """The captions in a file of their own, or those beside the images."""
    if dataset.captions is not None:
        return captions_of(dataset.captions, keys, _nothing_beside)
    found = images.captions or [None] * len(keys)
    files = _Members.of(archives, images.tars, [one or Member("", 0, 0) for one in found])
    names = [one.name if one else "" for one in found]

    def captions(index: int) -> Sequence[str]:
        return captions_in(files.read(index), names[index].lower()) if names[index] else ()

    return captions


def _nothing_beside(name: str) -> bytes:
    raise FileNotFoundError(name)


def _of_one(
    archive: Archive, folder: str, where: object, left_out: LeftOut, *, has_classes: bool
) -> TarImages:
    """The images in a folder of a tar."""
    with archive.listed() as read:
        with progress(f"listing {archive.path}", None, ""):
            read, members = _members(archive, read, folder)
        if any(member.name.endswith(TAR) and not passed_over(member.name) for member in members):
            return one_tree([_classes(read, members, archive, left_out)], where, left_out)
        if not has_classes or has_labels(members):
            found = samples(read, members, archive.path, left_out, has_classes=has_classes)
            return _of_samples([found], archive.path, has_classes=has_classes)
        return one_tree([members], where, left_out)


def _of_several(
    archives: Sequence[Archive], where: object, left_out: LeftOut, *, has_classes: bool
) -> TarImages:
    """The images in several tars, of which the first with images tells what they are."""
    if not has_classes:
        return _shards(archives, left_out, has_classes=False)
    for archive in archives:
        members = _listed(archive)
        if has_labels(members):
            return _shards(archives, left_out, has_classes=True)
        if any(images_in(members)):
            break
    listings = list(opened_ahead(archives, _listed, "tars", is_remote=archives[0].is_remote))
    return tar_tree([archive.path for archive in archives], listings, where, left_out)


def _members(archive: Archive, read: ReadAt, folder: str = "") -> tuple[ReadAt, list[Member]]:
    """The members of a tar that lie in a folder, by their names in it.

    With a function that reads them, and has the labels of a remote one at hand.
    """
    check_uncompressed(archive, read)
    labels: dict[int, bytes] = {}
    found = list_members(
        read,
        0,
        archive.size,
        archive.path,
        is_remote=archive.is_remote,
        labels=labels if archive.is_remote else None,
    )

    def read_near(start: int, count: int) -> bytes:
        near = labels.get(start)
        return near if near is not None and len(near) == count else read(start, count)

    return read_near, [
        member._replace(name=member.name.removeprefix(folder))
        for member in found
        if member.name.startswith(folder) and member.name != folder
    ]


def _listed(archive: Archive) -> list[Member]:
    """The members of a tar."""
    with archive.listed() as read:
        return _members(archive, read)[1]


def _classes(
    read: ReadAt, members: Sequence[Member], archive: Archive, left_out: LeftOut
) -> list[Member]:
    """The members of the tars in a tar, in folders that are called like these."""
    tars, where, is_remote = [], archive.path, archive.is_remote
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
        stop, called = tar.start + tar.size, f"{where}/{tar.name}"
        return list_members(read, tar.start, stop, called, is_remote=is_remote)

    opened = opened_ahead(tars, inside, "tars", is_remote=is_remote)
    listings = zip(folders, opened, strict=True)
    return [member for folder, found in listings for member in in_folder(folder, found)]


def _shards(archives: Sequence[Archive], left_out: LeftOut, *, has_classes: bool) -> TarImages:
    """Several webdataset shards; the shard is part of the key."""

    def read_one(archive: Archive) -> tuple[Samples, LeftOut]:
        own = LeftOut()
        with archive.listed() as read:
            read, members = _members(archive, read)
            return samples(read, members, archive.path, own, has_classes=has_classes), own

    shards: list[Samples] = []
    opened = opened_ahead(archives, read_one, "tars", is_remote=archives[0].is_remote)
    for number, (found, own) in enumerate(opened):
        name = archives[number].path.name
        left_out.join(own, f"{name}/")
        if not found.images:
            left_out.add(Reason.EMPTY, name)
        called = [member._replace(name=f"{name}/{member.name}") for member in found.images]
        shards.append(found._replace(images=called))
    return _of_samples(shards, archives[0].path.parent, has_classes=has_classes)


def _of_samples(shards: Sequence[Samples], where: DataPath, *, has_classes: bool) -> TarImages:
    """Images in the tars' own order, with their labels."""
    labels = [label for found in shards for label in found.labels]
    if not labels:
        raise SourceError(f"{where}: no images.")
    return TarImages(
        [tar for tar, found in enumerate(shards) for _ in found.images],
        [member for found in shards for member in found.images],
        *(numbered(labels, where) if has_classes else of_one_class(len(labels), where)),
        captions=[member for found in shards for member in found.captions],
    )


@dataclass(frozen=True)
class _Members:
    """Files in tars. table: int64 [N, 3]: which tar one is in, where it begins, and its bytes."""

    archives: Sequence[Archive]
    table: Places

    @classmethod
    def of(
        cls, archives: Sequence[Archive], tars: Sequence[int], members: Sequence[Member]
    ) -> "_Members":
        places = zip(tars, members, strict=True)
        table = [(tar, member.start, member.size) for tar, member in places]
        return cls(archives, np.array(table, np.int64))

    def read(self, index: int) -> bytes:
        """The content of one."""
        archive, start, size = map(int, self.table[index])
        with self.archives[archive].opened() as read:
            return read(start, size)

    def stamp(self, index: int) -> int:
        """A number that changes when the tar does."""
        archive, start, size = map(int, self.table[index])
        return self.archives[archive].stamp(start, size)
