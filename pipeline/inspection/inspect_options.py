"""What can be asked of `repa-cache inspect`."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class InspectOptions:
    """What to show of a cache.

    keys: of single images, parts of keys, or classes; neighbours: how many to find of each image;
    among: how many images to look at for that, or None for as many as is quick; has_pictures:
    whether a page is written; images: of each class that is named, or on the page if nothing is;
    seed: draws those of the page at random; folder: where to write.
    """

    keys: tuple[str, ...] = ()
    neighbours: int = 0
    among: int | None = None
    has_pictures: bool = False
    images: int = 8
    seed: int | None = None
    folder: Path | None = None
