"""The plan of a pipeline.toml: what can be said before anything runs."""

from contextlib import suppress
from dataclasses import dataclass

import torch

from pipeline.config import Config
from pipeline.plan import durations
from pipeline.plan.gains import Gains, find_gains
from pipeline.plan.gpu_memory import CARD_BYTES, Footprint, GpuMemory, gpu_memory
from pipeline.plan.space import PHOTOGRAPHS_COMPRESSED, Space, find_space
from pipeline.plan.store_use import UNPRICED, Prices, Use, uses
from stages.encode.images.crop_sources import open_source
from stages.encode.images.sources import SourceError
from stages.encode.measuring.encode_speeds import MEASURE_SECONDS, Decoding, measure_decoding
from stages.encode.measuring.foresight import ForeseenColumn, Images, count_images, foresee
from stages.placement import find_device


@dataclass(frozen=True)
class Plan:
    """What a pipeline.toml costs and gains.

    footprint: what the run takes of a GPU's memory; card_bytes: of that; measured: None if speeds
    are assumed; feeding: None if no GPU will be fed with images; uses: of the store that the cache
    lies in.
    """

    config: Config
    images: Images
    foreseen: tuple[ForeseenColumn, ...]
    footprint: Footprint
    card_bytes: float
    space: Space
    pace: durations.Pace
    build: durations.BuildTime
    rate: durations.ReadRate
    gains: Gains
    measured: durations.Measured | None
    feeding: durations.Feeding | None
    uses: tuple[Use, ...]

    @property
    def memory(self) -> GpuMemory:
        """What the run takes of each GPU."""
        return gpu_memory(self.footprint, self.config.train, self.rate.gpus)

    @property
    def device_name(self) -> str:
        """What computes, as times are given for."""
        return "GPU" if self.measured is None else self.measured.device.upper()

    @property
    def has_gpu(self) -> bool:
        """Whether it is about GPUs, and not measured on a CPU."""
        return self.device_name != "CPU"


def make_plan(
    config: Config,
    count: int | None,
    gpus: int,
    *,
    is_measured: bool = False,
    card_bytes: float | None = None,
    prices: Prices = UNPRICED,
) -> Plan:
    """Plan a cache and its run.

    count: of images, if they are not to be counted; gpus: that will encode and train; is_measured:
    whether speeds are measured here, which takes some seconds and writes a cache of random rows
    that is removed again; card_bytes: the memory of a GPU, by default that of the one here if it
    is measured; prices: of a store.
    """
    images = count_images(config.encode, count)
    foreseen = foresee(config.encode, images)
    decoding = _decoding(config, images, is_measured=is_measured)
    space = find_space(
        config.cache.path,
        foreseen,
        images,
        decoding.compressed if decoding else PHOTOGRAPHS_COMPRESSED,
    )
    measured = None
    if is_measured:
        device = find_device(config.build.device)
        measured = durations.measure(config, images, foreseen, space, decoding, device)
        if device.type == "cuda":
            card_bytes = card_bytes or torch.cuda.get_device_properties(device).total_memory
    pace = measured.pace if measured else durations.assumed_pace(config, foreseen)
    trained = durations.trained(config, foreseen, len(images.table.classes))
    rate = durations.read_rate(config, foreseen, trained.flops, gpus)
    is_stored, block_rows = space.free_bytes is None, config.train.block_rows
    return Plan(
        config=config,
        images=images,
        foreseen=tuple(foreseen),
        footprint=trained.footprint,
        card_bytes=card_bytes or CARD_BYTES,
        space=space,
        pace=pace,
        build=durations.build_time(foreseen, space, pace, measured),
        rate=rate,
        gains=find_gains(config, foreseen, images.count, trained.flops, pace),
        measured=measured,
        feeding=durations.feeding(foreseen, pace, measured, gpus),
        uses=tuple(uses(space, rate, images.count, block_rows, prices)) if is_stored else (),
    )


def _decoding(config: Config, images: Images, *, is_measured: bool) -> Decoding | None:
    """How fast images are decoded and how small they become, if that matters and they are there."""
    source = images.source
    if source is None and is_measured:
        with suppress(SourceError):
            source = open_source(config.encode)
    if source is None or not (is_measured or config.dataset.pixels):
        return None
    return measure_decoding(source, config.encode, MEASURE_SECONDS if is_measured else 0)
