"""Batches that a device has no memory for."""

from collections.abc import Mapping

import torch
from torch import Tensor

from stages.encode.networks.network_precision import Network
from stages.progress import say


class FittingNetwork:
    """A network whose batches are halved for good when the device runs out of memory.

    network: images [B, ...] to tensors by name [B, ...]; name: for the message.
    """

    def __init__(self, name: str, network: Network) -> None:
        self._name = name
        self._network = network
        self._most: int | None = None

    def __call__(self, images: Tensor) -> Mapping[str, Tensor]:
        """What the network gives for a batch. Raises torch.OutOfMemoryError if none fits."""
        while True:
            size = min(self._most or len(images), len(images))
            try:
                parts = [self._network(part) for part in images.split(size)]
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
            else:
                if len(parts) == 1:
                    return parts[0]
                return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
            self._most = (size + 1) // 2
            say(f"{self._name}: out of memory; {self._most} images at a time from here on")
