"""Copying a cache, or some of its columns, to a disk or a store: only what is missing.

Shards are copied first, several at once, where nobody sees them. Only if every one of them is what
its ledger entry says, what makes them visible follows:

    1. the row table, where images were added, and right behind it the shards that end in other rows
    2. columns that are new, by the file `zarr.json` in a store, by renaming their folder on a disk
    3. the root's `zarr.json`, of a cache that is new

Whoever opens the target meanwhile finds the cache that was there before, or none; in the moments of
the first step, columns that are not complete. Killed at any moment, the next copy goes on.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

from cache.captions import LINKS
from cache.copies.copy_plan import CachePlan, CopiedColumn, check_target, planned
from cache.copies.shard_copies import ColumnCopy, copy_shard, files_of, landed, put_shard
from cache.copies.skeleton import GROUP
from cache.errors import DamagedCacheError
from cache.files import atomic_folder, recover, remove_leftovers, standing, sync, write_atomically
from cache.layout import FAMILIES, ROWS
from cache.locking.locks import build_locks
from cache.metadata import UNFINISHED, read_group
from cache.stores.places import Place, StorePath, for_each
from cache.verify import Progress, silent

# Pieces of files that are asked for at the same time.
REQUESTS = 32
# Shards that are copied at the same time, as far as they take no more than this on the local disk.
MOST_SHARDS, LANDED_BYTES = 16, 2 << 30
MB = 10**6
# Of a long list.
SHOWN_FAULTS = 5
EXPLANATION = b"The beginning of a copy of a cache. Run the same `repa-cache copy` to finish it.\n"

ShardCopy = tuple[ColumnCopy, int]


def copy_cache(
    source: Place,
    target: Place,
    names: Sequence[str] | None = None,
    progress: Progress = silent,
    tell: Callable[[str], None] = print,
    *,
    break_lock: bool = False,
) -> tuple[CopiedColumn, ...]:
    """Copy to the target what it lacks of a cache, or of some columns of it.

    names: of columns or, with their mirrored images, of encoders; tell: told for whom this has to
    wait; break_lock: whether to take over the lock of a build or copy that gives no sign of life.
    Returns what was done for each column. Raises CopyError, and touches nothing, if the target is
    something else; DamagedCacheError, which names them, if shards of the source are not what was
    written: then nothing that was not there becomes visible.
    """
    check_target(target)
    locks = build_locks(target, tell, break_lock=break_lock)
    with locks.preparing(tell):
        locks.require_alone("a copy to it")
        # At work, too, which removes the locks of those that died.
        with locks.at_work(), planned(source, target, names) as plan:
            _carry_out(plan, progress, locks.confirm)
            return plan.outcome


def preview(
    source: Place, target: Place, names: Sequence[str] | None = None
) -> tuple[CopiedColumn, ...]:
    """What a copy would do for each column."""
    check_target(target)
    with planned(source, target, names) as plan:
        return plan.outcome


def _carry_out(plan: CachePlan, progress: Progress, confirm: Callable[[], None]) -> None:
    """confirm: raises CacheBusyError if another process took over the lock."""
    for part in plan.parts:
        _begin(part)
        if not part.is_growing:
            # Before shards, as an earlier copy may have stopped right behind the rows.
            _grow(part)
    ends = [end for part in plan.parts for end in _outgrown(part)]
    whole = [one for part in plan.parts for one in _missing(part) if one not in ends]
    with _threads(REQUESTS) as requests:
        _copy_shards(whole, requests, progress, confirm)
        with ExitStack() as stack:
            here = [stack.enter_context(landed(copy, n, requests)) for copy, n in ends]
            confirm()
            for part in plan.parts:
                if part.is_growing:
                    _grow(part)
            for (copy, shard), column in zip(ends, here, strict=True):
                put_shard(copy, shard, column)
    confirm()
    # Those inside first.
    for part in reversed(plan.parts):
        _reveal(part)


@contextmanager
def _threads(count: int) -> Iterator[Executor]:
    """Some threads, which begin nothing more after an error."""
    pool = ThreadPoolExecutor(count)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _missing(part: CachePlan) -> list[ShardCopy]:
    return [(copy, shard) for copy in part.columns for shard in copy.missing]


def _outgrown(part: CachePlan) -> list[ShardCopy]:
    """The shards that are there with the target's last rows, and that the added ones fill up."""
    if part.known is None or not part.is_growing:
        return []
    there = [(copy, len(part.known) // copy.source.rows_per_shard) for copy in part.columns]
    return [(copy, shard) for copy, shard in there if not copy.is_new and shard in copy.replaced]


def _copy_shards(
    work: Sequence[ShardCopy],
    requests: Executor,
    progress: Progress,
    confirm: Callable[[], None],
) -> None:
    """Copy shards. Raises DamagedCacheError for those that are damaged, when the rest is there."""

    def fault(one: ShardCopy) -> str | None:
        try:
            copy_shard(*one, requests, confirm)
        except DamagedCacheError as error:
            return str(error.what)
        return None

    sizes = [copy.missing[shard] for copy, shard in work]
    at_once = min(MOST_SHARDS, max(2, LANDED_BYTES // max(1, *sizes, 1)))
    faults, done = [], 0
    with _threads(at_once) as pool, progress("copy", sum(sizes) // MB, "MB") as advance:
        for size, found in zip(sizes, pool.map(fault, work), strict=True):
            faults += [found] if found else []
            advance((done + size) // MB - done // MB, "")
            done += size
    if faults:
        more = f" and {len(faults) - SHOWN_FAULTS} more" if len(faults) > SHOWN_FAULTS else ""
        raise DamagedCacheError(
            f"{'; '.join(faults[:SHOWN_FAULTS])}{more}",
            where=work[0][0].source.cache,
            remedy=(
                "All other shards were copied, and count once these can be. Run `repa-cache build "
                "--repair` for that cache, and then this again."
            ),
        )


def _begin(part: CachePlan) -> None:
    """Have at the target what is needed before shards."""
    target = part.target
    if not part.is_there:
        _write(target / UNFINISHED, EXPLANATION)
    _tidy(part)
    for family in FAMILIES:
        file = part.skeleton / family / GROUP
        if file.is_file() and not (target / family / GROUP).is_file():
            _write(target / family / GROUP, file.read_bytes())
    if part.known is None:
        _replace(part, ROWS)


def _tidy(part: CachePlan) -> None:
    """Remove what was left of copies and builds that were stopped, or finish it."""
    for name in ("", *FAMILIES):
        remove_leftovers(part.target / name)
    for group in (ROWS, LINKS):
        if (part.skeleton / group).is_dir():
            recover(part.target / group)
    for copy in part.columns:
        remove_leftovers(copy.target.folder)
        if copy.is_new:
            _clear(part, copy)


def _clear(part: CachePlan, copy: ColumnCopy) -> None:
    """Remove of a column that is not there yet what an earlier copy, or another one, left."""
    kept = {place.as_posix() for place in _described(part, copy)}
    for shard in copy.entries.keys() - copy.missing.keys():
        kept |= {f"{array.name}/{array.shard_key(shard)}" for array in files_of(copy.target)}
    folder = copy.target.folder
    places: Sequence[Place] = (
        list(folder.tree())
        if isinstance(folder, StorePath)
        else [file for file in folder.rglob("*") if file.is_file()]
    )
    left = [place for place in places if place.relative_to(folder).as_posix() not in kept]  # type: ignore[arg-type]
    for_each(lambda place: place.unlink(missing_ok=True), left)


def _described(part: CachePlan, copy: ColumnCopy) -> list[Path]:
    """The files of a column in the skeleton, relative to it, the group's own last."""
    folder = part.skeleton / copy.source.name
    files = [file.relative_to(folder) for file in folder.rglob("*") if file.is_file()]
    return sorted(files, key=lambda file: (file == Path(GROUP), file))


def _grow(part: CachePlan) -> None:
    """Give a target the rows of the source, and the columns that it has what describes them."""
    if part.known is not None and not part.rows.equals(part.known):
        _replace(part, ROWS)
    for copy in part.columns:
        if not copy.is_new and not copy.is_ahead:
            _describe(part, copy)


def _reveal(part: CachePlan) -> None:
    """Have everything count that was copied."""
    target, skeleton = part.target, part.skeleton
    for copy in part.columns:
        if copy.is_new:
            _describe(part, copy)
            _show(copy.target.folder, target / copy.source.name)
    if (skeleton / LINKS).is_dir() and not _has_links(part):
        _replace(part, LINKS)
    if not part.is_there:
        _write(target / GROUP, (skeleton / GROUP).read_bytes())
    (target / UNFINISHED).unlink(missing_ok=True)


def _describe(part: CachePlan, copy: ColumnCopy) -> None:
    """Write the files of a column that are in the skeleton, as far as they differ."""
    folder = part.skeleton / copy.source.name

    def write(name: Path) -> None:
        content, place = (folder / name).read_bytes(), copy.target.folder / name.as_posix()
        if not (place.is_file() and place.read_bytes() == content):
            _write(place, content)

    *arrays, group = _described(part, copy)
    for_each(write, arrays)
    write(group)


def _show(aside: Place, folder: Place) -> None:
    """Have a column that was put together aside be at its place."""
    if isinstance(aside, Path) and isinstance(folder, Path):
        sync(aside)
        aside.rename(folder)
        sync(folder.parent)


def _has_links(part: CachePlan) -> bool:
    """Whether the target has the links between images and texts that the source has."""
    there = standing(part.target / LINKS)
    is_group = (there / GROUP).is_file()
    return is_group and read_group(there) == read_group(part.skeleton / LINKS)


def _replace(part: CachePlan, group: str) -> None:
    """Replace a group of the target in one step by that of the skeleton."""
    with atomic_folder(part.target / group) as folder:
        shutil.copytree(part.skeleton / group, folder, dirs_exist_ok=True)


def _write(place: Place, content: bytes) -> None:
    """Write a small file in one step, into a folder that may have to be made."""
    if isinstance(place, Path):
        place.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(place.parent, f"{place.name}.*")
    write_atomically(place, content)
