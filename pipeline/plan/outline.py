"""The plan of a pipeline.toml: what can be said before anything runs, and advice."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from rich.filesize import decimal

from cache.layout import FLIPPED
from pipeline.config import Config
from pipeline.plan import durations
from pipeline.plan.gains import Gains, find_gains
from pipeline.plan.space import PHOTOGRAPHS_COMPRESSED, Space, find_space
from pipeline.tables import count, duration, percent
from stages.encode.building.columns import features_column
from stages.encode.images.crop_sources import open_source
from stages.encode.images.sources import SourceError
from stages.encode.measuring.encode_speeds import MEASURE_SECONDS, Decoding, measure_decoding
from stages.encode.measuring.foresight import ForeseenColumn, Images, count_images, foresee
from stages.placement import find_device
from stages.train.cached_data import notes_on_means
from stages.train.terms.run_terms import RunTerms

# Below this share of a run, a cache is not worth its disk and its build for that run alone.
LITTLE = 0.1
# A sweep.
SWEEP_RUNS = 10


@dataclass(frozen=True)
class Plan:
    """What a pipeline.toml costs and gains.

    parameters: that the run trains; measured: None if speeds are assumed.
    """

    config: Config
    images: Images
    foreseen: tuple[ForeseenColumn, ...]
    parameters: int
    space: Space
    pace: durations.Pace
    build: durations.BuildTime
    rate: durations.ReadRate
    gains: Gains
    measured: durations.Measured | None

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
        measured = durations.measure(config, images, foreseen, space, decoding, device)
    pace = measured.pace if measured else durations.assumed_pace(config, foreseen)
    trained = durations.trained(config, foreseen, len(images.table.classes))
    return Plan(
        config=config,
        images=images,
        foreseen=tuple(foreseen),
        parameters=trained.parameters,
        space=space,
        pace=pace,
        build=durations.build_time(foreseen, space, pace, measured),
        rate=durations.read_rate(config, foreseen, trained.flops, gpus),
        gains=find_gains(config, foreseen, images.count, trained.flops, pace),
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


def advice(plan: Plan) -> list[str]:
    """A sentence or two for each thing to know or to do."""
    parts = (_room, _worth, _precision, _reading, _means)
    return [sentence for part in parts for sentence in part(plan)]


def _room(plan: Plan) -> Iterator[str]:
    space = plan.space
    if space.fits:
        return
    lacking = space.needed_bytes - space.free_bytes
    ways = []
    if floats := _floats(plan):
        saved = sum(
            one.missing.bytes // 2
            for one in space.arrays
            if one.array.name == "tokens" and one.array.dtype == "float16"
        )
        ways.append(f'storage = "int8" for {floats} (saves {decimal(saved)})')
    used = set(map(plan.config.encode.network, plan.config.train.encoders))
    unused = [name for name in plan.config.encoders if name not in used]
    if unused:
        ways.append(f"fewer encoders (this run does not need {', '.join(unused)})")
    ways.append("another disk (cache.path)")
    yield f"It does not fit: {decimal(lacking)} more are needed. Ways: {'; '.join(ways)}."
    if space.missing.bytes <= space.free_bytes:
        yield (
            "Compressed as expected it would fit, but a build begins only with room for pixels "
            "that do not compress."
        )


def _floats(plan: Plan) -> str:
    """The encoders whose tokens take two bytes a number."""
    encoders = plan.config.encoders.items()
    return ", ".join(name for name, own in encoders if own.storage == "float16")


def _worth(plan: Plan) -> Iterator[str]:
    gains, encoders = plan.gains, plan.config.train.encoders
    epochs, runs = gains.break_even_epochs, gains.break_even_runs
    if epochs is None or runs is None:
        yield (
            "This run aligns to no encoder: the cache gives it latents, which published code "
            "precomputes too, and saves nothing beyond that."
        )
        return
    ahead = f"{count(epochs)} epochs ({count(runs)} runs)"
    many = f"{SWEEP_RUNS} runs save {percent(gains.saving(SWEEP_RUNS))}"
    if _is_built(plan):
        yield f"Its tokens are there: a run from them saves {percent(gains.run_saving)}."
    elif runs > 1:
        yield (
            f"A run of {count(gains.aligned_epochs)} epochs is shorter than the {ahead} after "
            f"which encoding once is cheaper. For this run alone, {', '.join(encoders)} is better "
            f"run online{f'; {many}' if runs < SWEEP_RUNS else ''}."
        )
    elif gains.run_saving < LITTLE:
        yield (
            f"For one run it gains little: {percent(gains.run_saving)} of its operations, "
            f"{percent(gains.saving(1))} with the encoding for it counted, for "
            f"{decimal(_features_bytes(plan))} of disk. It pays for sweeps ({many}, "
            f"{_saved(plan, SWEEP_RUNS)}), for larger or several encoders, and for smaller "
            "transformers."
        )
    else:
        yield (
            f"It pays after {ahead}: one run saves {percent(gains.saving(1))} with the encoding "
            f"for it counted, {_saved(plan, 1)}; {many}."
        )


def _is_built(plan: Plan) -> bool:
    """Whether nothing lacks of what the run reads."""
    views = plan.config.tensors.columns(plan.config.train.encoders)
    names = {name for column in views for name in column}
    return not any(one.missing_rows for one in plan.foreseen if one.column.name in names)


def _saved(plan: Plan, runs: int) -> str:
    """Time that so many runs save, less what is spent before."""
    seconds = runs * plan.gains.saved_seconds - plan.gains.build_seconds
    return f"{duration(seconds)} of one {plan.device_name}"


def _features_bytes(plan: Plan) -> int:
    names = {features_column(encoder) for encoder in plan.config.train.encoders}
    arrays = (one for one in plan.space.arrays if one.column.removesuffix(FLIPPED) in names)
    return sum(one.whole.bytes for one in arrays)


def _precision(plan: Plan) -> Iterator[str]:
    exact = [n for n, own in plan.config.encoders.items() if own.precision == "float32"]
    exact += ["the VAE"] if plan.config.latents.precision == "float32" else []
    if plan.measured is None and exact and plan.build.seconds:
        yield (
            f'precision = "float16" for {", ".join(exact)} makes a build on a GPU several times '
            "as fast (tokens differ by 5e-4, latents by 1.5e-3)."
        )


def _means(plan: Plan) -> Iterator[str]:
    columns = {one.column.name: one.column for one in plan.foreseen}
    arrays = RunTerms.of(plan.config.train).arrays
    for note in notes_on_means(arrays, lambda name: columns[features_column(name)]):
        yield f"{note}."


def _reading(plan: Plan) -> Iterator[str]:
    if plan.measured is None:
        yield "Speeds are assumed: --measure runs the networks and this disk for some seconds."
        return
    cold, needed = plan.measured.reading.cold, plan.rate.needed_images_per_second
    if cold < needed:
        ways = ["a faster disk (cache.path)", "train.block_rows on network storage"]
        if floats := _floats(plan):
            ways.insert(0, f'storage = "int8" for {floats}')
        yield (
            f"This disk feeds {cold / plan.rate.images_per_second:.2g} of {plan.rate.gpus} GPUs. "
            f"Ways: {'; '.join(ways)}."
        )
