"""The section of pipeline.toml that stage two reads."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat

from cache.layout import FEATURES, FLIPPED
from stages.model.sizes import MODELS, Size
from stages.setting_types import AnchoredPath, Count, Few, Seed, Settings, Unlimited, one_of
from stages.train.terms import AnyTerm
from stages.weights.export_options import Layout


class ReadingSettings(Settings):
    """`[train.reading]`: how the cache is read; nothing here changes what is read.

    threads: that read; ahead: batches read in advance; memory_gb: of arrays that are held in
    memory, smallest rows first, as far as they fit, in every process; verify: compare each row
    with its checksum; timeout_seconds: after which a batch that does not come is an error.
    """

    threads: Few = 8
    ahead: Few = 3
    memory_gb: NonNegativeFloat = 2.0
    verify: bool = True
    timeout_seconds: Unlimited = 300.0


class ComputeSettings(Settings):
    """`[train.compute]`: how a step is computed; nothing here changes it beyond rounding.

    compile: torch.compile for blocks, projectors and the final layer, by default on GPUs;
    graph: launch a step as one CUDA graph, if a single GPU trains;
    fused_attention: attention as one kernel; recompute_activations: less memory for a third more
    time; micro_batches: parts of a rank's batch that go through the model one after another;
    parallel: what several processes do, hold the whole model each (ddp) or a part of it (fsdp);
    deterministic: the same bits in every run on the same model of GPU, at a small price.
    """

    compile: bool | Literal["auto"] = "auto"
    graph: bool = True
    fused_attention: bool = True
    recompute_activations: bool = False
    micro_batches: Count = 1
    parallel: Literal["ddp", "fsdp"] = "ddp"
    deterministic: bool = True


class TrainSettings(Settings):
    """`[train]`: one run. The defaults are the paper's.

    What is trained. run: the run's folder; align: a loss beside denoising each, none for plain SiT
    or DiT; interpolant, times: of SiT; label_dropping: probability; legacy_label_dropping: drop
    labels twice, as the first runs of the published code did.

    How. init_from: weights to start from, a checkpoint of any run or a published file;
    init_weights: which of these; init_layout: whose code the file is of, if it does not tell
    (`repa`, `sit`, `sit-no-sigma`, `dit`); batch_size: over all ranks; block_rows: rows that stay
    together when an epoch is shuffled, 1 for an exact shuffle, some hundred for network storage;
    warmup_steps: over which the learning rate rises; precision: of matrix products, by default
    bfloat16 on GPUs and float32 elsewhere; on_nonfinite: what to do about a step whose loss or
    gradient is infinite or not a number.

    What is kept. checkpoint_every, log_every, grid_every: steps, 0 for no sample grids; keep:
    number of checkpoints; keep_every: steps whose checkpoints stay for ever; tensorboard: log
    for it too; wandb: the project to log to, if any.
    """

    run: AnchoredPath
    model: Annotated[str, one_of("stages.model.sizes:MODELS")] = "SiT-XL/2"
    qk_norm: bool = False
    align: tuple[AnyTerm, ...] = ()
    interpolant: Annotated[str, one_of("stages.model.interpolants:INTERPOLANTS")] = "linear"
    times: Literal["uniform", "lognormal"] = "uniform"
    label_dropping: Annotated[float, Field(ge=0, lt=1)] = 0.1
    legacy_label_dropping: bool = False
    init_from: AnchoredPath | None = None
    init_weights: Literal["ema", "model"] = "ema"
    init_layout: Layout | None = None
    batch_size: Count = 256
    block_rows: Count = 1
    steps: Count = 400_000
    learning_rate: PositiveFloat = 1e-4
    warmup_steps: NonNegativeInt = 0
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (
        0.9,
        0.999,
    )
    weight_decay: NonNegativeFloat = 0.0
    gradient_clip: Unlimited = 1.0
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.9999
    precision: Literal["auto", "bfloat16", "float16", "tf32", "float32"] = "auto"
    on_nonfinite: Literal["stop", "skip"] = "stop"
    seed: Seed = 0
    checkpoint_every: Count = 10_000
    keep: Count = 2
    keep_every: Count | None = None
    log_every: Count = 100
    grid_every: NonNegativeInt = 0
    tensorboard: bool = False
    wandb: Annotated[str, Field(min_length=1)] | None = None
    device: str = "auto"
    reading: ReadingSettings = ReadingSettings()
    compute: ComputeSettings = ComputeSettings()

    @property
    def encoders(self) -> tuple[str, ...]:
        """Those whose cached arrays are read at some step, each once."""
        return tuple(dict.fromkeys(name for term in self.align for name in term.encoders))

    def depths(self, encoder: str | None = None) -> tuple[int, ...]:
        """The blocks, from 1, whose output is aligned: with any encoder, or with one."""
        terms = (term for term in self.align if encoder is None or encoder in term.encoders)
        return tuple(sorted({depth for term in terms for depth in term.depths}))

    @property
    def family(self) -> str:
        """SiT or DiT, which decides the objective."""
        return MODELS[self.model].family

    @property
    def size(self) -> Size:
        """The transformer's size."""
        return MODELS[self.model].size

    @property
    def patch(self) -> int:
        """Side of a patch in latents."""
        return MODELS[self.model].patch


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
        names = (self.latents, *(FEATURES + encoder for encoder in encoders))
        return [(name, name + FLIPPED) if self.flip else (name,) for name in names]
