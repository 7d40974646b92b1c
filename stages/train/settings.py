"""The section of pipeline.toml that stage two reads, and the sizes of its models."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from cache.layout import FLIPPED
from stages.settings import AnchoredPath, Seed, Settings, one_of


class Size(NamedTuple):
    """A transformer's number of blocks, width and attention heads."""

    depth: int
    width: int
    heads: int


# DiT, table 1. XS is this project's own, for laptops.
SIZES = {
    "XS": Size(4, 128, 4),
    "S": Size(12, 384, 6),
    "B": Size(12, 768, 12),
    "L": Size(24, 1024, 16),
    "XL": Size(28, 1152, 16),
}
PATCHES = (1, 2, 4, 8)
MODELS = {f"SiT-{size}/{patch}": (SIZES[size], patch) for size in SIZES for patch in PATCHES}


class ReadingSettings(Settings):
    """`[train.reading]`: how the cache is read; nothing here changes what is read.

    threads: that read; ahead: batches read in advance; memory_gb: of arrays that are held in
    memory, smallest rows first, as far as they fit, in every process; verify: compare each row
    with its checksum; timeout_seconds: after which a batch that does not come is an error.
    """

    threads: PositiveInt = 8
    ahead: PositiveInt = 3
    memory_gb: NonNegativeFloat = 2.0
    verify: bool = True
    timeout_seconds: PositiveFloat = 300.0


class TrainSettings(Settings):
    """`[train]`: one run. The defaults are the paper's.

    run: the run's folder; encoders: the cached encoders to align with, none for plain SiT;
    depth: the block whose output is aligned; weight: of the alignment loss; batch_size: over
    all ranks; block_rows: rows that stay together when an epoch is shuffled, 1 for an exact
    shuffle, some hundred for network storage; checkpoint_every, log_every: steps; keep: number
    of checkpoints kept.
    """

    run: AnchoredPath
    model: Annotated[str, one_of("stages.train.settings:MODELS")] = "SiT-XL/2"
    encoders: tuple[str, ...] = ()
    alignment: Annotated[str, one_of("stages.train.alignment:ALIGNMENTS")] = "repa"
    depth: PositiveInt = 8
    weight: NonNegativeFloat = 0.5
    projector_width: PositiveInt = 2048
    interpolant: Annotated[str, one_of("stages.train.objectives:INTERPOLANTS")] = "linear"
    times: Literal["uniform", "lognormal"] = "uniform"
    label_dropping: Annotated[float, Field(ge=0, lt=1)] = 0.1
    batch_size: PositiveInt = 256
    block_rows: PositiveInt = 1
    steps: PositiveInt = 400_000
    learning_rate: PositiveFloat = 1e-4
    gradient_clip: PositiveFloat = 1.0
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.9999
    seed: Seed = 0
    checkpoint_every: PositiveInt = 10_000
    keep: PositiveInt = 2
    log_every: PositiveInt = 100
    device: str = "auto"
    reading: ReadingSettings = ReadingSettings()

    @property
    def size(self) -> Size:
        """The transformer's size."""
        return MODELS[self.model][0]

    @property
    def patch(self) -> int:
        """Side of a patch in latents."""
        return MODELS[self.model][1]


@dataclass(frozen=True)
class CachedTensors:
    """Which tensors a run reads.

    path: the cache; latents: the name of its column of latents; flip: whether half of the images
    are read mirrored.
    """

    path: Path
    latents: str
    flip: bool = False

    def columns(self, encoders: Sequence[str]) -> list[tuple[str, ...]]:
        """The names of the columns for latents and encoders, one for each view of an image."""
        names = (self.latents, *(f"features/{encoder}" for encoder in encoders))
        return [(name, name + FLIPPED) if self.flip else (name,) for name in names]
