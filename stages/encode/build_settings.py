"""The sections of pipeline.toml that stage one reads."""

import re
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from cache.recipe import RecipeValue
from stages.encode.images.sources import SOURCES
from stages.encode.networks.autoencoder_files import (
    HUB_CONFIGS,
    AutoencoderError,
    downsampling,
    read_vae_config,
)
from stages.encode.networks.registry import EncoderError, EncoderSpec, find_encoder
from stages.processes import own_cores
from stages.setting_types import AnchoredPath, Count, Few, Kinds, OneOf, Seed, Settings, expanded

DEMO_AUTOENCODER = "demo-autoencoder"
# In which a frozen network computes.
Precision = Literal["float32", "tf32", "float16"]
CPU_BATCH_SIZE, GPU_BATCH_SIZE = 32, 128
# With fewer threads than these, one that waits for a disk is missed; more than these get into
# each other's way, as Python runs in one of them at a time.
LEAST_THREADS, MOST_THREADS = 4, 32
# Of encoders that are called otherwise than their models.
COLUMN_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*", re.ASCII)
NO_FOLDER = "{!r} names a folder of the cache: letters, digits and any of . _ + - make one"


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

    path: AnchoredPath
    """The cache's folder; by custom its name ends with `.zarr`."""
    rows_per_shard: Count = 1024
    """Images per file and array."""
    seed: Seed = 0
    """Of the permutation in which rows lie."""


def _anchor_folder(name: str, info: ValidationInfo) -> str:
    """What begins with a dot is no hub name, but relative to the folder of pipeline.toml."""
    if not info.context:
        return name
    name = expanded(name)
    return str((info.context["folder"] / name).absolute()) if name.startswith(".") else name


HubName = Annotated[str, AfterValidator(_anchor_folder)]


class LatentsSettings(Settings):
    """The autoencoder whose latents are cached and trained on."""

    vae: HubName = "stabilityai/sd-vae-ft-mse"
    """A hub name, a local folder that begins with `.`, `/`, `~` or `$`, or `demo-autoencoder`."""
    precision: Precision = "float32"
    """In which it computes; tf32 is float32 on a CPU."""
    imported: bool = False
    """Whether the data set brings its latents along (the source `repa`), so that none are
    encoded."""

    @property
    def column(self) -> str:
        """The name of the column that holds its moments."""
        return f"latents/{Path(self.vae).name}"

    @property
    def location(self) -> str:
        """The folder or hub name to load it from."""
        demo = files("stages.encode.networks") / "demo_autoencoder"
        return str(demo) if self.vae == DEMO_AUTOENCODER else self.vae

    @property
    def downsampling(self) -> int | None:
        """Pixels per latent along a side, as far as it is known without a download."""
        folder = Path(self.location)
        if not folder.is_dir():
            known = HUB_CONFIGS.get(self.vae)
            return None if known is None else downsampling(known)
        return None if self.problem else downsampling(read_vae_config(folder))

    @property
    def problem(self) -> str | None:
        """What is wrong with a local folder, if anything is."""
        folder = Path(self.location)
        if folder.is_absolute() and not folder.is_dir():
            return f"there is no folder {self.location}"
        try:
            if folder.is_dir():
                read_vae_config(folder)
        except AutoencoderError as error:
            return str(error)
        return None


class EncoderSettings(Settings):
    """One frozen encoder."""

    model: HubName | None = None
    """Its name in the registry or in its library, by default that of the section; one of
    transformers is a folder that begins with `.`, `/`, `~` or `$`, or a hub name."""
    library: Annotated[str, OneOf("stages.encode.networks.registry:LIBRARIES")] = "timm"
    """The library that has the model."""
    weights: AnchoredPath | None = None
    """A local file to load instead of the published weights."""
    input_size: Count | None = None
    """Side of its input in px, where another than the published one is wanted."""
    precision: Precision = "float32"
    """In which it computes; tf32 is float32 on a CPU."""
    storage: Annotated[str, OneOf("cache.storage:FLOAT_STORAGES")] = "float16"
    """How tokens are kept: at 2 bytes a number (float16) or 1 (int8)."""


def _with_known_models(
    sections: Any, validate: ValidatorFunctionWrapHandler
) -> dict[str, EncoderSettings]:
    """Encoders that there are, as far as that is known without files of theirs."""
    problems: list[InitErrorDetails] = []
    try:
        validated: dict[str, EncoderSettings] = validate(sections)
    except ValidationError as error:
        problems += [_detail(e["loc"], e["type"], e["msg"], e["input"]) for e in error.errors()]
    for name, section in sections.items() if isinstance(sections, dict) else ():
        if problem := _model_problem(name, section):
            problems.append(_detail((name,), "value_error", problem, name))
    if problems:
        raise ValidationError.from_exception_data("encoders", problems)
    return validated


def _detail(loc: tuple[int | str, ...], kind: str, message: str, given: Any) -> InitErrorDetails:
    error = PydanticCustomError(kind, "{message}", {"message": message})
    return InitErrorDetails(type=error, loc=loc, input=given)


def _model_problem(name: str, section: Any) -> str | None:
    """What is wrong with the name or the model of an encoder's section, if anything is."""
    settings = section if isinstance(section, dict) else dict(section)
    model, library = settings.get("model"), settings.get("library", "timm")
    if model is not None and not COLUMN_NAME.fullmatch(name):
        return NO_FOLDER.format(name)
    if library != "timm":
        return None if model else f"model: required, as {library} has none by the name {name!r}"
    try:
        find_encoder(name if model is None else model)
    except EncoderError as error:
        return str(error)
    return None


Encoders = Annotated[dict[str, EncoderSettings], WrapValidator(_with_known_models)]


class ComponentsSettings(Settings):
    """Principal components of one encoder's cached tokens, a column of their own."""

    encoder: str
    """One of `[encoders]`, of whose tokens they are."""
    count: Count = 8
    """How many of the first components are kept."""
    sample_rows: Count = 76_800
    """Images whose tokens they are fitted to: all, if the cache has no more."""
    seed: Seed = 0
    """Of the choice of these images."""

    @property
    def recipe(self) -> dict[str, RecipeValue]:
        """What it decides of the column's recipe, beside the column that it is derived from."""
        return {"components": self.count, "sample_rows": self.sample_rows, "seed": self.seed}


def _check_names(sections: dict[str, ComponentsSettings]) -> dict[str, ComponentsSettings]:
    for name in sections:
        if not COLUMN_NAME.fullmatch(name):
            raise ValueError(NO_FOLDER.format(name))
    return sections


Components = Annotated[dict[str, ComponentsSettings], AfterValidator(_check_names)]


class BuildSettings(Settings):
    """How stage one runs; nothing here changes what is cached beyond rounding."""

    batch_size: Count | None = None
    """Images per forward pass, on which the last bits of a GPU's results depend; by default 128 on
    a GPU, 32 on a CPU."""
    threads: Few | None = None
    """Threads that read and decode files, in all workers of `--workers` together; by default a
    thread for each core, in a process from 4 to 32."""
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
    build: BuildSettings

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
