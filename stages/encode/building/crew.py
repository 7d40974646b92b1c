"""Who makes the shards that are missing: this build, beside those that other processes run."""

import time
from collections.abc import Callable, Mapping, Sequence

from cache.locks import Holder
from stages.progress import say

# How often a build that has nothing left to claim looks whether the others are done.
POLL_SECONDS = 0.5

# Makes shards, and returns those that other processes have claimed.
Crew = Callable[[Sequence[int]], Mapping[int, Holder]]


def make_all(shards: Sequence[int], crew: Crew) -> None:
    """Have shards made, and wait for those that other processes make."""
    known: set[Holder] = set()
    while shards:
        claimed = crew(shards)
        for holder in set(claimed.values()) - known:
            say(f"sharing the work with {holder}")
        known.update(claimed.values())
        if claimed:
            time.sleep(POLL_SECONDS)
        shards = sorted(claimed)
