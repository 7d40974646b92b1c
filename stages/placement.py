"""Where a process of a run works."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Placement:
    """rank of world processes, on a device."""

    device: torch.device
    rank: int = 0
    world: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0


def barrier(place: Placement) -> None:
    """Wait until all processes of a run are here."""
    if place.world > 1:
        torch.distributed.barrier()
