"""What follows from a plan: a sentence or two for each thing to know or to do."""

from collections.abc import Iterator

from rich.filesize import decimal

from cache.layout import FLIPPED
from pipeline.plan.gpu_memory import ways_to_fit
from pipeline.plan.outline import Plan
from pipeline.tables import count, duration, percent, rate
from pipeline.toml_documents import as_toml
from stages.encode.building.recipes import features_column
from stages.train.cached_data import notes_on_means
from stages.train.terms.run_terms import RunTerms

# Below this share of a run, a cache is not worth its disk and its build for that run alone.
LITTLE = 0.1
# A sweep.
SWEEP_RUNS = 10


def advice(plan: Plan) -> list[str]:
    """The sentences, what matters most first."""
    parts = (_room, _worth, _precision, _decoding, _memory, _reading, _means)
    return [sentence for part in parts for sentence in part(plan)]


def _room(plan: Plan) -> Iterator[str]:
    space = plan.space
    if space.free_bytes is None or space.fits:
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
    if not plan.has_gpu or not plan.build.seconds:
        return
    encoders, latents = plan.config.encoders, plan.config.latents
    ways = []
    if latents.precision == "float32" and not (latents.imported or latents.is_pixels):
        ways.append('"tf32" for the VAE')
    if exact := [name for name, own in encoders.items() if own.precision == "float32"]:
        ways.append(f'"float16" for {", ".join(exact)}')
    if ways:
        yield (
            f"precision = {' and '.join(ways)} makes a build on a GPU several times as fast, and "
            "is what published code computes in (latents differ by at most 1.5e-3, tokens of a ViT "
            "by 5e-4)."
        )


def _decoding(plan: Plan) -> Iterator[str]:
    feeding = plan.feeding
    if feeding is None or not plan.has_gpu:
        return
    gpus = "A GPU encodes" if plan.rate.gpus == 1 else f"{plan.rate.gpus} GPUs encode"
    how = "measured here" if feeding.is_measured else "assumed"
    yield (
        f"{gpus} {rate(feeding.images_per_second)} images/s at that speed; decoding keeps "
        f"{count(feeding.cores)} cores busy ({feeding.core_seconds * 1e3:.2g} ms of a core an "
        f"image, {how})."
    )


def _memory(plan: Plan) -> Iterator[str]:
    memory, card, train = plan.memory, plan.card_bytes, plan.config.train
    if memory.fits(card):
        return
    ways = [
        f"{', '.join(f'{name} = {as_toml(value)}' for name, value in one.settings.items())} "
        f"({decimal(round(one.memory.peak))})"
        for one in ways_to_fit(plan.footprint, train, plan.rate.gpus, card)
    ]
    gpus = f"{plan.rate.gpus} GPUs" if plan.rate.gpus > 1 else "a GPU"
    yield (
        f"A step of {train.batch_size} images on {gpus} needs about {decimal(round(memory.peak))} "
        f"of memory on each, which has {decimal(round(card))}. Ways, in "
        f"[train.compute]: {'; '.join(ways) or 'none: it takes more GPUs or larger ones'}."
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
