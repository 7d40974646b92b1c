"""What train.py compares: three loops over a cache of random numbers, each in its own process.

B images, S their side in px, T tokens, D features.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from unittest.mock import patch

import numpy as np
import torch
from method_settings import COMPONENTS
from plain_training import Inputs, PlainLoop, SiT
from torch import Tensor

from cache.layout import VALID, ArraySpec, Column
from cache.metadata import constants_recipe, create_column
from cache.rows import RowTable, create_cache
from cache.storage import STORAGES
from cache.writer import ShardWriter
from stages.encode.networks.frozen_encoder import FrozenEncoder
from stages.encode.networks.registry import EncoderSpec, find_encoder
from stages.placement import Placement, find_device
from stages.train.batches import CachedBatches, Named, Order
from stages.train.cached_data import CLASS_TOKEN, DIRECTIONS, TOKENS, VECTOR, CachedData
from stages.train.compute import arithmetic, autocast, precision_of
from stages.train.loop import Stretch
from stages.train.meter import peak_memory_bytes
from stages.train.randomness import Randomness
from stages.train.run import Run
from stages.train.run_model import config_for, training_flops
from stages.train.step import Step
from stages.train.terms.run_terms import RunTerms
from stages.train.train_settings import CachedTensors, TrainSettings

CLASSES, RESOLUTION, SCALE = 1000, 256, 0.18215
COMPONENTS_COUNT = 8
LATENTS, MOMENTS, TOKEN_COUNT = "latents/random", (8, 32, 32), 256
ROWS, SHARD = 512, 128
# On a GPU, whose memory has to be taken anew after another process has worked there.
UNTIMED_STEPS = 3


def write_cache(path: Path, widths: Mapping[str, int], storage: str) -> CachedTensors:
    """A finished cache of random numbers. widths: of each encoder's tokens and class token."""
    rows = RowTable(
        key=np.array([f"{row:06}.jpg" for row in range(ROWS)], np.dtypes.StringDType()),
        label=np.arange(ROWS, dtype=np.int32) % CLASSES,
        source_index=np.arange(ROWS),
        content_hash=np.arange(2 * ROWS, dtype=np.uint64).reshape(ROWS, 2),
        stamp=np.ones(ROWS, np.uint64),
        classes=tuple(str(label) for label in range(CLASSES)),
    )
    create_cache(path, rows, SHARD, seed=0)
    scaling = {"scaling_factor": SCALE, "shift_factor": 0.0}
    _write_column(path, LATENTS, rows, {"moments": MOMENTS}, {"storage": "float16", **scaling})
    for name, width in widths.items():
        shapes = {TOKENS: (TOKEN_COUNT, width), CLASS_TOKEN: (width,)}
        _write_column(path, f"features/{name}", rows, shapes, {"storage": storage})
    shapes = {TOKENS: (TOKEN_COUNT, COMPONENTS_COUNT)}
    _write_column(path, f"features/{COMPONENTS}", rows, shapes, {"storage": "float16"})
    return CachedTensors(path, LATENTS)


def _write_column(
    path: Path, name: str, rows: RowTable, shapes: Mapping[str, tuple[int, ...]], recipe: Any
) -> None:
    """The same numbers in every shard: making them is not what is measured.

    shapes: of an image's part of each array; the first is stored as the recipe says.
    """
    storage, random = STORAGES[recipe["storage"]], np.random.default_rng(0)
    values, *others = (
        random.normal(size=(SHARD, *shape)).astype(np.float32) for shape in shapes.values()
    )
    array, *names = shapes
    constants = dict(storage.measure(values))
    arrays = {**storage.encode(array, values, constants), VALID.name: np.ones(SHARD, np.uint8)}
    arrays |= {one: other.astype(np.float16) for one, other in zip(names, others, strict=True)}
    specs = tuple(ArraySpec(n, str(a.dtype), a.shape[1:]) for n, a in arrays.items())
    digests = {"constants": constants_recipe(constants)} if constants else {}
    column = Column(name, path / name, specs, recipe | digests, len(rows), SHARD, constants)
    create_column(column, {})
    for shard in range(column.shards):
        with ShardWriter(column, shard, rows.digest(column.shard_rows(shard))) as writer:
            writer.write(arrays)


class OnlineEncoder(FrozenEncoder):
    """An encoder in the precision of the transformer, and compiled like it, block by block.

    size: side of its input in px; weights: a file of them; settings: the transformer's.
    """

    def __init__(
        self, spec: EncoderSpec, size: int, weights: Path, settings: TrainSettings
    ) -> None:
        device = find_device(settings.device)
        super().__init__(spec, size, weights, device)
        self._in_precision = partial(autocast, precision_of(settings, device), device)
        wanted = settings.compute.compile
        if wanted is True or (wanted == "auto" and device.type == "cuda"):
            for block in self._model.blocks:
                block.compile()

    @torch.no_grad()
    def arrays(self, images: Tensor) -> dict[str, Tensor]:
        """What training reads of an encoder by the ends of its names, float32 [B, ...].

        images: uint8 [B, 3, S, S].
        """
        inputs = self._preprocess(images.float() / 255)
        with self._in_precision():
            found = {name: one.float() for name, one in self._forward(inputs).items()}
        tokens = found[TOKENS]
        return {TOKENS: tokens, DIRECTIONS: tokens, VECTOR: found.get(CLASS_TOKEN, tokens.mean(1))}


class OnlineBatches(CachedBatches):
    """Cached moments, and what an encoder computes from images of `side` px on the device."""

    def __init__(
        self, encoder: OnlineEncoder, side: int, data: CachedData, names: Sequence[str],
        order: Order, place: Placement, *options: Any,
    ) -> None:  # fmt: skip
        super().__init__(data, (), order, place, *options)
        shape = (order.batch_size, 3, side, side)
        self._pixels = torch.randint(256, shape, dtype=torch.uint8, device=place.device)
        self._encoder, self._names = encoder, names

    def read(self, step: int) -> Named:
        arrays = self._encoder.arrays(self._pixels)
        encoded = {name: arrays[name.rpartition("/")[2]] for name in self._names}
        return {**super().read(step), **encoded}


class Loop(Protocol):
    """Makes steps; `finish` waits for the device. wait_seconds: that it waited for data."""

    @property
    def wait_seconds(self) -> float: ...

    def step(self) -> None: ...

    def finish(self) -> None: ...


class OwnLoop:
    """This project's steps, as `Stretch.train` makes them."""

    def __init__(self, settings: TrainSettings, tensors: CachedTensors) -> None:
        place = Placement(find_device(settings.device))
        self._arithmetic = ExitStack()
        precision = precision_of(settings, place.device)
        self._arithmetic.enter_context(
            arithmetic(precision, deterministic=settings.compute.deterministic)
        )
        data = CachedData(tensors, settings.encoders)
        self._stretch = stretch = Stretch(settings, data, place, None)
        self._batches, self._meter = self._stretch._batches, self._stretch._meter
        self._randomness = stretch.randomness()
        self._run = stretch._run
        self._step = Step(settings, self._run, stretch._terms, data, place)

    @property
    def wait_seconds(self) -> float:
        return self._batches.wait_seconds

    def step(self) -> None:
        number = self._run.step
        self._meter.add(self._step(self._batches.read(number), self._randomness.at(number)))
        self._batches.prefetch()

    def finish(self) -> None:
        self._meter.reduce().values()
        self._meter.clear()


def cached_loop(settings: TrainSettings, tensors: CachedTensors, _weights: Path) -> Loop:
    return OwnLoop(settings, tensors)


def online_loop(settings: TrainSettings, tensors: CachedTensors, weights: Path) -> Loop:
    spec = find_encoder(settings.encoders[0])
    encoder = OnlineEncoder(spec, spec.size_for(RESOLUTION), weights, settings)
    return encoding_loop(encoder, RESOLUTION, settings, tensors)


def encoding_loop(
    encoder: OnlineEncoder, side: int, settings: TrainSettings, tensors: CachedTensors
) -> OwnLoop:
    """Steps whose tokens are computed from images of `side` px."""
    batches = partial(OnlineBatches, encoder, side)
    with patch("stages.train.loop.CachedBatches", batches):
        return OwnLoop(settings, tensors)


def read_first(settings: TrainSettings, data: CachedData, place: Placement) -> Named:
    """The first batch of a run."""
    order = Order(settings.seed, settings.batch_size)
    names, reading = RunTerms.of(settings).arrays, settings.reading
    with closing(CachedBatches(data, names, order, place, reading, 1)) as batches:
        return {name: tensor.clone() for name, tensor in batches.read(0).items()}


def tokens_of(settings: TrainSettings, batch: Named) -> list[Tensor]:
    return [batch[name] for name in RunTerms.of(settings).arrays]


def published_loop(settings: TrainSettings, tensors: CachedTensors, _weights: Path) -> Loop:
    """Without what this project sets up for a device, and with a batch that is there already."""
    device = torch.device(settings.device)
    precision = precision_of(settings, device)
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    data = CachedData(tensors, settings.encoders)
    batch = read_first(settings, data, Placement(device))
    tokens = tokens_of(settings, batch)
    inputs = Inputs(batch["moments"].float(), batch["labels"], tokens)
    widths = [one.shape[-1] for one in tokens]
    config = config_for(settings, data.latent_shape, data.classes, data.shape)
    model = SiT(config, settings.label_dropping, widths)
    own = Run(settings, data, Placement(torch.device("cpu")), None, RunTerms.of(settings))
    model.load_state_dict(own.model.state_dict())
    return PlainLoop(model.to(device), inputs, precision, SCALE)


def flops_of(settings: TrainSettings, tensors: CachedTensors) -> float:
    """Operations for an image of the step that all of them make."""
    data = CachedData(tensors, settings.encoders)
    config = config_for(settings, data.latent_shape, data.classes, data.shape)
    return training_flops(settings, config, data.shape)


class Spent(NamedTuple):
    """seconds: of some steps; waited: of these for data; peak: bytes of memory, so far."""

    seconds: float
    waited: float
    peak: int


def serve(
    make: Callable[[TrainSettings, CachedTensors, Path], Loop],
    settings: TrainSettings,
    tensors: CachedTensors,
    weights: Path,
    answers: Connection,
) -> None:
    """Make steps whenever asked to, and answer with what they took; none are the end."""
    device = torch.device(settings.device)
    loop = make(settings, tensors, weights)
    while steps := answers.recv():
        answers.send(measure(loop, device, steps))
    if answers.recv():
        profile(loop, device)


def measure(loop: Loop, device: torch.device, steps: int) -> Spent:
    """What some steps take."""
    if device.type == "cuda":
        for _ in range(UNTIMED_STEPS):
            loop.step()
        loop.finish()
    waited, start = loop.wait_seconds, time.perf_counter()
    for _ in range(steps):
        loop.step()
    loop.finish()
    spent = time.perf_counter() - start, loop.wait_seconds - waited, peak_memory_bytes(device)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return Spent(*spent)


def profile(loop: Loop, device: torch.device) -> None:
    """Print where the time of three steps goes."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    order = "self_cpu_time_total"
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
        order = "self_device_time_total"
    with torch.profiler.profile(activities=activities) as found:
        for _ in range(UNTIMED_STEPS):
            loop.step()
        loop.finish()
    print(found.key_averages().table(sort_by=order, row_limit=30, max_name_column_width=60))


def check_agreement(settings: TrainSettings, tensors: CachedTensors) -> None:
    """That the published loop computes this project's loss and gradient, of a small model."""
    (term,) = settings.align
    small = {"model": "SiT-XS/2", "batch_size": 2, "precision": "float32", "device": "cpu"}
    # The published loop aligns the last of these four blocks.
    shallow = term.model_copy(update={"depth": 4})
    settings = settings.model_copy(update={**small, "align": (shallow,)})
    place, terms = Placement(torch.device("cpu")), RunTerms.of(settings)
    data = CachedData(tensors, settings.encoders)
    drawn = Randomness(settings, data.latent_shape, place, {}).at(0)
    batch = read_first(settings, data, place)
    tokens, run = tokens_of(settings, batch), Run(settings, data, place, None, terms)
    own = run.model
    plain = SiT(own.config, 0, [one.shape[-1] for one in tokens])
    for parameter in own.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    plain.load_state_dict(own.state_dict())
    step = Step(settings, run, terms, data, place)
    found = step._total(step._losses(batch, drawn))
    labels = batch["labels"].masked_fill(drawn["dropped"], CLASSES)
    loop = PlainLoop(plain, Inputs(batch["moments"], labels, tokens), "float32", SCALE)
    clean = data.scaling.sample(batch["moments"], drawn["posterior"])
    denoising, alignment = loop.losses(clean, drawn["noise"], drawn["time"])
    expected = denoising + term.weight * alignment
    found.backward()
    expected.backward()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    for (name, one), other in zip(own.named_parameters(), plain.parameters(), strict=True):
        if one.requires_grad:
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-5, msg=name)
