"""Names inside archives: which are refused, and how class folders are listed."""

import re
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from stages.encode.sources.source import Labels, SourceError, is_image

# Absolute, with a drive letter, backslashes or NUL, or with a way out of the archive.
UNSAFE = re.compile(r"^/|^[A-Za-z]:|[\\\0]|(?:^|/)\.\.(?:/|$)")
# Empty and `.` parts.
UNTIDY = re.compile(r"(?:^|/)\.?(?:/|$)")


def member_name(name: str, where: object) -> str:
    """The name of a member of an archive, tidied. Raises SourceError if it is refused."""
    if UNSAFE.search(name):
        raise SourceError(
            f"{where}: the name {name!r} is refused: names in a data set have to be relative, "
            "with slashes, and without `..`."
        )
    if not _is_unicode(name):
        raise SourceError(f"{where}: the name {name!r} is refused: it is not UTF-8.")
    if UNTIDY.search(name):
        return "/".join(part for part in name.split("/") if part not in {"", "."})
    return name


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_unique(names: Sequence[str], where: object) -> None:
    """Raises SourceError if a name is there twice."""
    if len(set(names)) < len(names):
        ordered = sorted(names)
        twice = next(a for a, b in pairwise(ordered) if a == b)
        raise SourceError(f"{where}: there are two of {twice!r}. Make the archive again.")


def class_folders(names: Sequence[str], where: object) -> tuple[list[int], Labels, tuple[str, ...]]:
    """Positions of the images among `names`, labels, and classes, as torchvision lists a tree.

    names: of files, and of folders with a slash behind. Raises SourceError where torchvision
    would not accept the unpacked tree, and if all images lie in folders of a single one, which
    is more likely to hold the classes than to be one.
    """
    images = [i for i, name in enumerate(names) if "/" in name and is_image(name)]
    class_of = [names[i].partition("/")[0] for i in images]
    classes = tuple(sorted(set(class_of)))
    if not images:
        raise SourceError(f"dataset.path: {where} has no images in class folders.")
    folders = {name.partition("/")[0] for name in names if "/" in name}
    if empty := sorted(folders.difference(classes)):
        raise SourceError(
            f"{where}: every folder is a class, but {', '.join(empty[:5])} has no images. "
            "Remove it from the archive; if the classes lie deeper, add their folder to "
            "dataset.path."
        )
    if len(classes) == 1 and all(names[i].count("/") > 1 for i in images):
        raise SourceError(
            f"{where}: all images lie in folders of {classes[0]!r}. If those are the classes, "
            f'set path = "{where}/{classes[0]}".'
        )
    order = sorted(images, key=lambda i: _place(names[i]))
    number = {name: label for label, name in enumerate(classes)}
    labels = np.array([number[names[i].partition("/")[0]] for i in order], np.int32)
    return order, labels, classes


def _place(name: str) -> tuple[str, str, str]:
    """Where torchvision's walk through the class folders comes to a file."""
    folder, _, file = name.rpartition("/")
    return name.partition("/")[0], folder, file
