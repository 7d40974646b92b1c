"""Tars as trees of class folders: what tells the classes of images that have no labels."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stages.encode.images.sources.left_out import EMPTY, LeftOut
from stages.encode.images.sources.names import check_unique, class_folders, passed_over
from stages.encode.images.sources.source import Labels, SourceError, is_image
from stages.encode.images.sources.tar_members import Member

# How classes of ImageNet are called, and where Hugging Face's tars of it say that of an image.
SYNSET = re.compile(r"n\d{8}")
SYNSET_BEHIND = re.compile(r"_(n\d{8})\.\w+$")


@dataclass(frozen=True)
class TarImages:
    """N images in tars. tars: [N], numbers of the tars; members: [N], called by their keys."""

    tars: Sequence[int]
    members: Sequence[Member]
    labels: Labels
    classes: tuple[str, ...]


def images_in(members: Sequence[Member]) -> Iterator[Member]:
    """The images that are not passed over."""
    return (each for each in members if is_image(each.name) and not passed_over(each.name))


def in_folder(folder: str, members: Sequence[Member]) -> list[Member]:
    """The members of a tar as in a folder, which is there even if the tar is empty."""
    inside = (member._replace(name=f"{folder}/{member.name}") for member in members)
    return [Member(f"{folder}/", 0, 0), *inside]


def tar_tree(
    paths: Sequence[Path], listings: Sequence[Sequence[Member]], where: object, left_out: LeftOut
) -> TarImages:
    """The images of several tars, by class folders or by what else tells their classes.

    If images lie in no folder, or all in one of the same name, classes are the tars, unless these
    are numbered as shards are. Raises SourceError if nothing tells the classes.
    """
    names = [member.name for members in listings for member in images_in(members)]
    tops = {name.partition("/")[0] if "/" in name else "" for name in names}
    if len(tops) == 1 and not _tell_synsets(names):
        if any(name.count("/") > 1 for name in names):
            raise SourceError(
                f"{where}: all images lie in folders of {tops.pop()!r} inside the tars. Pack the "
                "class folders alone, or name one tar and the folder in it (`x.tar/train`)."
            )
        if _are_classes(paths):
            pairs = zip(paths, listings, strict=True)
            return one_tree([in_folder(path.stem, found) for path, found in pairs], where, left_out)
        if tops == {""}:
            raise SourceError(
                f"{where}: {len(names)} images have no label: {names[0]} has neither .cls nor "
                ".json beside it, lies in no class folder, and its tar is not called after a class."
            )
    for path, members in zip(paths, listings, strict=True):
        if not any(images_in(members)):
            left_out.add(EMPTY, path.name)
    return one_tree(listings, where, left_out)


def one_tree(listings: Sequence[Sequence[Member]], where: object, left_out: LeftOut) -> TarImages:
    """The images of tars that are parts of one tree of class folders."""
    members = [member for found in listings for member in found]
    tars = np.repeat(np.arange(len(listings)), [len(found) for found in listings])
    names = [member.name for member in members]
    if _tell_synsets([member.name for member in images_in(members)]):
        matches = map(SYNSET_BEHIND.search, names)
        names = [f"{m[1]}/{name}" if m else name for name, m in zip(names, matches, strict=True)]
    order, labels, classes = class_folders(names, where, left_out)
    found = [members[i] for i in order]
    check_unique([member.name for member in found], where)
    return TarImages(tars[order].tolist(), found, labels, classes)


def _tell_synsets(names: Sequence[str]) -> bool:
    """Whether images that lie in no folder are called after their classes."""
    return bool(names) and all("/" not in n and SYNSET_BEHIND.search(n) for n in names)


def _are_classes(paths: Sequence[Path]) -> bool:
    """Whether tars are called after classes, and not numbered as shards are."""
    if all(SYNSET.fullmatch(path.stem) for path in paths):
        return True
    return len(paths) > 1 and not any(path.stem[-1:].isdigit() for path in paths)
