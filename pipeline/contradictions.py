"""What is valid by itself in a configuration, but does not fit together."""

from collections.abc import Collection, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from pipeline.required_files import EVERYTHING, Need, missing_files
from stages.encode.images.sources import SOURCES
from stages.encode.images.sources.source import FileSettings
from stages.encode.networks.registry import EncoderError, EncoderSpec, find_encoder
from stages.model.sizes import MODELS
from stages.sample.solvers import SOLVERS, find_solver
from stages.setting_types import nearest
from stages.train.terms.joint import Joint
from stages.train.terms.redi import Redi
from stages.train.terms.term import Term
from stages.train.train_settings import ComputeSettings, TrainSettings

if TYPE_CHECKING:
    from pipeline.config import Config


def contradictions(
    config: "Config", world: int, needs: Collection[Need] = EVERYTHING
) -> Iterator[str]:
    """A line for each.

    world: number of processes that will train; needs: what has to be there.
    """
    train = config.train
    yield from _alignments(config)
    yield from _components(config)
    yield from _texts(config)
    yield from _training(train)
    yield from _shares(train, world)
    yield from _sampling(config)
    yield from _space(config)
    yield from _sources(config)
    yield from missing_files(config, needs)
    yield from _judges(config)
    yield from _grids(config)


def _alignments(config: "Config") -> Iterator[str]:
    train = config.train
    for number, term in enumerate(train.align):
        own = (*_read(config, term), *_depths(train, term), *term.problems(train))
        yield from (f"train.align.{number}.{problem}" for problem in own)
        if term.compares_images and train.compute.micro_batches > 1:
            yield (
                f"train.compute.micro_batches: {term.kind!r} needs the whole batch at once "
                f"(train.align.{number})"
            )


def _read(config: "Config", term: Term) -> Iterator[str]:
    known = {**config.encoders, **config.components}
    for name in term.encoders:
        if name not in known:
            hint = f"; {nearest(name, known)}" if known else ""
            yield f"encoder: {name!r} has no section [encoders.{name}]{hint}"
        elif isinstance(term, Redi) and name not in config.components:
            yield (
                f"encoder: {name!r} has tokens of many features; make a section "
                "[components.NAME] of it, and name that"
            )


def _depths(train: TrainSettings, term: Term) -> Iterator[str]:
    blocks = MODELS[train.model].size.depth
    for key, depths in (("depth", term.depths), ("teacher_depth", term.teacher_depths)):
        for depth in depths:
            if depth > blocks:
                yield f"{key}: {train.model} has {blocks} blocks, got {depth}"


def _texts(config: "Config") -> Iterator[str]:
    train = config.train
    if not train.reads_text:
        if train.text is not None:
            yield f"train.text: {train.model} reads no captions, as an MMDiT does"
    elif train.text is None:
        named = ", ".join(config.texts) or "none yet"
        yield f"train.text: {train.model} reads captions; name a section of [texts] ({named})"
    elif train.text not in config.texts:
        hint = f"; {nearest(train.text, config.texts)}" if config.texts else ""
        yield f"train.text: [texts.{train.text}] is not there{hint}"


def _components(config: "Config") -> Iterator[str]:
    for name, own in config.components.items():
        if name in config.encoders:
            yield f"components.{name}: [encoders.{name}] has that name; choose another"
        if own.encoder not in config.encoders:
            hint = f"; {nearest(own.encoder, config.encoders)}" if config.encoders else ""
            yield f"components.{name}.encoder: {own.encoder!r} has no section{hint}"


def _training(train: TrainSettings) -> Iterator[str]:
    if train.keep_every is not None and train.keep_every % train.checkpoint_every:
        yield f"train.keep_every: {train.keep_every} is no multiple of train.checkpoint_every"
    if train.legacy_label_dropping and not train.label_dropping:
        yield "train.legacy_label_dropping: train.label_dropping is 0"
    if train.init_layout is not None and train.init_from is None:
        yield "train.init_layout: of which file? Name it with train.init_from"
    yield from _computing(train.compute)
    if train.reads_text:
        for key, value in (("rotary", train.rotary), ("value_residual", train.value_residual)):
            if value:
                yield f"train.{key}: {train.model} has no such layers"
    if (of_family := {"DiT": _diffusion, "JiT": _pixels}.get(train.family)) is not None:
        yield from of_family(train)


def _computing(compute: ComputeSettings) -> Iterator[str]:
    if compute.deterministic and compute.attention == "cudnn":
        yield "train.compute.attention: 'cudnn' needs deterministic = false"
    if compute.deterministic and compute.compile == "max-autotune":
        yield "train.compute.compile: 'max-autotune' needs deterministic = false"
    if compute.attention != "auto" and not compute.fused_attention:
        yield f"train.compute.attention: {compute.attention!r} needs fused_attention = true"
    if compute.reshard and compute.parallel == "ddp":
        yield "train.compute.reshard: with parallel = 'ddp' each process holds all weights anyway"


def _diffusion(train: TrainSettings) -> Iterator[str]:
    for key, value, only in (
        ("interpolant", train.interpolant, "linear"),
        ("times", train.times, "uniform"),
        ("time_shift", train.time_shift, None),
    ):
        if value != only:
            yield f"train.{key}: {value!r} is for SiT; {train.model} has a schedule of its own"


def _pixels(train: TrainSettings) -> Iterator[str]:
    """What JiT has in its own way."""
    layers = {"norm": "layer", "mlp": "gelu", "qk_norm": False, "rotary": False}
    others = {"value_residual": False, "interpolant": "linear", "times": "uniform"}
    for key, only in {**layers, **others, "time_shift": None}.items():
        if (value := getattr(train, key)) != only:
            yield f"train.{key}: {value!r} is not for {train.model}, which has its own"
    for number, term in enumerate(train.align):
        if isinstance(term, Joint) or term.kind == "contrastive":
            yield f"train.align.{number}.kind: {term.kind!r} is not for {train.model}"


def _sampling(config: "Config") -> Iterator[str]:
    sample, train, family = config.sample, config.train, config.train.family
    if sample.contrastive_correction and all(term.kind != "contrastive" for term in train.align):
        yield "sample.contrastive_correction: train.align has no entry of kind 'contrastive'"
    # Samples may be drawn from other weights, but grids are of this run.
    if train.grid_every and sample.class_guidance is not None and not train.has_class_token:
        yield "sample.class_guidance: no entry of kind 'class-token' is there for the run's grids"
    if sample.time_shift is not None and family == "JiT":
        yield f"sample.time_shift: {train.model} has a grid of times of its own"
    if sample.solver != "auto" or family == "DiT":
        name = find_solver(sample.solver, family)
        if SOLVERS[name].family != family:
            fitting = [other for other, solver in SOLVERS.items() if solver.family == family]
            yield f"sample.solver: {name!r} is not for {family}; it takes {', '.join(fitting)}"
        elif problem := SOLVERS[name].problem_with(sample.steps):
            yield f"sample.steps: {problem}"
        elif sample.time_shift is not None and not SOLVERS[name].has_grid:
            yield f"sample.time_shift: {name!r} has no grid of times to shift"


def _space(config: "Config") -> Iterator[str]:
    """What is diffused, and by which models."""
    train, latents = config.train, config.latents
    if train.family == "JiT" and not latents.is_pixels:
        yield f'train.model: {train.model} diffuses pixels; set latents.vae to "pixels"'
    if latents.is_pixels and latents.scaling != "auto":
        yield "latents.scaling: pixels have one of their own; leave it out"
    if latents.is_pixels and latents.imported:
        yield "latents.imported: there are no latents in the space of pixels"


def _shares(train: TrainSettings, world: int) -> Iterator[str]:
    parts = train.compute.micro_batches
    if train.batch_size % (world * parts):
        by = f"{world} processes" + (f" with {parts} micro-batches each" if parts > 1 else "")
        yield f"train.batch_size: {train.batch_size} images cannot be shared by {by}"
    for term in train.align:
        if (share := train.batch_size // world) < term.least_images:
            yield (
                f"train.batch_size: {term.kind!r} compares the images of a process, which has "
                f"{share} here and needs {term.least_images}"
            )


def _sources(config: "Config") -> Iterator[str]:
    dataset = config.dataset
    # A cache that tells of itself does so without it.
    if isinstance(dataset, FileSettings) and dataset.path is None:
        yield f"dataset.path: required by the source {dataset.source!r}"
    yield from _imported(config)
    for name, text in config.texts.items():
        if text.imported and dataset.source != "u-vit":
            yield f"texts.{name}.imported: only the source 'u-vit' brings tokens of captions along"


def _imported(config: "Config") -> Iterator[str]:
    """Latents that the data set brings along."""
    dataset, kind = config.dataset, SOURCES[config.dataset.source]
    if config.latents.imported and kind.brings is None:
        sources = ", ".join(repr(name) for name, one in SOURCES.items() if one.brings)
        yield f"latents.imported: only the sources {sources} bring latents along"
    elif config.latents.imported and dataset.flip and not kind.brings_mirrored:
        yield "latents.imported: there are no imported latents of mirrored images (dataset.flip)"
    if kind.has_images:
        return
    alone = f"the source {dataset.source!r} has latents alone"
    if not config.latents.imported:
        yield f"latents.imported: {alone}; set it to true"
    if dataset.pixels:
        yield f"dataset.pixels: {alone}, and no images"
    for name in config.encoders:
        yield f"encoders.{name}: {alone}, and no images for an encoder"


def _judges(config: "Config") -> Iterator[str]:
    for name in config.evaluate.frechet_encoders:
        if name not in config.encoders:
            try:
                find_encoder(name)
            except EncoderError as error:
                yield f"evaluate.frechet_encoders: {error}"


def _known_encoders(config: "Config") -> dict[str, EncoderSpec]:
    """The encoders of which it is known what they are: files of others may be elsewhere."""
    known = {}
    for name in config.encoders:
        with suppress(EncoderError):
            known[name] = config.encode.spec(name)
    return known


def _grids(config: "Config") -> Iterator[str]:
    """Whether images, latents, patches and tokens divide one another."""
    resolution, train = config.dataset.resolution, config.train
    encoders = _known_encoders(config)
    for name, encoder in encoders.items():
        if problem := encoder.size_problem(config.encode.input_size(name)):
            yield f"encoders.{name}.input_size: {problem}"
    factor = config.latents.downsampling
    if factor is None:
        return
    if problem := config.latents.problem_with(resolution):
        yield f"dataset.resolution: {problem}"
        return
    side = resolution // factor
    patch = MODELS[train.model].patch
    if side % patch:
        yield f"train.model: {train.model} cannot cut latents of side {side} into its patches"
        return
    grid = side // patch
    for name in set(train.on_grid) & encoders.keys():
        tokens, encoder = config.encode.token_grid(name), encoders[name]
        if tokens != grid:
            yield (
                f"encoders.{name}: its tokens lie on a grid of {tokens} x {tokens}, those of "
                f"{train.model} on {grid} x {grid}; {encoder.advice(grid)}"
            )
