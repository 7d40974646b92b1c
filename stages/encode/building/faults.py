"""Checking a whole cache, with its progress."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cache.verify import Fault, check_shard, survey
from stages.progress import progress


def find_faults(path: Path, threads: int) -> list[Fault]:
    """All faults of the cache at `path`. Reads every byte of it once."""
    found = survey(path)
    faults = list(found.faults)
    total = sum(len(one.column.shard_rows(one.shard)) for one in found.shards)
    with ThreadPoolExecutor(threads) as pool, progress("verify", total, "rows") as advance:
        checks = pool.map(check_shard, found.shards)
        for finished, some in zip(found.shards, checks, strict=True):
            faults += some
            advance(len(finished.column.shard_rows(finished.shard)), "")
    return faults
