"""The rules for names and labels in data sets, in folders and archives alike.

Which names are refused, which are no images' whatever they end with, and which folders are classes.
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from posixpath import commonpath, dirname

import numpy as np

from stages.encode.images.sources.source import (
    Labels,
    LeftOut,
    Reason,
    SourceError,
    is_image,
    printable,
)

DATASET_JSON = "dataset.json"
# Twelve million images: the largest that is parsed at once.
MAX_JSON_BYTES = 512 << 20
# Beyond any labelled data set (ImageNet-21k has 21 841): what is larger is no class.
MAX_CLASSES = 100_000
# Absolute, with a drive letter, backslashes or NUL, or with a way out of the archive.
UNSAFE = re.compile(r"^/|^[A-Za-z]:|[\\\0]|(?:^|/)\.\.(?:/|$)")
# Empty and `.` parts.
UNTIDY = re.compile(r"(?:^|/)\.?(?:/|$)")
# What macOS, Synology, ext4 and Windows put into folders; some hold images, as thumbnails.
SYSTEM_FOLDERS = ("__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information")
PASSED_OVER = re.compile(
    rf"(?:^|/)(?P<part>(?P<hidden>\.)|(?:{'|'.join(map(re.escape, SYSTEM_FOLDERS))})(?=/|$))"
)
# Of the names that may be passed over, as far as they are no paths.
BEGINNINGS = (".", *SYSTEM_FOLDERS)
# By which a folder is known as a Zarr group, of either version, or as that of a run.
MARKERS = ("zarr.json", ".zgroup", "log.jsonl")
MARKED = tuple(f"/{marker}" for marker in MARKERS)
# A folder that is called after a split, as `train`, `ILSVRC2012_val` or `test2017`.
SPLIT_FOLDER = re.compile(
    r"(?:.*[^a-z])?(?:train|training|val|valid|validation|test|testing)(?:[^a-z].*)?"
)
NAMED = 5


def numbered(labels: Sequence[int], where: object) -> tuple[Labels, tuple[str, ...]]:
    """Labels, and the classes 0 to the largest, whose names are their numbers."""
    least, largest = min(labels), max(labels)
    if least < 0:
        raise SourceError(f"{where}: label {least}: images without a class cannot be used.")
    if largest >= MAX_CLASSES:
        raise SourceError(f"{where}: label {largest}: more than {MAX_CLASSES} classes.")
    return np.array(labels, np.int32), tuple(map(str, range(largest + 1)))


def of_one_class(images: int, where: object) -> tuple[Labels, tuple[str, ...]]:
    """The labels of images without classes, which are all of one."""
    if not images:
        raise SourceError(f"dataset.path: {where} has no images.")
    return np.zeros(images, np.int32), ("all",)


def parse_labels(content: bytes, where: object) -> dict[str, int]:
    """The label of each file that a `dataset.json` names."""
    if len(content) > MAX_JSON_BYTES:
        raise SourceError(f"{where}: larger than {MAX_JSON_BYTES >> 20} MB.")
    try:
        entries = json.loads(content)["labels"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise SourceError(f'{where}: no {{"labels": [[name, label], ...]}}: {error!r}.') from None
    if entries is None:
        raise SourceError(
            "labels are null: the images have no classes, but training needs them",
            where=where,
            remedy="Give all of them label 0 for a single class.",
        )
    labels: dict[str, int] = {}
    for entry in entries if isinstance(entries, list) else [entries]:
        match entry:
            case [str(name), int(label)] if not isinstance(label, bool):
                if labels.setdefault(member_name(name, where), label) != label:
                    raise SourceError(f"{where}: two labels for {name!r}.")
            case _:
                raise SourceError(f"{where}: expected [name, label] with a number, got {entry!r}.")
    return labels


def labelled_images(
    names: Sequence[str], labels: Mapping[str, int], where: object, left_out: LeftOut
) -> tuple[list[int], Labels, tuple[str, ...]]:
    """Positions of the images among `names`, sorted by name, labels and classes.

    Raises SourceError unless images and labels are of each other.
    """
    order, others = [], []
    for i in candidates(names, left_out):
        if is_image(names[i]):
            order.append(i)
        elif not names[i].endswith("/") and names[i] != DATASET_JSON:
            others.append(names[i])
    order.sort(key=names.__getitem__)
    images = [names[i] for i in order]
    left_out.add_others(others, images)
    if lacking := set(images).symmetric_difference(labels):
        name = min(lacking)
        what = "no such image" if name in labels else "no label"
        raise SourceError(f"{where}: {what} for {name!r}, and {len(lacking) - 1} more like it.")
    if not images:
        raise SourceError(f"{where}: no images.")
    return order, *numbered([labels[name] for name in images], where)


def member_name(name: str, where: object) -> str:
    """The name of a member of an archive, tidied. Raises SourceError if it is refused."""
    if UNSAFE.search(name):
        raise SourceError(
            f"{where}: the name {name!r} is refused: names in a data set have to be relative, "
            "with slashes, and without `..`."
        )
    check_text([name], where)
    if UNTIDY.search(name):
        return "/".join(part for part in name.split("/") if part not in {"", "."})
    return name


def check_text(names: Sequence[str], where: object) -> None:
    """Raises SourceError for a name that is no UTF-8."""
    with suppress(UnicodeEncodeError):
        # All at once, since there may be a million.
        "".join(names).encode()
        return
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise SourceError(
                f"the name '{printable(name)}' is refused: it is not UTF-8",
                where=where,
                remedy="Rename it.",
            ) from None


def check_unique(names: Sequence[str], where: object) -> None:
    """Raises SourceError if a name is there twice."""
    if len(set(names)) < len(names):
        ordered = sorted(names)
        twice = next(a for a, b in pairwise(ordered) if a == b)
        raise SourceError(f"{where}: there are two of {twice!r}. Make the archive again.")


def passed_over(name: str) -> tuple[Reason, str] | None:
    """Why a name is no image's, whatever it ends with, and the file or folder that it is or is in.

    None for others: hidden names, as of editors and of macOS, and what operating systems add.
    """
    match = PASSED_OVER.search(name)
    if match is None:
        return None
    end = name.find("/", match.start("part")) + 1
    return Reason.HIDDEN if match["hidden"] else Reason.SYSTEM, name[:end] if end else name


def is_ours(files: Collection[str]) -> bool:
    """Whether a folder with these files is a Zarr group, as a cache, or a run."""
    return any(marker in files for marker in MARKERS)


def candidates(names: Sequence[str], left_out: LeftOut) -> list[int]:
    """Positions of the names in an archive that neither are passed over nor lie in a cache or run.

    names: of files, and of folders with a slash behind.
    """
    ours = sorted({f"{dirname(name)}/" for name in names if name.endswith(MARKED)})
    # The outermost comes first, and is found first.
    inside_ours = re.compile("|".join(map(re.escape, ours)) or "(?!)")
    kept = []
    for position, name in enumerate(names):
        if match := inside_ours.match(name):
            left_out.add(Reason.OURS, match[0])
        elif reason := passed_over(name):
            left_out.add(*reason)
        else:
            kept.append(position)
    return kept


def class_folders(
    names: Sequence[str], where: object, left_out: LeftOut
) -> tuple[list[int], Labels, tuple[str, ...]]:
    """Positions of the images among `names`, labels, and classes, as torchvision lists a tree.

    names: of files, and of folders with a slash behind. Raises SourceError as `label_folders`.
    """
    images: dict[str, list[int]] = {}
    others = []
    for position in candidates(names, left_out):
        folder, _, file = names[position].rpartition("/")
        inside = images.setdefault(folder, [])
        if is_image(file):
            inside.append(position)
        elif file:
            others.append(names[position])
    if others:
        inside_any = (names[position] for inside in images.values() for position in inside)
        left_out.add_others(others, inside_any)
    for position in images.pop("", ()):
        left_out.add(Reason.LOOSE, names[position])
    for inside in images.values():
        inside.sort(key=names.__getitem__)
    in_order = dict(sorted(images.items(), key=lambda item: place(item[0])))
    labels, classes = label_folders(in_order, where, left_out)
    return [position for inside in in_order.values() for position in inside], labels, classes


def place(folder: str) -> tuple[str, str]:
    """Where torchvision's walk through the class folders comes to a folder."""
    return folder.partition("/")[0], folder


def label_folders(
    images: Mapping[str, Sequence[object]], where: object, left_out: LeftOut
) -> tuple[Labels, tuple[str, ...]]:
    """Labels of the images in class folders, and the classes.

    images: those in each folder, by its path in the data set, in the order of `place`. Raises
    SourceError where torchvision would not accept the tree, and for folders of class folders.
    """
    counts = {folder: len(inside) for folder, inside in images.items() if inside}
    if not counts:
        loose = left_out.counts[Reason.LOOSE]
        lie = f": {loose:,} lie in none" if loose else ""
        raise SourceError(f"dataset.path: {where} has no images in class folders{lie}.")
    tops = [folder.partition("/")[0] for folder in counts]
    classes = tuple(sorted(set(tops)))
    _check_depth(counts, classes, where)
    # Where caches and runs were put that are left out.
    shelves = {folder.partition("/")[0] for folder in left_out.folders(Reason.OURS)}
    folders = {folder.partition("/")[0] for folder in images}
    if empty := sorted(folders - shelves - set(classes)):
        more = f" and {len(empty) - NAMED} more" if len(empty) > NAMED else ""
        raise SourceError(
            f"{where}: every folder is a class, but {', '.join(empty[:NAMED])}{more} has no "
            "images. Remove it if it is no class, or add its images: the labels of all classes "
            "behind it depend on it. If the classes lie deeper, add their folder to dataset.path."
        )
    number = {name: label for label, name in enumerate(classes)}
    return np.repeat([number[top] for top in tops], list(counts.values())).astype(np.int32), classes


def _check_depth(folders: Collection[str], classes: Sequence[str], where: object) -> None:
    """Raises SourceError if the folders in the classes are more likely to be the classes.

    folders: with images in them.
    """
    flat = {folder for folder in folders if "/" not in folder}
    if len(classes) == 1 and not flat:
        around = commonpath([dirname(folder) for folder in folders])
        raise SourceError(
            f"{where}: all images lie in folders of {around!r}. If those are the classes, set "
            f'path = "{where}/{around}"; if it is the only class, put the images into it directly.'
        )
    splits = [name for name in classes if SPLIT_FOLDER.fullmatch(name.lower())]
    deep = [name for name in splits if name not in flat]
    if len(splits) > 1 and (deep or len(splits) == len(classes)):
        choices = " or ".join(f'"{where}/{name}"' for name in deep or splits)
        raise SourceError(
            f"{', '.join(splits)} look like the splits of a data set, which would each be a class",
            where=where,
            remedy=f"Choose one: path = {choices}.",
        )
