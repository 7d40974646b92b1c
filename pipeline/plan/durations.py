"""How long a build takes, and how fast training will want to read.

Measured on this machine, or assumed of a GPU; which of both is always said.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from cache.layout import FEATURES, FLIPPED, Column
from pipeline.config import Config
from pipeline.plan.gpu_memory import Footprint, find_footprint
from pipeline.plan.reading_speed import GPU_FLOPS, Reading, measure_reading, scratch_cache
from pipeline.plan.space import Space
from stages.encode.building.recipes import text_column
from stages.encode.measuring.encode_speeds import Decoding, measure_networks
from stages.encode.measuring.foresight import ForeseenColumn, Images
from stages.encode.network_settings import Precision
from stages.latents import latent_shape, main_array
from stages.train.cached_data import encoder_of, shape_of, stored_arrays
from stages.train.run_model import config_for, training_flops
from stages.train.terms.run_terms import RunTerms
from stages.train.train_settings import CachedTensors

# Of an H100, whose float32 units reach 67 TFLOP/s: the tensor cores compute less precisely, with
# numbers of 32 bits at half the rate.
FLOPS: Mapping[Precision, float] = {"float16": GPU_FLOPS, "tf32": GPU_FLOPS / 2, "float32": 40e12}
# Of a core, for a JPEG file of 500 x 375 px and 86 KB (EPYC), where no image can be decoded.
DECODING_SECONDS = 0.004


@dataclass(frozen=True)
class Pace:
    """Seconds for an image, by column.

    building: with the networks as the configuration has them; online: with an encoder in every
    step of training, which published code runs in half precision.
    """

    building: Mapping[str, float]
    online: Mapping[str, float]


@dataclass(frozen=True)
class Measured:
    """What this machine was seen to do, on a device.

    decoding: None without images; write_bytes_per_second: to the disk of the cache; reading: of
    batches, from a cache of random rows.
    """

    device: str
    pace: Pace
    decoding: Decoding | None
    write_bytes_per_second: float
    reading: Reading


@dataclass(frozen=True)
class BuildTime:
    """Seconds of a build of what is missing, on one device.

    networks: by column; decoding, writing: None if not measured; is_shared: whether all of it
    runs on the same cores, one at the expense of the other.
    """

    networks: Mapping[str, float]
    decoding: float | None = None
    writing: float | None = None
    is_shared: bool = False

    @property
    def parts(self) -> dict[str, float]:
        """What runs side by side."""
        parts = {
            "networks": sum(self.networks.values()),
            "decoding": self.decoding,
            "writing": self.writing,
        }
        return {name: seconds for name, seconds in parts.items() if seconds is not None}

    @property
    def seconds(self) -> float:
        """Of all: as long as the slowest takes, or one after the other if they share cores."""
        return sum(self.parts.values()) if self.is_shared else max(self.parts.values())

    @property
    def slowest(self) -> str:
        """The part that takes the longest."""
        return max(self.parts, key=self.parts.__getitem__)


@dataclass(frozen=True)
class Feeding:
    """What GPUs that encode want to be fed with.

    images_per_second: of all of them; core_seconds: of one core to decode an image; is_measured:
    whether images were decoded here.
    """

    images_per_second: float
    core_seconds: float
    is_measured: bool

    @property
    def cores(self) -> float:
        """That are busy with decoding."""
        return self.images_per_second * self.core_seconds


@dataclass(frozen=True)
class ReadRate:
    """How fast batches have to come.

    image_bytes, image_arrays: of an image, as a run reads it, and in how many arrays they lie;
    images_per_second: that one GPU trains on; gpus: their number.
    """

    image_bytes: int
    image_arrays: int
    images_per_second: float
    gpus: int

    @property
    def needed_images_per_second(self) -> float:
        """By all GPUs."""
        return self.gpus * self.images_per_second

    @property
    def needed_bytes_per_second(self) -> float:
        """By all GPUs."""
        return self.needed_images_per_second * self.image_bytes


@dataclass(frozen=True)
class Trained:
    """What a run trains, with the modules of all terms.

    flops: operations for one image of a step; footprint: what it takes of a GPU's memory.
    """

    flops: float
    footprint: Footprint


def trained(config: Config, foreseen: Sequence[ForeseenColumn], classes: int) -> Trained:
    """The transformer as configured. classes: of the data set."""
    columns = {one.column.name: one.column for one in foreseen}
    shape_of_latents = latent_shape(columns[config.tensors.latents])

    def shape(name: str) -> tuple[int, ...]:
        return shape_of(name, columns[FEATURES + encoder_of(name)])

    context, features = _context(config, columns)
    model = config_for(config.train, shape_of_latents, classes, shape, features)
    return Trained(
        training_flops(config.train, model, shape, context),
        find_footprint(config.train, model, shape, context),
    )


def _context(config: Config, columns: Mapping[str, Column]) -> tuple[int, int]:
    """Tokens of a caption that the model reads, and their features; 0 of one that reads none."""
    text = config.tensors.text
    if text is None:
        return 0, 0
    tokens, features = columns[text_column(text)].array("tokens").row_shape
    return tokens, features


def read_rate(
    config: Config, foreseen: Sequence[ForeseenColumn], flops: float, gpus: int
) -> ReadRate:
    """What GPUs read that train the configured model. flops: of a step, for one image."""
    columns = {one.column.name: one.column for one in foreseen}
    parts = [main_array(columns[config.tensors.latents]).row_bytes]
    parts += [column.array(array).row_bytes for column, array in _arrays_read(config, columns)]
    for one in foreseen:
        if config.tensors.text is not None and one.column.name == text_column(config.tensors.text):
            parts.append(round(one.column.row_bytes * (one.stored or 1.0)))
    return ReadRate(sum(parts), len(parts), GPU_FLOPS / flops, gpus)


def _arrays_read(config: Config, columns: Mapping[str, Column]) -> list[tuple[Column, str]]:
    """What a run reads of its encoders, each array once."""
    read = {}
    for name in RunTerms.of(config.train).arrays:
        column = columns[FEATURES + encoder_of(name)]
        for array in stored_arrays(name, column):
            read[column.name, array] = (column, array)
    return list(read.values())


def assumed_pace(config: Config, foreseen: Sequence[ForeseenColumn]) -> Pace:
    """That of an H100, by the numbers of operations."""
    return Pace(
        {one.column.name: one.flops / FLOPS[_precision_of(config, one)] for one in foreseen},
        {one.column.name: one.flops / FLOPS["float16"] for one in foreseen},
    )


def _precision_of(config: Config, foreseen: ForeseenColumn) -> Precision:
    """In which the network of a column computes."""
    if foreseen.is_of_texts:
        return config.texts[foreseen.column.title].precision
    if foreseen.is_derived:
        return "float32"
    family, _, name = foreseen.column.name.removesuffix(FLIPPED).partition("/")
    own = config.encoders[name] if family == "features" else config.latents
    return own.precision


def build_time(
    foreseen: Sequence[ForeseenColumn], space: Space, pace: Pace, measured: Measured | None
) -> BuildTime:
    """How long the missing parts of a cache take."""
    networks = {
        one.column.name: one.missing_rows * pace.building[one.column.name] for one in foreseen
    }
    if measured is None:
        return BuildTime(networks)
    decoded = max(one.missing_rows for one in foreseen if not one.is_derived)
    return BuildTime(
        networks,
        decoded / measured.decoding.images_per_second if measured.decoding else None,
        space.missing.bytes / measured.write_bytes_per_second,
        is_shared=measured.device == "cpu",
    )


def feeding(
    foreseen: Sequence[ForeseenColumn], pace: Pace, measured: Measured | None, gpus: int
) -> Feeding | None:
    """What so many GPUs need that build what is missing; None if they need no images."""
    seconds = sum(pace.building[one.column.name] for one in foreseen if one.missing_rows)
    if not seconds:
        return None
    decoding = measured.decoding if measured else None
    core_seconds = decoding.core_seconds if decoding else DECODING_SECONDS
    return Feeding(gpus / seconds, core_seconds, decoding is not None)


def measure(
    config: Config,
    images: Images,
    foreseen: Sequence[ForeseenColumn],
    space: Space,
    decoding: Decoding | None,
    device: torch.device,
) -> Measured:
    """Run the networks, and write and read a cache of random rows beside the planned one."""
    building = measure_networks(config.encode, foreseen, device)
    online = building
    if device.type != "cpu":
        online = measure_networks(config.encode.in_precision("float16"), foreseen, device)
    tensors = config.tensors
    names = {name for views in tensors.columns(config.train.encoders) for name in views}
    columns = [one.column for one in foreseen if one.column.name in names]
    name = config.cache.path.name
    with scratch_cache(space.folder, name, columns, images.table, space.free_bytes) as scratch:
        scratched = CachedTensors(scratch.path, tensors.latents, tensors.flip)
        reading = measure_reading(config.train, scratched)
    return Measured(
        device.type, Pace(building, online), decoding, scratch.bytes_per_second, reading
    )
