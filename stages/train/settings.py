"""The section of pipeline.toml that stage two reads, and the sizes of its models."""

from typing import Annotated, Literal, NamedTuple

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

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


class TrainSettings(Settings):
    """`[train]`: one run. The defaults are the paper's.

    run: the run's folder; encoders: the cached encoders to align with, none for plain SiT;
    depth: the block whose output is aligned; weight: of the alignment loss; batch_size: over
    all ranks; checkpoint_every, log_every: steps; keep: number of checkpoints kept.
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
    steps: PositiveInt = 400_000
    learning_rate: PositiveFloat = 1e-4
    gradient_clip: PositiveFloat = 1.0
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.9999
    seed: Seed = 0
    checkpoint_every: PositiveInt = 10_000
    keep: PositiveInt = 2
    log_every: PositiveInt = 100
    device: str = "auto"

    @property
    def size(self) -> Size:
        """The transformer's size."""
        return MODELS[self.model][0]

    @property
    def patch(self) -> int:
        """Side of a patch in latents."""
        return MODELS[self.model][1]
