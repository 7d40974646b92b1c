"""How a data set differs from the rows of a cache, and the rows that the cache has after it."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from cache.errors import RowsChangedError
from cache.order import block_permutation
from cache.rows import NUMBERS, Places, RowTable, find_keys
from cache.stores.places import Place

NAMED_KEYS = 5


@dataclass(frozen=True)
class RowChanges:
    """How a data set differs from a row table: keys of images, in the table's or its order.

    place: where each row of the table is in the data set, -1 if it vanished; new_classes,
    lost_classes: names of classes that only the data set or only the table has.
    """

    changed: tuple[str, ...]
    vanished: tuple[str, ...]
    added: tuple[str, ...]
    relabelled: tuple[str, ...]
    place: Places = field(compare=False, repr=False)
    new_classes: tuple[str, ...] = ()
    lost_classes: tuple[str, ...] = ()

    def check(self, path: Place, *, may_update: bool) -> None:
        """Raise RowsChangedError, naming the images, if rows that are cached cannot be kept.

        may_update: whether changed and relabelled images may be taken over.
        """
        lost = {"vanished": self.vanished}
        altered = {"changed": self.changed, "labelled otherwise": self.relabelled}
        kinds = lost if may_update else {**altered, **lost}
        if listing := "; ".join(f"{len(k)} {what}: {_named(k)}" for what, k in kinds.items() if k):
            update = "" if self.vanished else "take them over (`repa-cache build --update`), "
            raise RowsChangedError(
                f"the data set is not the one that it was built from ({listing})",
                where=path,
                remedy=(
                    f"{self._why_labels_moved}Restore the images, {update}or build another cache "
                    "(cache.path)."
                ),
            )

    @property
    def _why_labels_moved(self) -> str:
        """Which classes came or went, since each moves the labels of those behind it."""
        kinds = {"new": self.new_classes, "gone": self.lost_classes}
        listing = "; ".join(f"{what}: {_named(names)}" for what, names in kinds.items() if names)
        if not (self.relabelled and listing):
            return ""
        return (
            f"Its classes are others ({listing}), which moves labels: runs that were trained go by "
            "the earlier ones. " + ("Take out what is no class. " if self.new_classes else "")
        )


def compare(cached: RowTable, current: RowTable) -> RowChanges:
    """How the data set that `current` lists differs from the rows of a cache."""
    place = find_keys(cached.key, current.key, cached.source_index)
    here, there = np.flatnonzero(place >= 0), place[place >= 0]
    is_new = np.ones(len(current), np.bool_)
    is_new[there] = False
    changed = (cached.content_hash[here] != current.content_hash[there]).any(axis=1)
    label, current_label = cached.label[here], current.label[there]
    # Numbers of names, by the labels of the cache and then by those of the data set.
    _, name = np.unique([*cached.classes, *current.classes], return_inverse=True)
    relabelled = (label != current_label) | (
        name[label] != name[len(cached.classes) + current_label]
    )
    return RowChanges(
        changed=tuple(cached.key[here[changed]].tolist()),
        vanished=tuple(cached.key[place < 0].tolist()),
        added=tuple(current.key[is_new].tolist()),
        relabelled=tuple(cached.key[here[relabelled]].tolist()),
        place=place,
        new_classes=_without(current.classes, cached.classes),
        lost_classes=_without(cached.classes, current.classes),
    )


def _without(names: Sequence[str], others: Sequence[str]) -> tuple[str, ...]:
    return tuple(sorted(set(names).difference(others)))


def merged(
    cached: RowTable, current: RowTable, seed: int, block: int = 1, place: Places | None = None
) -> RowTable:
    """The rows of a cache as the data set has them, in the cache's order, and the added ones.

    block: as in `RowTable.permuted`; place: that of the changes, if they are known. Raises
    KeyError unless every key of `cached` is in `current`.
    """
    kept = find_keys(cached.key, current.key, cached.source_index) if place is None else place
    if (kept < 0).any():
        raise KeyError(cached.key[kept < 0][0])
    is_new = np.ones(len(current), np.bool_)
    is_new[kept] = False
    added = np.flatnonzero(is_new)
    # Numbered by where it begins, so that no two additions are permuted alike.
    shuffled = added[block_permutation(len(added), seed, len(cached), block)]
    # Fetching a million strings from all over the memory takes longer than all else.
    key = np.concatenate([cached.key, current.key[shuffled]]) if len(added) else cached.key
    index = np.concatenate([kept, shuffled])
    return replace(current, key=key, **{name: getattr(current, name)[index] for name in NUMBERS})


def _named(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - NAMED_KEYS} more" if len(keys) > NAMED_KEYS else ""
    return ", ".join(keys[:NAMED_KEYS]) + more
