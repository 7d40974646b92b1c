"""The sections of pipeline.toml that stage one reads."""

from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo

from stages.encode.images.sources.tables import Choice
from stages.encode.networks.autoencoder_files import (
    HUB_CONFIGS,
    AutoencoderError,
    downsampling,
    read_vae_config,
)
from stages.encode.networks.registry import EncoderError, find_encoder
from stages.setting_types import AnchoredPath, Count, Few, Seed, Settings, expanded, one_of

DEMO_AUTOENCODER = "demo-autoencoder"
# In which a frozen network computes.
Precision = Literal["float32", "float16"]


def _known_encoder(name: str) -> str:
    try:
        find_encoder(name)
    except EncoderError as error:
        raise ValueError(error) from error
    return name


Name = Annotated[str, Field(min_length=1)]
EncoderName = Annotated[str, AfterValidator(_known_encoder)]


class DatasetSettings(Settings):
    """`[dataset]`: the images.

    path: where a source that reads files finds them; split: the one to use of several that are
    there (`parquet` and `arrow`); image_column, label_column: names in such files, where the usual
    ones do not tell; resolution: side of the centre crop in px;
    flip: whether the mirrored images are encoded too, for training to choose from; pixels:
    whether the crops are kept, so that encoders can be added without the images; on_error:
    whether an image that cannot be decoded stops the build or becomes an invalid row, which
    training never draws.
    """

    source: Annotated[str, one_of("stages.encode.images.sources:SOURCES")]
    path: AnchoredPath | None = None
    split: Name | None = None
    image_column: Name | None = None
    label_column: Name | None = None
    resolution: Count = 256
    flip: bool = False
    pixels: bool = False
    on_error: Literal["stop", "skip"] = "stop"

    @property
    def choice(self) -> Choice:
        """What it chooses of tables."""
        return Choice(self.split, self.image_column, self.label_column)


class CacheSettings(Settings):
    """`[cache]`: where the tensors go.

    rows_per_shard: images per file and array; seed: of the permutation in which rows lie.
    """

    path: AnchoredPath
    rows_per_shard: Count = 1024
    seed: Seed = 0


def _anchor_folder(vae: str, info: ValidationInfo) -> str:
    """What begins with a dot is no hub name, but relative to the folder of pipeline.toml."""
    if not info.context:
        return vae
    vae = expanded(vae)
    return str((info.context["folder"] / vae).absolute()) if vae.startswith(".") else vae


VaeName = Annotated[str, AfterValidator(_anchor_folder)]


class LatentsSettings(Settings):
    """`[latents]`: the autoencoder.

    vae: a hub name, a local folder that begins with `.`, `/`, `~` or `$`, or `demo-autoencoder`;
    precision: in which it computes; imported: whether the data set brings its latents along (the
    source `repa`), so that nothing is encoded.
    """

    vae: VaeName = "stabilityai/sd-vae-ft-mse"
    precision: Precision = "float32"
    imported: bool = False

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
    """`[encoders.NAME]`: one frozen encoder.

    weights: a local file to load instead of timm's hub; input_size: side of its input in px,
    where another than the published one is wanted; precision: in which it computes; storage: how
    tokens are kept, at 2 bytes a number (float16) or 1 (int8).
    """

    weights: AnchoredPath | None = None
    input_size: Count | None = None
    precision: Precision = "float32"
    storage: Annotated[str, one_of("cache.storage:FLOAT_STORAGES")] = "float16"


class BuildSettings(Settings):
    """`[build]`: how stage one runs; nothing here changes what is cached beyond rounding.

    batch_size: images per forward pass, on which the last bits of a GPU's results depend;
    threads: for reading and decoding files.
    """

    batch_size: Count = 32
    threads: Few = 4
    device: str = "auto"


class EncodeSettings(Settings):
    """Everything that stage one needs to know."""

    dataset: DatasetSettings
    cache: CacheSettings
    latents: LatentsSettings
    encoders: dict[EncoderName, EncoderSettings]
    build: BuildSettings

    def input_size(self, encoder: str) -> int:
        """Side of an encoder's input in px."""
        published = find_encoder(encoder).size_for(self.dataset.resolution)
        return self.encoders[encoder].input_size or published

    def in_precision(self, precision: Precision) -> "EncodeSettings":
        """The same with all networks computing in one precision."""
        update = {"precision": precision}
        encoders = {n: own.model_copy(update=update) for n, own in self.encoders.items()}
        latents = self.latents.model_copy(update=update)
        return self.model_copy(update={"latents": latents, "encoders": encoders})

    def token_grid(self, encoder: str) -> int:
        """Side of an encoder's token grid."""
        return self.input_size(encoder) // find_encoder(encoder).stride
