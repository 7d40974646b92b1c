"""The plan of a pipeline.toml: all that can be said of it before anything runs."""

from contextlib import suppress
from dataclasses import dataclass

from pipeline.config import Config
from pipeline.plan.durations import (
    BuildTime,
    Measured,
    Pace,
    ReadRate,
    assumed_pace,
    build_time,
    measure,
    read_rate,
    step_flops,
)
from pipeline.plan.gains import Gains, find_gains
from pipeline.plan.space import PHOTOGRAPHS_COMPRESSED, Space, find_space
from stages.encode.images.crop_sources import open_source
from stages.encode.images.sources import SourceError
from stages.encode.measuring.encode_speeds import MEASURE_SECONDS, Decoding, measure_decoding
from stages.encode.measuring.foresight import ForeseenColumn, Images, count_images, foresee
from stages.placement import find_device


@dataclass(frozen=True)
class Plan:
    """What a pipeline.toml costs and gains. measured: None if speeds are assumed."""

    config: Config
    images: Images
    foreseen: tuple[ForeseenColumn, ...]
    space: Space
    pace: Pace
    build: BuildTime
    rate: ReadRate
    gains: Gains
    measured: Measured | None

    @property
    def device_name(self) -> str:
        """What computes, as times are given for."""
        return "GPU" if self.measured is None else self.measured.device.upper()


def make_plan(config: Config, count: int | None, gpus: int, *, is_measured: bool = False) -> Plan:
    """Plan a cache and its run.

    count: of images, if they are not to be counted; gpus: that will train; is_measured: whether
    speeds are measured here, which takes some seconds and writes a cache of random rows that is
    removed again.
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
        measured = measure(config, images, foreseen, space, decoding, device)
    pace = measured.pace if measured else assumed_pace(config, foreseen)
    flops = step_flops(config, foreseen, len(images.table.classes))
    return Plan(
        config=config,
        images=images,
        foreseen=tuple(foreseen),
        space=space,
        pace=pace,
        build=build_time(foreseen, space, pace, measured),
        rate=read_rate(config, foreseen, flops, gpus),
        gains=find_gains(config, foreseen, images.count, flops, pace),
        measured=measured,
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
