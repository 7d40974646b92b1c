"""What lies where in tar files, and what tells the classes of the images in them."""

import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple, cast

import numpy as np

from stages.encode.images.remote.paths import DataPath
from stages.encode.images.sources.archives import Archive, ReadAt, locate, means_several
from stages.encode.images.sources.names import check_unique, class_folders, member_name, passed_over
from stages.encode.images.sources.source import (
    MAX_IMAGE_BYTES,
    Labels,
    LeftOut,
    Reason,
    SourceError,
    is_image,
)
from stages.encode.images.sources.tar_headers import Headers

TAR = ".tar"
# How names of files tell the splits of a data set apart.
SPLITS = ("train", "val", "test")
SPLIT = re.compile(rf"(?<![a-z])({'|'.join(SPLITS)})")
# First bytes of gzip, bzip2, xz and zstd.
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
COMPRESSED_NAME = re.compile(r"(.+)\.(?:tar\.(?:gz|bz2|xz|zst)|tgz|tbz2?|txz|tzst)", re.IGNORECASE)
# How classes of ImageNet are called, and where Hugging Face's tars of it say that of an image.
SYNSET = re.compile(r"n\d{8}")
SYNSET_BEHIND = re.compile(r"_(n\d{8})\.\w+$")


# Files beside images in webdataset's shards, and how large they are where they are labels.
LABELS, MAX_LABEL_BYTES = (".cls", ".json"), 16 << 10


class Member(NamedTuple):
    """A plain file in a tar: where its data begin, and their bytes. Folders end with a slash."""

    name: str
    start: int
    size: int


def list_members(
    read: ReadAt,
    start: int,
    stop: int,
    where: object,
    *,
    is_remote: bool = False,
    labels: dict[int, bytes] | None = None,
) -> list[Member]:
    """The files and folders of the tar that lies between two offsets.

    is_remote: whether the file is; labels: is given the content of the files beside images, by
    where they begin, which is near at hand here and nowhere else.
    Raises SourceError if it is cut off or damaged, or has members that are refused.
    """
    members = []
    found = Headers(read, start, stop, is_remote=is_remote)
    headers = cast("BinaryIO", found)
    try:
        with tarfile.open(mode="r:", fileobj=headers, encoding="utf-8") as tar:
            while (info := tar.next()) is not None:
                # tarfile would keep all of them: gigabytes for millions of files.
                tar.members.clear()  # type: ignore[attr-defined]
                if tar.offset <= info.offset:
                    raise tarfile.ReadError(f"a member of negative size at byte {info.offset}")
                if member := _member(info, where):
                    members.append(member)
                    if labels is not None and _is_label(member, stop):
                        labels[member.start] = found.peek(member.start, member.size)
        found.seek(tar.offset)
        end = found.read(tarfile.BLOCKSIZE)
    except (tarfile.TarError, ValueError, OverflowError, RecursionError, OSError) as error:
        raise SourceError(f"{where} is no tar file, or is damaged: {error}.") from error
    # Where a header is damaged, tarfile sees the end.
    if len(end) < tarfile.BLOCKSIZE or any(end):
        raise SourceError(f"{where} is cut off or damaged at byte {tar.offset}.")
    check_unique([member.name for member in members if not member.name.endswith("/")], where)
    return members


def _member(info: tarfile.TarInfo, where: object) -> Member | None:
    """A member that may matter. Raises SourceError for an image that is no plain file."""
    name = member_name(info.name, where)
    if info.isdir():
        return Member(f"{name}/", 0, 0) if name else None
    is_wanted = is_image(name) or name.endswith(TAR)
    if not info.isreg() or info.issparse():
        if is_wanted:
            raise SourceError(
                f"{name} is a link, sparse or a device",
                where=where,
                remedy="Make the archive again with `tar --hard-dereference -h`.",
            )
        return None
    if is_image(name) and info.size > MAX_IMAGE_BYTES:
        raise SourceError(f"{where}: {name} claims to have more than {MAX_IMAGE_BYTES >> 20} MB.")
    return Member(name, info.offset_data, info.size)


def _is_label(member: Member, stop: int) -> bool:
    """Whether a file may tell the label of an image, and is no larger than a header."""
    is_near = member.size <= MAX_LABEL_BYTES and member.start + member.size <= stop
    return is_near and member.name.lower().endswith(LABELS)


def check_uncompressed(archive: Archive, read: ReadAt) -> None:
    """Raises SourceError for a compressed file, in which nothing can be found at random."""
    begin = read(0, min(archive.size, 8))
    if begin.startswith(COMPRESSED):
        raise SourceError(
            f"{archive.path} is compressed, and allows no reading at random",
            remedy="Decompress it first (gunzip, bunzip2, unxz or unzstd).",
        )


def tar_files(path: DataPath | None, left_out: LeftOut) -> list[Archive]:
    """The tars of one split that are in a folder or of a pattern, sorted by name.

    Raises SourceError for those of that split that are there in compressed form only.
    """
    if path is None or not path.is_dir():
        return _files_of(path)
    names = sorted(f"{entry.name}/" if entry.is_dir() else entry.name for entry in path.iterdir())
    tars = [name for name in names if name.endswith(TAR) and not passed_over(name)]
    splits = {_split_of(name) for name in tars}
    packed = [
        name
        for name in names
        if (match := COMPRESSED_NAME.fullmatch(name)) and f"{match[1]}{TAR}" not in tars
    ]
    if lacking := [name for name in packed if not tars or _split_of(name) in splits]:
        raise SourceError(
            f"dataset.path: no {TAR} files at {path} of {', '.join(lacking[:3])}; compressed ones "
            "are not read, as nothing is found in them at random. Decompress them first "
            "(gunzip -k, bunzip2 -k, unxz -k or unzstd), or name the others by a pattern."
        )
    for name in names:
        if name not in tars:
            left_out.add(*(passed_over(name) or (Reason.BESIDE_TARS, name)))
    return _files_of(path)


def _files_of(path: DataPath | None) -> list[Archive]:
    """The files of one split, sorted by name: a file, those in a folder, or those of a pattern."""
    if path is None or not means_several(path):
        return [locate(path)[0]]
    folder, pattern = (path, f"*{TAR}") if path.is_dir() else (path.parent, path.name)
    found: list[DataPath] = sorted(folder.glob(pattern), key=str)
    files = [file for file in found if not file.name.startswith(".") and not file.is_dir()]
    if not files:
        raise SourceError(f"dataset.path: no {TAR} files at {path}; compressed ones are not read.")
    splits = {_split_of(file.name) for file in files}
    if len(splits) > 1:
        named = ", ".join(sorted(splits))
        wanted = next(split for split in SPLITS if split in splits)
        raise SourceError(
            f"dataset.path: the files at {path} are of several splits: {named}. "
            f'Name one by a pattern: path = "{folder}/*{wanted}*{TAR}".'
        )
    return [Archive.at(file) for file in files]


def _split_of(name: str) -> str:
    """The split that a file belongs to by its name."""
    match = SPLIT.search(name)
    return match[0] if match else "other"


@dataclass(frozen=True)
class TarImages:
    """N images in tars.

    tars: [N], numbers of the tars; members: [N], called by their keys; captions: [N], files in the
    same tars that may tell captions, or nothing.
    """

    tars: Sequence[int]
    members: Sequence[Member]
    labels: Labels
    classes: tuple[str, ...]
    captions: Sequence[Member | None] = ()


def images_in(members: Sequence[Member]) -> Iterator[Member]:
    """The images that are not passed over."""
    return (each for each in members if is_image(each.name) and not passed_over(each.name))


def in_folder(folder: str, members: Sequence[Member]) -> list[Member]:
    """The members of a tar as in a folder, which is there even if the tar is empty."""
    inside = (member._replace(name=f"{folder}/{member.name}") for member in members)
    return [Member(f"{folder}/", 0, 0), *inside]


def tar_tree(
    paths: Sequence[DataPath],
    listings: Sequence[Sequence[Member]],
    where: object,
    left_out: LeftOut,
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
        # Called after classes, and not numbered as shards are.
        are_unnumbered = len(paths) > 1 and not any(path.stem[-1:].isdigit() for path in paths)
        if are_unnumbered or all(SYNSET.fullmatch(path.stem) for path in paths):
            pairs = zip(paths, listings, strict=True)
            return one_tree([in_folder(path.stem, found) for path, found in pairs], where, left_out)
        if tops == {""}:
            raise SourceError(
                f"{where}: {len(names)} images have no label: {names[0]} has neither .cls nor "
                ".json beside it, lies in no class folder, and its tar is not called after a class."
            )
    for path, members in zip(paths, listings, strict=True):
        if not any(images_in(members)):
            left_out.add(Reason.EMPTY, path.name)
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
