"""Class folders with image files below them."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, overload

import numpy as np

from stages.encode.images.remote.folders import RemoteEntry, RemoteImages, remote_entries
from stages.encode.images.remote.paths import DataPath, RemotePath
from stages.encode.images.remote.requests import Status
from stages.encode.images.sources.archives import collector_paused, opened_ahead
from stages.encode.images.sources.caption_files import captions_of
from stages.encode.images.sources.names import (
    BEGINNINGS,
    check_text,
    is_ours,
    label_folders,
    of_one_class,
    passed_over,
    place,
)
from stages.encode.images.sources.source import (
    FileSettings,
    KeyList,
    LeftOut,
    Reason,
    Source,
    SourceError,
    is_image,
    stamp_of,
)

IsWanted = Callable[[str], bool]
# Device and inode of a folder, or the address of a remote one.
Identity = tuple[int, int] | str
# Those of the wanted files in each remote folder.
Statuses = dict[str, list[Status]]


class Entry(Protocol):
    """What is in a folder, as `os.scandir` gives it. path: read by errors alone."""

    @property
    def path(self) -> str | bytes: ...

    def is_dir(self) -> bool: ...

    def is_symlink(self) -> bool: ...


@collector_paused()
def image_folder(dataset: FileSettings) -> Source:
    """Class folders with image files below them, ordered and labelled as torchvision does."""
    path = dataset.place
    if path is None or not path.is_dir():
        raise SourceError(f"dataset.path: no folder {path}. Name the folder of class folders.")
    left_out, statuses = LeftOut(), Statuses()
    images = tree(path, left_out, statuses=statuses)
    if dataset.classes:
        for name in images.pop(""):
            left_out.add(Reason.LOOSE, name)
        labels, classes = label_folders(images, path, left_out)
    else:
        labels, classes = of_one_class(sum(map(len, images.values())), path)
    keys = KeyList(np.concatenate([names.array for names in images.values()]))
    files: LocalImages | RemoteImages
    if isinstance(path, RemotePath):
        files = RemoteImages(path, keys, [one for name in images for one in statuses[name]])
    else:
        files = LocalImages(path, keys)
    return Source(
        keys=keys,
        labels=labels,
        classes=classes,
        read=files.read,
        stamp=files.stamp,
        captions=captions_of(dataset.captions, keys, lambda name: on_disk(path, name).read_bytes()),
        left_out=left_out,
    )


class LocalImages:
    """Files in a folder, by their positions among its keys."""

    def __init__(self, folder: Path, keys: KeyList) -> None:
        self._folder, self._keys = folder, keys
        # As bytes: names are UTF-8, whatever the locale says.
        self._root = os.fsencode(folder)

    def read(self, index: int) -> bytes:
        """As `Source.read`."""
        return on_disk(self._folder, self._keys[index]).read_bytes()

    def stamp(self, index: int) -> int:
        """As `Source.stamp`."""
        return file_stamp(b"%b/%b" % (self._root, self._keys.array[index].encode()))


def images_below(folder: Path) -> list[str]:
    """The images in a folder and the folders in it, as torchvision orders them."""
    return files_below(folder, is_image, LeftOut())


def files_below(folder: Path, is_wanted: IsWanted, left_out: LeftOut) -> list[str]:
    """The names of some of the files in a folder and the folders in it."""
    return [name for names in tree(folder, left_out, is_wanted).values() for name in names]


def tree(
    root: DataPath,
    left_out: LeftOut,
    is_wanted: IsWanted = is_image,
    statuses: Statuses | None = None,
) -> dict[str, KeyList]:
    """The wanted files in each folder, by the path below `root` of either; that of `root` is "".

    statuses: is given those of remote files, by the same names and in the same order.
    In the order of torchvision's walk. Links to folders are followed, but not back to one that they
    are in. Raises SourceError for a folder that cannot be listed, and for names that are no text.
    """
    noted: Statuses = {} if statuses is None else statuses
    here, entries = _listed(root)
    files, folders = _sorted_out(entries, "", left_out, is_wanted)
    noted[""] = _statuses(entries, files)
    check_text([*files, *folders], root)

    def listed(folder: str) -> tuple[dict[str, list[str]], LeftOut]:
        own = LeftOut()
        return _tree_below(root, folder, here, own, is_wanted, noted), own

    found = {"": KeyList.of(files)}
    is_remote = isinstance(root, RemotePath)
    for below, own in opened_ahead(folders, listed, "folders", is_remote=is_remote):
        found |= {inside: KeyList.of(names) for inside, names in below.items()}
        left_out.join(own, "")
    return dict(sorted(found.items(), key=lambda item: place(item[0])))


def _tree_below(
    root: DataPath,
    folder: str,
    top: Identity,
    left_out: LeftOut,
    is_wanted: IsWanted,
    statuses: Statuses,
) -> dict[str, list[str]]:
    """The same of a folder in `root` and those in it. top: the identity of `root`."""
    found: dict[str, list[str]] = {}
    todo: list[tuple[str, frozenset[Identity]]] = [(folder, frozenset({top}))]
    while todo:
        inside, above = todo.pop()
        here, entries = _listed(on_disk(root, inside))
        if here in above:
            left_out.add(Reason.LEADS_BACK, f"{inside}/")
        elif is_ours(entries):
            left_out.add(Reason.OURS, f"{inside}/")
        else:
            files, folders = _sorted_out(entries, f"{inside}/", left_out, is_wanted)
            check_text([*files, *folders], on_disk(root, inside))
            found[inside] = [f"{inside}/{name}" for name in files]
            statuses[inside] = _statuses(entries, files)
            todo += [(f"{inside}/{name}", above | {here}) for name in reversed(folders)]
    return found


def _listed(folder: DataPath) -> tuple[Identity, Mapping[str, Entry]]:
    """What tells a folder from all others, and what is in it, sorted by name."""
    if isinstance(folder, RemotePath):
        return str(folder), remote_entries(folder)
    try:
        status = folder.stat()
        # As bytes: names are UTF-8, whatever the locale says.
        with os.scandir(os.fsencode(folder)) as entries:
            named = {entry.name.decode(errors="surrogateescape"): entry for entry in entries}
    except OSError as error:
        raise SourceError(f"{folder} cannot be listed: {error.strerror}.") from error
    return (status.st_dev, status.st_ino), dict(sorted(named.items()))


def _statuses(entries: Mapping[str, Entry], names: Sequence[str]) -> list[Status]:
    """Those of remote files."""
    found = (entries[name] for name in names)
    return [one.status for one in found if isinstance(one, RemoteEntry) and one.status]


def _sorted_out(
    entries: Mapping[str, Entry], prefix: str, left_out: LeftOut, is_wanted: IsWanted
) -> tuple[list[str], list[str]]:
    """The names of wanted files, and of folders to go on into."""
    files, folders, others = [], [], []
    for name, entry in entries.items():
        is_folder = _is_folder(entry)
        # A quick look first, since there may be a million.
        is_suspect = name.startswith(BEGINNINGS)
        if is_suspect and (reason := passed_over(f"{name}/" if is_folder else name)):
            left_out.add(reason[0], f"{prefix}{reason[1]}")
        elif is_folder:
            folders.append(name)
        elif is_wanted(name):
            files.append(name)
        elif not entry.is_symlink() or os.path.exists(entry.path):  # noqa: PTH110 - bytes
            others.append(name)
        elif prefix:
            left_out.add(Reason.LEADS_NOWHERE, f"{prefix}{name}")
        else:
            raise SourceError(
                f"{os.fsdecode(entry.path)} is a link that leads nowhere. If it is a class, the "
                "labels of all behind it depend on it: repair the link, or remove it."
            )
    left_out.add_others(others, files, prefix)
    return files, folders


def _is_folder(entry: Entry) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        # A link to itself: no folder, and an image that cannot be read if it is called like one.
        return False


@overload
def on_disk(root: Path, name: str) -> Path: ...


@overload
def on_disk(root: RemotePath, name: str) -> RemotePath: ...


def on_disk(root: DataPath, name: str) -> DataPath:
    """The path of a file or folder by its name in a data set, whatever the locale says."""
    if isinstance(root, RemotePath):
        return root / name
    return root / os.fsdecode(name.encode(errors="surrogateescape"))


def file_stamp(path: DataPath | bytes) -> int:
    """A file's size and the time of its last change, as one number above 0.

    0 for a file that is not to be had, which reading it will tell.
    """
    try:
        if isinstance(path, RemotePath):
            return path.stat().changed
        status = os.stat(path)  # noqa: PTH116 - a path object would take twice as long
    except OSError:
        return 0
    return stamp_of(status.st_size, status.st_mtime_ns)
