"""The section of pipeline.toml that stage two reads, and as runs keep it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from cache.errors import RepaCacheError
from cache.layout import FEATURES, FLIPPED, PIXELS
from cache.stores.places import Place
from stages.latents import Rule
from stages.model.interpolants import Shift
from stages.model.sizes import MODELS
from stages.setting_paths import AnchoredPath
from stages.setting_types import Count, Few, OneOf, Seed, Settings, Unlimited
from stages.train.former_settings import in_todays_form
from stages.train.terms import AnyTerm
from stages.train.terms.joint import ClassToken
from stages.train.terms.term import Term
from stages.weights.export_options import Layout


class ReadingSettings(Settings):
    """How the cache is read; nothing here changes what is read."""

    threads: Few = 8
    """Threads that read."""
    ahead: Few = 3
    """Batches that are read in advance."""
    memory_gb: NonNegativeFloat = 2.0
    """Of arrays that are held in memory, the smallest first, as far as they fit: once for all
    processes of a machine."""
    verify: bool = True
    """Whether each row is compared with its checksum."""
    timeout_seconds: Unlimited = 300.0
    """After which a batch that does not come is an error; inf waits for ever."""
    in_flight: Few = 128
    """Requests that every process has at work at the same time, of a cache in an object store.
    More batches are read in advance if these have fewer rows."""
    local: AnchoredPath | None = None
    """A folder on a local disk that keeps whole shards of a cache in an object store, for all
    processes of the machine and for later runs; by default none."""
    local_gb: PositiveFloat | None = None
    """Of shards that the folder keeps; those that were not used for longest make room. By default
    all but a tenth of the disk."""


class ComputeSettings(Settings):
    """How a step is computed; nothing here changes it beyond rounding."""

    compile: bool | Literal["auto", "max-autotune"] = "auto"
    """Whether torch.compile makes blocks, projectors and the final layer faster; `auto` on GPUs.
    `max-autotune` tries several kernels for each product and takes the fastest, which takes
    minutes when training starts, and is not deterministic."""
    graph: bool = True
    """Whether a step is launched as one CUDA graph, if a single GPU trains."""
    fused_attention: bool = True
    """Whether attention is computed as one kernel."""
    attention: Literal["auto", "flash", "cudnn", "efficient", "math"] = "auto"
    """Which of torch's kernels that is; `auto` leaves it to torch. On GPUs `flash` and `cudnn` are
    for half precision, and `cudnn` is not deterministic; a CPU has `flash` and `math`."""
    recompute_activations: bool = False
    """Less memory for a third more time."""
    micro_batches: Count = 1
    """Parts of a process's batch that go through the model one after another; gradients are
    exchanged once."""
    parallel: Literal["fsdp", "ddp"] = "fsdp"
    """What each of several processes holds and updates: a part of weights, moving average and
    optimiser (fsdp), or the whole (ddp), which repeats the work and takes more memory."""
    reshard: bool = False
    """Whether the weights of a block are gathered twice a step, for the forward and for the
    backward pass, and not held in between: less memory for more time, with fsdp."""
    deterministic: bool = True
    """The same bits in every run on the same model of GPU, for about 3 % of the time (70.6 ms a
    step instead of 68.3: SiT-XL/2, 32 images, H200)."""


class PixelSettings(Settings):
    """What JiT has of its own. The defaults are the paper's."""

    noise_scale: PositiveFloat | Literal["auto"] = "auto"
    """What noise is multiplied by; `auto` is the side of an image over 256, and 1 below that."""
    time_mean: float = -0.8
    """Of the normals whose sigmoid times are, 1 being clean."""
    time_deviation: PositiveFloat = 0.8
    """Of these."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """In the middle half of the blocks; the published H has 0.2."""


class TrainSettings(Settings):
    """One run. The defaults are the paper's."""

    run: AnchoredPath
    """The run's folder; it keeps configuration, log, checkpoints and samples."""
    model: Annotated[str, OneOf("stages.model.sizes:MODELS")] = "SiT-XL/2"
    """Family (SiT, DiT, MMDiT), size (XS, Ti, S, B, L, XL) and side of a patch in latents (1, 2, 4,
    8). An MMDiT reads captions, and the published one is the B. Or JiT, of pixels: size (XS, Ti, B,
    L, H, G) and side of a patch in px (4, 8, 16, 32, 64)."""
    qk_norm: bool = False
    """Whether queries and keys are normalised before attention."""
    norm: Literal["layer", "rms", "rms-affine"] = "layer"
    """Of tokens, and of queries and keys: by mean and variance (layer), or by the root mean square,
    without weights of its own (rms) as in SR-DiT, or with them (rms-affine) as in LightningDiT."""
    mlp: Literal["gelu", "swiglu"] = "gelu"
    """Of a block; swiglu, as in LightningDiT, is gated and costs about the same."""
    rotary: bool = False
    """Whether attention turns queries and keys by their positions, beside the fixed table."""
    value_residual: bool = False
    """Whether attention mixes the first block's values into those of the others, as SR-DiT does."""
    text: str | None = None
    """The section of `[texts]` whose tokens of captions an MMDiT reads."""
    align: tuple[AnyTerm, ...] = ()
    """A loss beside denoising each, most of them alignments with a cached encoder; none for plain
    SiT or DiT."""
    interpolant: Annotated[str, OneOf("stages.model.interpolants:INTERPOLANTS")] = "linear"
    """SiT's path from data to noise. DiT has a schedule of its own."""
    times: Literal["uniform", "lognormal"] = "uniform"
    """How SiT's times are drawn."""
    time_shift: Shift | None = None
    """How far SiT's times are moved towards noise: t becomes s t / (1 + (s - 1) t). `auto` is
    SR-DiT's s = sqrt(C h w / 4096) for latents [C, h, w]. By default not at all."""
    label_dropping: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """The probability that a label becomes the null class, or a caption the empty one, which
    guidance needs."""
    legacy_label_dropping: bool = False
    """Whether labels are dropped twice, as in the first runs of the published code."""
    init_from: AnchoredPath | None = None
    """Weights to start from: a run, a checkpoint of any run, or a published file."""
    init_weights: Literal["ema", "model", "ema2"] = "ema"
    """Which of these: the moving average, the weights as trained, or a second moving average."""
    init_layout: Layout | None = None
    """Whose code the file is of, if it does not tell."""
    batch_size: Count = 256
    """Images of a step, over all processes and micro-batches."""
    block_rows: Count = 1
    """Rows that stay together when an epoch is shuffled: 1 for an exact shuffle, some hundred for
    network storage."""
    steps: Count = 400_000
    """At which the run ends; a run that has ended goes on if there are more."""
    learning_rate: PositiveFloat = 1e-4
    """Of AdamW, constant after the warm-up."""
    warmup_steps: NonNegativeInt = 0
    """Over which the learning rate rises from 0."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (
        0.9,
        0.999,
    )
    """Decay of AdamW's averages of gradients and of their squares."""
    weight_decay: NonNegativeFloat = 0.0
    """Of AdamW, decoupled from the gradient."""
    gradient_clip: Unlimited = 1.0
    """The largest norm of a gradient; inf for none."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.9999
    """Of the moving average of the weights, a step."""
    second_ema_decay: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Of a second one that is kept beside it (`ema2`), as JiT does with 0.9996; by default none."""
    precision: Literal["auto", "bfloat16", "float16", "float8", "tf32", "float32"] = "auto"
    """Of matrix products; `auto` is bfloat16 on GPUs and float32 elsewhere. The loss is scaled for
    float16. `float8` is for GPUs like the H100, and only of the blocks' products; a CPU imitates
    it."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """What is done about a step whose loss or gradient is infinite or not a number."""
    seed: Seed = 0
    """Of weights, row order, noise, times and label dropping."""
    checkpoint_every: Count = 10_000
    """Steps between checkpoints."""
    keep: Count = 2
    """How many of the newest checkpoints stay."""
    keep_every: Count | None = None
    """Steps whose checkpoints stay for ever, a multiple of `checkpoint_every`; by default none."""
    log_every: Count = 100
    """Steps between lines of the log, each with means over all images since the last."""
    grid_every: NonNegativeInt = 0
    """Steps between grids of samples, drawn as `[sample]` says; 0 for none."""
    tensorboard: bool = False
    """Whether TensorBoard gets the log too."""
    wandb: Annotated[str, Field(min_length=1)] | None = None
    """The project of Weights & Biases that gets the log too; by default none."""
    device: str = "auto"
    """Where the model runs, as torch calls it: `cpu`, `cuda`, `mps`; `auto` takes a GPU if there
    is one."""
    pixels: PixelSettings = PixelSettings()
    reading: ReadingSettings = ReadingSettings()
    compute: ComputeSettings = ComputeSettings()

    @field_validator("align")
    @classmethod
    def _settle(cls, align: tuple[Term, ...], info: ValidationInfo) -> tuple[Term, ...]:
        """The entries with what they leave to the size of the model."""
        if "model" not in info.data:
            return align
        blocks = MODELS[info.data["model"]].size.depth
        return tuple(term.settled(blocks) for term in align)

    @property
    def encoders(self) -> tuple[str, ...]:
        """Those whose cached arrays are read at some step, each once."""
        return tuple(dict.fromkeys(name for term in self.align for name in term.encoders))

    @property
    def on_grid(self) -> tuple[str, ...]:
        """Those of which tokens have to lie on the transformer's grid."""
        return tuple(dict.fromkeys(name for term in self.align for name in term.on_grid))

    def depths(self, encoder: str | None = None) -> tuple[int, ...]:
        """The blocks, from 1, whose output is aligned: with any encoder, or with one."""
        terms = (term for term in self.align if encoder is None or encoder in term.encoders)
        return tuple(sorted({depth for term in terms for depth in term.depths}))

    @property
    def has_class_token(self) -> bool:
        """Whether a class token is diffused along with the latents."""
        return any(isinstance(term, ClassToken) for term in self.align)

    @property
    def family(self) -> str:
        """SiT, DiT or JiT, which decides the objective."""
        return MODELS[self.model].family

    @property
    def reads_text(self) -> bool:
        """Whether the model is told of images by their captions."""
        return MODELS[self.model].reads_text


@dataclass(frozen=True)
class CachedTensors:
    """Which tensors a run reads.

    path: the cache; latents: the name of its column of latents; flip: whether half of the images
    are read mirrored; text: the text encoder whose tokens of captions are read; scaling: by which
    rule latents are scaled.
    """

    path: Place
    latents: str
    flip: bool = False
    text: str | None = None
    scaling: Rule = "auto"

    def columns(self, encoders: Sequence[str]) -> list[tuple[str, ...]]:
        """The names of the columns for latents and encoders, one for each view of an image."""
        names = (self.latents, *(FEATURES + encoder for encoder in encoders))
        if not self.flip:
            return [(name,) for name in names]
        # Crops are mirrored when they are read.
        return [(name, name if name == PIXELS else name + FLIPPED) for name in names]


class RunError(RepaCacheError):
    """A run cannot start, or cannot go on: with these settings, or with those that it keeps."""


def stored_settings(kept: Mapping[str, Any], run: Path) -> TrainSettings:
    """The settings that a run in a folder keeps; those that it does not know have their defaults.

    Raises RunError if this version does not understand them.
    """
    document = {**in_todays_form(kept), "run": str(run)}
    try:
        return TrainSettings.model_validate_json(json.dumps(document))
    except ValidationError as error:
        raise RunError(
            f"{run} keeps settings that this version does not understand: {error}"
        ) from None
