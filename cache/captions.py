"""Captions of images: a cache inside of the cache, whose rows are texts, and which image has which.

    NAME.zarr/captions/           a cache: format_version, rows_per_shard, permutation_seed
      rows/                       as of images; the key of a text is the text
      features/<text encoder>/    a column: tokens, length, valid, crc32c, ledger
        tokens                    float16 [M, X, E], or int8 codes with token_scale [M, X]
        length                    int16 [M]: tokens that are of the text, and not padding
        empty_tokens              float32 [X, E]; a constant, of the empty text
        empty_length              int16 [1]; a constant
      links/                      attributes: fingerprint
        key                       [I] keys of the images that have captions
        count                     int64 [I], of their captions
        text                      int64 [L], the rows of these, image after image

A text is there once, however many images have it, and stays when none has it any more. N images of
the cache, M texts, X tokens, E features.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from cache.errors import DamagedCacheError
from cache.files import atomic_folder, of_one_version, standing
from cache.metadata import is_unfinished, read_group
from cache.reader import Cache
from cache.rows import Keys, Places, RowTable, content_hash, find_keys
from cache.stores.kept_rows import BY_RANGES, StoreReading
from cache.stores.places import Place, for_zarr, reported

CAPTIONS, LINKS = "captions", "links"
FIELDS = ("key", "count", "text")


@dataclass(frozen=True)
class Links:
    """Which images have which texts.

    key: [I] of images with captions; count: [I], of their captions; text: [L], the rows of these.
    """

    key: Keys
    count: Places
    text: Places

    def fingerprint(self, texts: RowTable) -> str:
        """The sha256 of what training sees of them: images, and the texts of each."""
        digest = hashlib.sha256("\0".join(self.key.tolist()).encode())
        digest.update(self.count.astype("<i8", copy=False).tobytes())
        digest.update(texts.content_hash[self.text].astype("<u8", copy=False).tobytes())
        return digest.hexdigest()


def text_rows(texts: Sequence[str]) -> RowTable:
    """The row table of distinct texts, in their order."""
    count = len(texts)
    hashes = [content_hash(text.encode()) for text in texts]
    return RowTable(
        key=np.array(texts, np.dtypes.StringDType()),
        label=np.zeros(count, np.int32),
        source_index=np.arange(count),
        content_hash=np.array(hashes, np.uint64).reshape(count, 2),
        stamp=np.zeros(count, np.uint64),
        classes=("",),
    )


def write_links(path: Place, links: Links, texts: RowTable) -> None:
    """Replace the links of the cache at `path`, whose texts are there."""
    with atomic_folder(path / CAPTIONS / LINKS) as folder:
        attributes: dict[str, Any] = {"fingerprint": links.fingerprint(texts)}
        group = zarr.open_group(folder, mode="w", zarr_format=3, attributes=attributes)
        for name in FIELDS:
            values = getattr(links, name)
            dtype = "string" if name == "key" else values.dtype
            array = group.create_array(name, shape=values.shape, chunks="auto", dtype=dtype)
            array[:] = values


def read_links(path: Place, texts: RowTable) -> Links:
    """The links of the cache at `path`. Raises DamagedCacheError if they were altered.

    texts: those that are there, or more of them.
    """
    folder = path / CAPTIONS / LINKS

    def read() -> Links:
        attributes = read_group(standing(folder))
        try:
            with reported(folder):
                group = zarr.open_group(**for_zarr(standing(folder)), mode="r")
                arrays: dict[str, Any] = {name: group[name] for name in FIELDS}
                key = arrays["key"][:].astype(np.dtypes.StringDType())
                links = Links(key, arrays["count"][:], arrays["text"][:])
            is_as_written = links.fingerprint(texts) == attributes.get("fingerprint")
        except (OSError, ValueError, KeyError, IndexError) as error:
            raise DamagedCacheError(f"it cannot be read: {error}", where=folder) from error
        if not is_as_written:
            raise DamagedCacheError(
                "which image has which caption was edited",
                where=folder,
                remedy="Run `repa-cache build --repair` to take them from the data set again.",
            )
        return links

    return of_one_version(read, folder)


class Captions:
    """The captions of a cache's images, opened for reading.

    cache: that of the texts; start, count: int64 [N], where the texts of each image begin in
    `text`, and how many they are; text: int64 [L], rows of `cache`; fingerprint: of what images
    have which texts.
    """

    def __init__(self, path: Place, rows: RowTable, reading: StoreReading = BY_RANGES) -> None:
        self.cache = Cache(path / CAPTIONS, reading)
        links = read_links(path, self.cache.rows)
        self.fingerprint = links.fingerprint(self.cache.rows)
        place = find_keys(links.key, rows.key, np.arange(len(links.key)))
        # Images that are not among the rows were added since these were read.
        is_there = place >= 0
        self.start, self.count = (np.zeros(len(rows), np.int64) for _ in range(2))
        self.start[place[is_there]] = (np.cumsum(links.count) - links.count)[is_there]
        self.count[place[is_there]] = links.count[is_there]
        self.text = links.text

    @property
    def texts(self) -> Keys:
        """All texts, [M]."""
        return self.cache.rows.key

    def of(self, row: int) -> list[str]:
        """The captions of an image."""
        start, count = int(self.start[row]), int(self.count[row])
        found: list[str] = self.texts[self.text[start : start + count]].tolist()
        return found

    def chosen(self, rows: Places, drawn: npt.NDArray[np.uint64]) -> Places:
        """The row of a text for each of images [B], which have captions.

        drawn: a number for each, [B], of which the remainder chooses.
        """
        count = self.count[rows]
        return self.text[self.start[rows] + (drawn % count.astype(np.uint64)).astype(np.int64)]


def has_texts(path: Place) -> bool:
    """Whether the cache at `path` has one of texts inside, and not the beginning of a copy."""
    return (path / CAPTIONS).is_dir() and not is_unfinished(path / CAPTIONS)


def has_captions(path: Place) -> bool:
    """Whether the cache at `path` has captions."""
    return has_texts(path) and (path / CAPTIONS / LINKS).is_dir()


def located(path: Place, name: str) -> tuple[Place, str]:
    """The cache that a column lies in, and its name there. name: as seen from that at `path`."""
    prefix = f"{CAPTIONS}/"
    if name.startswith(prefix):
        return path / CAPTIONS, name.removeprefix(prefix)
    return path, name


def links_of(
    keys: Keys, captions: Sequence[Sequence[str]], known: RowTable | None
) -> tuple[Links, RowTable]:
    """Which images have which texts, and all texts: those that were known first.

    keys: of images, [N]; captions: of each.
    """
    texts = [] if known is None else known.key.tolist()
    row_of = dict(zip(texts, range(len(texts)), strict=True))
    text = [row_of.setdefault(one, len(row_of)) for own in captions for one in own]
    count = np.fromiter(map(len, captions), np.int64, len(captions))
    table = text_rows(list(row_of))
    has_any = count > 0
    return Links(keys[has_any], count[has_any], np.array(text, np.int64)), table


def changed_images(before: Links, now: Links, texts: RowTable) -> list[str]:
    """The keys of images that have other captions than before, or none any more.

    texts: that both are of.
    """
    then, today = _by_image(before), _by_image(now)
    hashes = texts.content_hash

    def is_changed(key: str, rows: Places) -> bool:
        others = today.get(key)
        if others is None or len(others) < len(rows):
            return True
        return not np.array_equal(hashes[rows], hashes[others[: len(rows)]])

    return [key for key, rows in then.items() if is_changed(key, rows)]


def _by_image(links: Links) -> dict[str, Places]:
    ends = np.cumsum(links.count)
    parts = np.split(links.text, ends[:-1]) if len(ends) else []
    return dict(zip(links.key.tolist(), parts, strict=True))
