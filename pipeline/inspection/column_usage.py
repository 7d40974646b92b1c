"""Which runs were trained on the columns of a cache."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cache.rows import RowTable
from stages.weights.checkpoint import latest


@dataclass(frozen=True)
class RunUse:
    """A run whose newest checkpoint names columns of a cache.

    columns: those it was trained on; others: those of which it had another version; is_same_rows:
    whether it saw the rows that the cache has.
    """

    run: Path
    model: str
    step: int
    columns: tuple[str, ...]
    others: tuple[str, ...]
    is_same_rows: bool

    @property
    def images(self) -> str:
        """What is to be said of the images that the run saw."""
        return "these" if self.is_same_rows else "others, or fewer than there are"


def find_uses(
    folder: Path, fingerprints: Mapping[str, str], rows: RowTable | None
) -> Iterator[RunUse]:
    """The runs in a folder that used columns of these names.

    fingerprints: of the cache's columns; rows: the cache's, if they can be read.
    """
    images = None if rows is None else rows.fingerprint
    for run in sorted(folder.glob("*/")):
        found = latest(run)
        if found is None:
            continue
        try:
            state = found.state
            used, identity, model = state["columns"], state["rows"], state["settings"]["model"]
        except (OSError, ValueError, KeyError, TypeError):
            # A checkpoint of another program, or a torn one, tells nothing of this cache.
            continue
        known = [name for name in used if name in fingerprints]
        same = tuple(name for name in known if used[name] == fingerprints[name])
        others = tuple(name for name in known if name not in same)
        if known:
            # Equal recipes have equal fingerprints, also in caches of different images.
            is_same_rows = identity["fingerprint"] == images
            yield RunUse(run, model, found.step, same, others, is_same_rows)
