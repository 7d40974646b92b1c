"""The sections of pipeline.toml that say which frozen networks there are, and how each is used."""

import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    PositiveFloat,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from cache.layout import LATENTS, PIXELS
from cache.recipe import RecipeValue
from stages.encode.networks.autoencoder_files import (
    FILE_SUFFIXES,
    HUB_SHAPES,
    local_config,
    whole_config,
)
from stages.encode.networks.autoencoders import AutoencoderError
from stages.encode.networks.registry import EncoderError, find_encoder
from stages.encode.networks.text_models import TEXT_MODELS
from stages.latents import Rule
from stages.setting_paths import AnchoredPath, expanded
from stages.setting_types import Count, OneOf, Seed, Settings, nearest

DEMO_AUTOENCODER = "demo-autoencoder"
# In the place of an autoencoder: there is none, and crops are diffused.
PIXEL_SPACE = "pixels"
# In which a frozen network computes.
Precision = Literal["float32", "tf32", "float16"]
# Of encoders that are called otherwise than their models.
COLUMN_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*", re.ASCII)
NO_FOLDER = "{!r} names a folder of the cache: letters, digits and any of . _ + - make one"


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
    """A hub name (`OWNER/NAME`, or with a file of LDM `OWNER/NAME/FILE.pt`), a local folder or file
    that begins with `.`, `/`, `~` or `$`, or `demo-autoencoder`; `pixels` for none, where models
    diffuse the crops themselves."""
    precision: Precision = "float32"
    """In which it computes; tf32 is float32 on a CPU."""
    scaling: Rule = "auto"
    """By which latents z become what a model sees: (z - shift) times one `factor`; (z - mean) /
    deviation of each of the `channels`; this times the factor (`channels-and-factor`); or by means
    and deviations that are `measured` of the cached latents. `auto` is the only one that the
    autoencoder's configuration allows for. It may be changed without encoding anew."""
    scaling_factor: PositiveFloat | None = None
    """That factor, where the autoencoder's files have none, or another."""
    statistics: HubName | None = None
    """A file with the mean and deviation of each channel, named likewise, as they are published
    beside VA-VAE's and REPA-E's weights."""
    imported: bool = False
    """Whether the data set brings its latents along (the sources `repa`, `u-vit` and
    `lightningdit`), so that none are encoded."""

    @property
    def is_pixels(self) -> bool:
        """Whether there is no autoencoder."""
        return self.vae == PIXEL_SPACE

    @property
    def column(self) -> str:
        """The name of the column that holds what is diffused."""
        if self.is_pixels:
            return PIXELS
        path = Path(self.vae)
        return LATENTS + (path.stem if path.suffix in FILE_SUFFIXES else path.name)

    @property
    def location(self) -> str:
        """The folder or hub name to load it from."""
        demo = files("stages.encode.networks") / "demo_autoencoder"
        return str(demo) if self.vae == DEMO_AUTOENCODER else self.vae

    @property
    def downsampling(self) -> int | None:
        """Pixels per latent along a side, as far as it is known without a download."""
        if self.is_pixels:
            return 1
        config = self._known
        if config is None:
            return None
        family, whole = whole_config(config, self.vae)
        return family.downsampling(whole)

    def problem_with(self, side: int) -> str | None:
        """Why the autoencoder takes no images of `side` px, if so, as far as it is known."""
        config = self._known
        if config is None:
            return None
        family, whole = whole_config(config, self.vae)
        return family.problem_with(whole, side)

    @property
    def _known(self) -> Mapping[str, Any] | None:
        """A configuration that tells shapes, as far as it is to be had without a download."""
        if not Path(self.location).exists():
            return HUB_SHAPES.get(self.vae)
        return None if self.problem else local_config(Path(self.location))

    @property
    def problem(self) -> str | None:
        """What is wrong with a local folder or file, if anything is."""
        path = Path(self.location)
        if path.is_absolute() and not path.exists():
            return f"there is no {'file' if path.suffix in FILE_SUFFIXES else 'folder'} {path}"
        try:
            if path.exists():
                local_config(path)
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


class TextSettings(Settings):
    """One frozen text encoder."""

    model: HubName | None = None
    """A folder that begins with `.`, `/`, `~` or `$`, or a hub name, of any text model of
    transformers; by default the model that the section is named after."""
    imported: bool = False
    """Whether the data set brings the tokens along (the source `u-vit`), so that none are encoded;
    `model` is then for prompts alone."""
    max_tokens: Count | None = None
    """Tokens that a caption is cut or padded to, those at its ends included; by default as many as
    CLIP and SigLIP were trained with, and 120 for others."""
    padding: Literal["seen", "masked"] | None = None
    """Whether the encoder and the transformer see padding, as published for CLIP, or are told which
    it is; then it is not stored. By default `seen` with CLIP and SigLIP, `masked` with others."""
    padding_id: int | None = None
    """The token that pads; by default the tokeniser's."""
    layer: Annotated[int, Field(lt=0)] = -1
    """Whose hidden states are kept: -1 is what the model ends with, its final norm included, -2
    what its last block is given."""
    cleaning: Literal["none", "spaces", "lower"] = "none"
    """What is done to captions first: `spaces` takes blanks from the ends and leaves one between
    words, `lower` writes them in small letters too."""
    precision: Precision = "float32"
    """In which it computes; tf32 is float32 on a CPU."""
    storage: Annotated[str, OneOf("cache.storage:FLOAT_STORAGES")] = "float16"
    """How tokens are kept: at 2 bytes a number (float16) or 1 (int8)."""

    def location(self, name: str) -> str:
        """Where the model of a section is: a folder, a hub name, or one of `TEXT_MODELS`."""
        return self.model or name


def _check_texts(sections: dict[str, TextSettings]) -> dict[str, TextSettings]:
    for name, own in sections.items():
        if not COLUMN_NAME.fullmatch(name):
            raise ValueError(NO_FOLDER.format(name))
        if own.model is None and not own.imported and name not in TEXT_MODELS:
            raise ValueError(f"{name}: model: required; {nearest(name, TEXT_MODELS)}")
    return sections


Texts = Annotated[dict[str, TextSettings], AfterValidator(_check_texts)]
