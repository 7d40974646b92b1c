"""What a single build may be asked to do, beyond what the configuration says.

Apart from the settings, so that a command line is read without numpy and zarr.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Cluster:
    """Dask workers that make the shards.

    workers: processes to start on this machine, one per GPU if there are any; scheduler: the
    address of a Dask scheduler that runs already, instead; dashboard: whether to serve Dask's.
    """

    workers: int = 0
    scheduler: str | None = None
    dashboard: bool = False


@dataclass(frozen=True)
class BuildOptions:
    """What a build may do beyond making what is missing, and how.

    rebuild: columns to make anew; repair: find what is damaged and make it again; update: take
    over images and labels that changed; shards: those to make, of all; cluster: who makes them,
    if not this process; break_lock: take over the lock of a build that died, where locks outlive
    their holders.
    """

    rebuild: frozenset[str] = frozenset()
    repair: bool = False
    update: bool = False
    shards: slice = field(default_factory=lambda: slice(None))
    cluster: Cluster | None = None
    break_lock: bool = False

    @property
    def devices(self) -> int:
        """How many devices are at work, as far as it is known."""
        return max(self.cluster.workers, 1) if self.cluster else 1
