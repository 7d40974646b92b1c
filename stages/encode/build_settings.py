"""The sections of pipeline.toml that stage one reads."""

from typing import TYPE_CHECKING

from pydantic import Field

from cache.stores.places import IN_FLIGHT
from stages.encode.images.remote.paths import RemotePath
from stages.encode.images.sources import SOURCES
from stages.encode.network_settings import (
    ComponentsSettings,
    EncoderSettings,
    LatentsSettings,
    Precision,
    TextSettings,
)
from stages.encode.networks.registry import EncoderSpec, find_encoder
from stages.processes import own_cores
from stages.setting_paths import AnchoredPlace
from stages.setting_types import Count, Few, Kinds, Seed, Settings

CPU_BATCH_SIZE, GPU_BATCH_SIZE = 32, 128
# With fewer threads than these, one that waits for a disk is missed; more than these get into
# each other's way, as Python runs in one of them at a time.
LEAST_THREADS, MOST_THREADS = 4, 32


DATASETS = Kinds("source", {name: kind.settings for name, kind in SOURCES.items()})
# `[dataset]` of any source.
if TYPE_CHECKING:
    import torch

    from stages.encode.images.sources.samples import EmbeddedSettings
    from stages.encode.images.sources.source import FileSettings

    AnyDataset = EmbeddedSettings | FileSettings
else:
    AnyDataset = DATASETS.union


class CacheSettings(Settings):
    """Where the tensors go."""

    path: AnchoredPlace
    """The cache's folder, or its address in an object store, as `s3://bucket/imagenet256.zarr`; by
    custom its name ends with `.zarr`."""
    rows_per_shard: Count = 1024
    """Images per file and array."""
    seed: Seed = 0
    """Of the permutation in which rows lie."""


class BuildSettings(Settings):
    """How stage one runs; nothing here changes what is cached beyond rounding."""

    batch_size: Count | None = None
    """Images per forward pass, on which the last bits of a GPU's results depend; by default 128 on
    a GPU, 32 on a CPU."""
    threads: Few | None = None
    """Threads that read and decode files, in all workers of `--workers` together; by default a
    thread for each core, in a process from 4 to 32, and 64 where images are at an address."""
    device: str = "auto"
    """Where the networks run, as torch calls it: `cpu`, `cuda`, `cuda:1`, `mps`; `auto` takes a
    GPU if there is one."""

    def images_at_once(self, device: "torch.device") -> int:
        """Images per forward pass on a device."""
        return self.batch_size or (CPU_BATCH_SIZE if device.type == "cpu" else GPU_BATCH_SIZE)

    def decoding_threads(self, workers: int = 1) -> int:
        """Threads that read and decode in one of so many workers of this machine."""
        if self.threads is not None:
            return max(1, self.threads // workers)
        return min(max(own_cores(workers), LEAST_THREADS), MOST_THREADS)


class EncodeSettings(Settings):
    """Everything that stage one needs to know."""

    dataset: AnyDataset
    cache: CacheSettings
    latents: LatentsSettings
    encoders: dict[str, EncoderSettings]
    components: dict[str, ComponentsSettings] = Field(default_factory=dict)
    texts: dict[str, TextSettings] = Field(default_factory=dict)
    build: BuildSettings

    def reading_threads(self, workers: int = 1) -> int:
        """Threads that read and decode in one of so many workers of this machine.

        Of images that are remote most of them wait, each for another.
        """
        threads = self.build.decoding_threads(workers)
        is_remote = isinstance(self.dataset.path, RemotePath)
        return max(threads, IN_FLIGHT) if is_remote and self.build.threads is None else threads

    @property
    def stores_pixels(self) -> bool:
        """Whether crops are a column."""
        return self.dataset.pixels or self.latents.is_pixels

    def spec(self, encoder: str) -> EncoderSpec:
        """What an encoder is, by its section if it has one. Raises EncoderError if it is none."""
        own = self.encoders.get(encoder, EncoderSettings())
        return find_encoder(own.model or encoder, own.library)

    def input_size(self, encoder: str) -> int:
        """Side of an encoder's input in px."""
        own = self.encoders[encoder].input_size
        return own or self.spec(encoder).size_for(self.dataset.resolution)

    def in_precision(self, precision: Precision) -> "EncodeSettings":
        """The same with all networks computing in one precision."""
        update = {"precision": precision}
        encoders = {n: own.model_copy(update=update) for n, own in self.encoders.items()}
        latents = self.latents.model_copy(update=update)
        return self.model_copy(update={"latents": latents, "encoders": encoders})

    def network(self, name: str) -> str:
        """The encoder that a column of tokens, by its name, is of or is derived from."""
        return self.components[name].encoder if name in self.components else name

    def token_grid(self, encoder: str) -> int:
        """Side of an encoder's token grid."""
        return self.input_size(encoder) // self.spec(encoder).stride
