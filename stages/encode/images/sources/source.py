"""What a data set is to stage one: images by key and label, and what is left out of it.

Beside it stand the settings of `[dataset]` that all sources have, or all that read files.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from posixpath import splitext
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, overload

import numpy as np
import numpy.typing as npt
import xxhash
from pydantic import PositiveFloat

from stages.encode.images.errors import SourceError as SourceError
from stages.encode.images.remote.paths import AnchoredDataPath, DataPath, Kept, RemotePath
from stages.setting_paths import AnchoredPath
from stages.setting_types import Count, OneOf, Settings

if TYPE_CHECKING:
    from cache.rows import Keys

# Names shown for each reason.
NAMED = 3
Labels = npt.NDArray[np.int32]
# Places of images in files, tables and listings.
Places = npt.NDArray[np.int64]

# What torchvision's ImageFolder lists, so that labels and order are the same.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
# Captions beside images: of all in one file, or of one in a text that is called like the image.
METADATA = "metadata.jsonl"
TEXT = ".txt"
# Far above any photograph; what claims to be larger is a mistake or an attack.
MAX_IMAGE_BYTES = 256 << 20


class Reason(StrEnum):
    """Why a file is left out of a data set, as it is told."""

    HIDDEN = "hidden"
    SYSTEM = "of the operating system"
    OURS = "of a cache or run"
    OTHER = "without an image's suffix"
    LOOSE = "in no class folder"
    LEADS_BACK = "linked back to a folder around it"
    LEADS_NOWHERE = "linked to nowhere"
    BESIDE_IMAGE = "beside a sample's image"
    EMPTY = "without images"
    BESIDE_TARS = "beside the tars"


class LeftOut:
    """Files, and whole folders, that are left out. None counts twice."""

    def __init__(self) -> None:
        self.counts: Counter[Reason] = Counter()
        self.first: dict[Reason, list[str]] = {}
        self._folders: dict[Reason, set[str]] = {}

    def add(self, reason: Reason, name: str) -> None:
        """Leave out a file, or a folder with all that is in it, whose name has a slash behind."""
        if name.endswith("/"):
            folders = self._folders.setdefault(reason, set())
            if name in folders:
                return
            folders.add(name)
        self.counts[reason] += 1
        first = self.first.setdefault(reason, [])
        if len(first) < NAMED:
            first.append(name)

    def add_others(self, names: Sequence[str], images: Iterable[str], prefix: str = "") -> None:
        """Leave out what is no image and holds no captions, beside images.

        Captions are in a text that is called like an image, or in a file for all.
        """
        if names:
            stems = {splitext(image)[0] for image in images}
        for name in names:
            stem, suffix = splitext(name)
            if f"{prefix}{name}" != METADATA and not (suffix == TEXT and stem in stems):
                self.add(Reason.OTHER, f"{prefix}{name}")

    def join(self, other: "LeftOut", prefix: str) -> None:
        """Leave out what a part of the data set leaves out, whose names begin with `prefix`."""
        self.counts.update(other.counts)
        for reason, names in other.first.items():
            first = self.first.setdefault(reason, [])
            first += [f"{prefix}{name}" for name in names[: NAMED - len(first)]]
            folders = self._folders.setdefault(reason, set())
            folders.update(f"{prefix}{name}" for name in other.folders(reason))

    def folders(self, reason: Reason) -> frozenset[str]:
        """The folders that are left out for a reason."""
        return frozenset(self._folders.get(reason, ()))

    @property
    def total(self) -> int:
        """Number of files and folders."""
        return self.counts.total()

    def __str__(self) -> str:
        """How many are left out for each reason, and the first of them; most first."""
        return "; ".join(
            f"{count:,} {reason} ({self._named(reason)})"
            for reason, count in self.counts.most_common()
        )

    def _named(self, reason: Reason) -> str:
        names = ", ".join(map(printable, self.first[reason]))
        return f"{names}, ..." if self.counts[reason] > len(self.first[reason]) else names


def printable(name: str) -> str:
    """A name that any terminal takes, also if it is no text."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


class KeyList(Sequence[str]):
    """Keys as an array [N] of numpy's strings, in half of the memory that a tuple takes."""

    def __init__(self, array: "Keys") -> None:
        self.array = array

    @classmethod
    def of(cls, names: Sequence[str]) -> "KeyList":
        """The names as such a list."""
        return cls(np.array(names, np.dtypes.StringDType()))

    def __len__(self) -> int:
        return len(self.array)

    @overload
    def __getitem__(self, place: int) -> str: ...

    @overload
    def __getitem__(self, place: slice) -> "KeyList": ...

    def __getitem__(self, place: int | slice) -> "str | KeyList":
        found = self.array[place]
        return KeyList(found) if isinstance(place, slice) else str(found)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, KeyList) and np.array_equal(self.array, other.array)


def key_array(keys: Sequence[str]) -> "Keys":
    """Keys as such an array, which is not copied if there is one."""
    return (keys if isinstance(keys, KeyList) else KeyList.of(keys)).array


class Contexts(NamedTuple):
    """Tokens of captions that a data set brings along.

    read: those of a caption, float32 [X, E], by what stands for it; empty: of the empty one.
    """

    read: Callable[[str], npt.NDArray[np.float32]]
    empty: Callable[[], npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Source:
    """A data set of N images.

    keys: [N] unique names; labels: [N] int32, positions in `classes`; read: the file content of
    an image, by its position; stamp: a number that changes whenever that content does, or 0 if
    nothing but reading it tells; block_rows: how many consecutive images are stored together
    and cheap to read together; are_keys_places: whether keys may tell where images lie, so that
    they change when files are written anew; latents: what an autoencoder gave for an image, if the
    data set brings it along: float32 [2C, h, w], mean and standard deviation, or [C, h, w] of
    latents without these; mirrored_latents: the same of the mirrored image; has_images: whether
    `read` gives images, and not merely what tells latents apart; captions: the texts that tell of
    an image, if there are any; contexts: their tokens, if the data set brings them along; left_out:
    whatever else lies in the data set, so that no image is missing without a word.

    All functions are safe to call from several threads, and in a forked process unless they read
    object stores, which they say then. They raise OSError or ValueError if one image cannot be had,
    SourceError if it is not only that one: if the data set is another than was opened, or latents
    are missing or misshapen.
    """

    keys: Sequence[str]
    labels: Labels
    classes: tuple[str, ...]
    read: Callable[[int], bytes]
    stamp: Callable[[int], int] = lambda _index: 0
    block_rows: int = 1
    are_keys_places: bool = False
    latents: Callable[[int], npt.NDArray[np.float32]] | None = None
    mirrored_latents: Callable[[int], npt.NDArray[np.float32]] | None = None
    has_images: bool = True
    captions: Callable[[int], Sequence[str]] | None = None
    contexts: Contexts | None = None
    left_out: LeftOut = field(default_factory=LeftOut)


class DatasetSettings(Settings):
    """What all sources have in common."""

    source: Annotated[str, OneOf("stages.encode.images.sources:SOURCES")]
    """What the images lie in; sample-photos brings ten photographs along."""
    resolution: Count = 256
    """Side of the centre crop in px."""
    crop: Annotated[str, OneOf("stages.encode.images.crop:CROPS")] = "adm"
    """How it is made: as ADM, DiT and REPA crop ImageNet (adm), or by cutting the middle square and
    resizing it once, as U-ViT and REPA's text-to-image crop MS-COCO (square)."""
    flip: bool = False
    """Whether the mirrored images are encoded too, for training to choose from."""
    pixels: bool = False
    """Whether the crops are kept, so that encoders can be added without the images."""
    on_error: Literal["stop", "skip"] = "stop"
    """Whether an image that cannot be decoded stops the build, or becomes an invalid row, which
    training never draws."""


class FileSettings(DatasetSettings):
    """Of a source that reads files."""

    path: AnchoredDataPath | None = None
    """Where the images are, always required: a folder, a file, or a pattern as `train-*.tar` for
    several. Of class folders, zips, tars and parquet also an address, as
    `hf://datasets/ILSVRC/imagenet-1k/data`, `s3://bucket/train` or `https://host/train.zip`."""
    local: AnchoredPath | None = None
    """A folder on this machine that keeps what is read of an address, in blocks of 4 MB, for all
    processes and later builds; by default nothing is kept."""
    local_gb: PositiveFloat | None = None
    """How much it keeps at most; what was used longest ago goes first. By default it keeps all."""
    captions: AnchoredDataPath | None = None
    """A file with the images' captions: JSON as COCO's annotations, or lines of JSON as
    `metadata.jsonl`. By default what lies beside the images: that file, or KEY.txt beside KEY.jpg
    with a caption a line, or in webdataset's shards also KEY.json."""
    classes: bool = True
    """Whether images have classes, as folders or labels; without them all are of one."""

    @property
    def local_path(self) -> Path | None:
        """The path, for sources that take no addresses."""
        return self.path if isinstance(self.path, Path) else None

    @property
    def place(self) -> DataPath | None:
        """The path, of which what is read is kept as the settings say."""
        if not isinstance(self.path, RemotePath) or self.local is None:
            return self.path
        most_bytes = math.inf if self.local_gb is None else self.local_gb * 1e9
        return self.path.keeping(Kept(self.local, most_bytes))


class SourceKind(NamedTuple):
    """A value that `dataset.source` takes.

    open: the data set of the settings; settings: their class; package: that it needs beyond those
    that are always installed, as it is imported; reads_folder: whether `dataset.path` is always a
    folder, and never a part of an archive or a pattern; brings: the array of latents that it may
    bring along, as in a cache; has_images: whether it has images beside them; brings_mirrored:
    whether also latents of mirrored images; takes_addresses: whether `dataset.path` may be one.
    """

    open: Callable[[Any], Source]
    settings: type[DatasetSettings] = FileSettings
    package: str | None = None
    reads_folder: bool = False
    brings: str | None = None
    has_images: bool = True
    brings_mirrored: bool = False
    takes_addresses: bool = False


def is_image(name: str) -> bool:
    """Whether a file is listed as an image, by its name."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def stamp_of(*numbers: int) -> int:
    """Sizes, times of change and the like as one number above 0."""
    text = b"%d" + b" %d" * (len(numbers) - 1)
    return xxhash.xxh3_64_intdigest(text % numbers) or 1
