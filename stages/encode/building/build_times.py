"""How long networks took for the images of a cache: measured by builds, kept beside recipes.

A column's group has the attribute `build_times`, an entry for each device that made shards of it:
its name, the images that it encoded, and the seconds in which it was busy with them.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from cache.errors import CacheWriteError, DamagedCacheError
from cache.layout import Column
from cache.metadata import read_group, update_group
from cache.stores.places import Place
from stages.encode.building.shard_making import Counts

BUILD_TIMES = "build_times"


def record_times(columns: Sequence[Column], counts: Counts) -> None:
    """Add what was counted to what the columns keep; nothing of columns that cannot be read."""
    for column in columns:
        made = {
            device: (images, counts.seconds[name, device])
            for (name, device), images in counts.encoded.items()
            if name == column.name
        }
        if made:
            with suppress(DamagedCacheError, CacheWriteError):
                kept = _by_device(read_group(column.folder))
                update_group(column.folder, {BUILD_TIMES: _added(kept, made)})


def _by_device(attributes: Mapping[str, Any]) -> dict[str, tuple[int, float]]:
    return {
        one["device"]: (one["images"], one["seconds"]) for one in attributes.get(BUILD_TIMES, ())
    }


def _added(
    kept: Mapping[str, tuple[int, float]], made: Mapping[str, tuple[int, float]]
) -> list[dict[str, Any]]:
    entries = []
    for device in sorted({*kept, *made}):
        images, seconds = kept.get(device, (0, 0.0))
        more, longer = made.get(device, (0, 0.0))
        total = {"images": images + more, "seconds": round(seconds + longer, 6)}
        entries.append({"device": device, **total})
    return entries


def seconds_per_image(path: Place, name: str) -> float | None:
    """What the network of a column took for an image, the mean over all that were measured.

    path: of the cache. None for a column without a measurement. Raises DamagedCacheError if the
    column cannot be read.
    """
    kept = _by_device(read_group(path / name))
    images = sum(images for images, _ in kept.values())
    return sum(seconds for _, seconds in kept.values()) / images if images else None


def devices(path: Place, name: str) -> list[str]:
    """The devices that a column's images were encoded on, as far as that is known."""
    return list(_by_device(read_group(path / name)))
