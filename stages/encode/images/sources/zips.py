"""Images in a zip file, read in place."""

import struct
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from stat import S_ISLNK

import numpy as np

from stages.encode.images.remote.paths import DataPath
from stages.encode.images.sources.archives import Archive, collector_paused, locate
from stages.encode.images.sources.caption_files import captions_of
from stages.encode.images.sources.names import (
    DATASET_JSON,
    MAX_JSON_BYTES,
    candidates,
    check_unique,
    class_folders,
    labelled_images,
    member_name,
    of_one_class,
    parse_labels,
)
from stages.encode.images.sources.source import (
    MAX_IMAGE_BYTES,
    METADATA,
    TEXT,
    FileSettings,
    Labels,
    LeftOut,
    Places,
    Source,
    SourceError,
    is_image,
)
from stages.progress import progress

# A member's header up to its name (APPNOTE.TXT, 4.3.7): how it begins, lengths of name and extra.
HEADER = struct.Struct("<4s22xHH")
# Of its name and extra fields together, as far as a header and its data are read in one go.
MOST_BETWEEN = 1024
SIGNATURE = b"PK\3\4"
ENCRYPTED_FLAG = 0x1
METHODS = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})


@collector_paused()
def zip_archive(dataset: FileSettings) -> Source:
    """A zip file of class folders, or of images that a `dataset.json` labels (EDM2, REPA).

    Class folders are ordered and labelled as torchvision does with the unpacked tree, other
    images by name. A path that goes on inside the file (`train.zip/train`) means that folder.
    """
    left_out = LeftOut()
    with progress(f"listing {dataset.path}", None, ""):
        joined, labels, classes, members, beside = _open(dataset, left_out)
    # Names of their own, not those that lie scattered between the entries of the directory: a
    # million of them would keep its memory, ten times theirs, from being given back.
    keys = tuple(joined.split("\0"))
    captions = captions_of(dataset.captions, keys, beside.read)
    return Source(
        keys, labels, classes, members.read, members.stamp, captions=captions, left_out=left_out
    )


def _open(
    dataset: FileSettings, left_out: LeftOut
) -> tuple[str, Labels, tuple[str, ...], "_Members", "_Beside"]:
    """Keys with NUL between them, labels, classes, images, and what may tell their captions."""
    path = dataset.place
    archive, folder = locate(path)
    directory = _Directory.of(archive)
    entries = _below(directory, folder)
    names = tuple(entries)
    if DATASET_JSON in entries:
        where = f"{archive.path}/{folder}{DATASET_JSON}"
        try:
            content = directory.members([entries[DATASET_JSON]]).read(0)
        except (OSError, ValueError) as error:
            raise SourceError(f"{where} cannot be read: {error}.") from error
        listed = parse_labels(content, where)
        order, labels, classes = labelled_images(names, listed, where, left_out)
    elif dataset.classes:
        order, labels, classes = class_folders(names, path, left_out)
    else:
        order = [i for i in candidates(names, left_out) if is_image(names[i])]
        labels, classes = of_one_class(len(order), path)
    keys = [names[i] for i in order]
    texts = [name for name in names if name.endswith(TEXT) or name == METADATA]
    beside = _Beside(texts, directory.members([entries[name] for name in texts]))
    members = directory.members([entries[key] for key in keys])
    return "\0".join(keys), labels, classes, members, beside


class _Beside:
    """Files of captions in a zip file, by their names."""

    def __init__(self, names: Sequence[str], members: "_Members") -> None:
        self._numbers = dict(zip(names, range(len(names)), strict=True))
        self._members = members

    def read(self, name: str) -> bytes:
        """The content of one. Raises OSError if there is none of that name."""
        if name not in self._numbers:
            raise FileNotFoundError(name)
        return self._members.read(self._numbers[name])


@dataclass(frozen=True)
class _Members:
    """Some members of a zip file.

    table: int64 [N, 6]: where a member's header begins, the first byte that is not its own,
    packed bytes, bytes, CRC-32, method.
    """

    archive: Archive
    table: Places

    def read(self, index: int) -> bytes:
        """The content of a member. Raises OSError or ValueError if it is damaged."""
        start, stop, packed, size, crc, method = self.table[index].tolist()
        with self.archive.opened() as read:
            # In one go, unless there is more than its name between its header and its data.
            near = read(start, min(stop - start, HEADER.size + MOST_BETWEEN + packed))
            signature, name_bytes, extra_bytes = HEADER.unpack(near[: HEADER.size])
            data = start + HEADER.size + name_bytes + extra_bytes
            if signature != SIGNATURE or data + packed > stop:
                raise ValueError(f"{self.archive.path}: no intact member at byte {start}")
            is_near = data + packed <= start + len(near)
            content = near[data - start :][:packed] if is_near else read(data, packed)
        if method == zipfile.ZIP_DEFLATED:
            content = _inflated(content, size)
        if zlib.crc32(content) != crc:
            raise ValueError(f"{self.archive.path}: wrong CRC-32 of the member at byte {start}")
        return content

    def stamp(self, index: int) -> int:
        """A number that changes when the member does."""
        start, crc = self.table[index, [0, 4]].tolist()
        return self.archive.stamp(start, crc)


def _inflated(content: bytes, size: int) -> bytes:
    """Deflated data of a known size; a bomb is not inflated beyond it."""
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        # One byte more than there should be, so that the end of the stream is reached.
        inflated = stream.decompress(content, size + 1)
    except zlib.error as error:
        raise ValueError(f"deflated data are damaged: {error}") from None
    if len(inflated) != size or not stream.eof:
        raise ValueError(f"deflated data do not have the {size} bytes that they should")
    return inflated


@dataclass(frozen=True)
class _Directory:
    """The directory of a zip file.

    boundaries: int64 [N + 1]: where members begin, in the order of the file, and where all end.
    """

    archive: Archive
    entries: Sequence[zipfile.ZipInfo]
    boundaries: Places

    @classmethod
    def of(cls, archive: Archive) -> "_Directory":
        """Read the directory. Raises SourceError if it is damaged or its entries overlap."""
        try:
            with zipfile.ZipFile(archive.for_library()) as file:
                entries, end = file.infolist(), file.start_dir
        except UnicodeDecodeError as error:
            raise SourceError(
                f"the name {error.object!r} is refused: it is not UTF-8, though the archive says "
                "so",
                where=archive.path,
                remedy="Make the archive again.",
            ) from error
        except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, EOFError) as error:
            raise SourceError(
                f"{archive.path} is no zip file, or is cut off or damaged: {error}."
            ) from error
        boundaries = [*sorted(entry.header_offset for entry in entries), end]
        if boundaries[0] < 0 or any(b - a < HEADER.size for a, b in pairwise(boundaries)):
            raise SourceError(f"{archive.path}: members overlap. Make the archive again.")
        return cls(archive, entries, np.array(boundaries, np.int64))

    def members(self, entries: Sequence[zipfile.ZipInfo]) -> _Members:
        """Some of the members, to be read."""
        start = np.array([entry.header_offset for entry in entries], np.int64)
        stop = self.boundaries[np.searchsorted(self.boundaries, start, side="right")]
        sizes = [(e.compress_size, e.file_size, e.CRC, e.compress_type) for e in entries]
        table = np.column_stack([start, stop, np.array(sizes, np.int64)])
        if (start + HEADER.size + table[:, 2] > stop).any():
            raise SourceError(f"{self.archive.path}: members overlap. Make the archive again.")
        return _Members(self.archive, table)


def _below(directory: _Directory, folder: str) -> dict[str, zipfile.ZipInfo]:
    """The entries in a folder, by their name in it; folders have a slash behind."""
    where = directory.archive.path
    names = []
    for entry in directory.entries:
        name = member_name(entry.orig_filename, where)
        names.append(f"{name}/" if entry.orig_filename.endswith("/") else name)
        if is_image(name) or name == f"{folder}{DATASET_JSON}":
            _check(entry, where)
    check_unique(names, where)
    return {
        name.removeprefix(folder): entry
        for name, entry in zip(names, directory.entries, strict=True)
        if name.startswith(folder) and name not in {folder, "/"}
    }


def _check(entry: zipfile.ZipInfo, where: DataPath) -> None:
    """Raises SourceError for a member that cannot be read, or that no image should look like."""
    name, limit = entry.filename, MAX_IMAGE_BYTES if is_image(entry.filename) else MAX_JSON_BYTES
    if entry.flag_bits & ENCRYPTED_FLAG:
        raise SourceError(f"{where}: {name} is encrypted. Make the archive without a password.")
    if entry.compress_type not in METHODS:
        raise SourceError(
            f"{name} is compressed by method {entry.compress_type}; only stored and deflated "
            "members are read",
            where=where,
            remedy="Make the archive again with `zip -0 -r`.",
        )
    if S_ISLNK(entry.external_attr >> 16):
        raise SourceError(f"{where}: {name} is a link. Make the archive without `zip -y`.")
    if max(entry.file_size, entry.compress_size) > limit:
        raise SourceError(f"{where}: {name} claims to have more than {limit >> 20} MB.")
