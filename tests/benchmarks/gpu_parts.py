"""What gpu.py measures: each part gives the lines of a table as they are found."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any, get_args

import torch
from torch.profiler import ProfilerActivity
from torch.utils.benchmark import Timer
from train import CACHED, MakeLoop, alternate, processes, write_encoder
from training_loops import (
    RESOLUTION,
    UNTIMED_STEPS,
    OnlineEncoder,
    OwnLoop,
    cached_loop,
    check_agreement,
    flops_of,
    measure,
    published_loop,
    write_cache,
)

from stages.encode.network_settings import Precision
from stages.encode.networks.autoencoder import Autoencoder
from stages.encode.networks.frozen_encoder import FrozenEncoder
from stages.encode.networks.registry import find_encoder
from stages.model.transformer import Transformer
from stages.model.transformer_config import config_named
from stages.sample.sample_settings import SampleSettings
from stages.sample.sampler import Sampler
from stages.train.train_settings import (
    CachedTensors,
    ComputeSettings,
    ReadingSettings,
    TrainSettings,
)

# Operations a second in bfloat16 of dense matrices, by what the name of a card contains.
NOMINAL = {"H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "A100": 312e12}
VAE = "stabilityai/sd-vae-ft-mse"
NORMS = "norms and modulation"
# By the names of kernels, or on a CPU of operations; the first that matches counts. What was
# compiled, casts of weights among it, is mostly norms and modulation.
KERNELS = {
    r"^triton": NORMS,
    r"attention|flash|fmha|sdpa": "attention",
    r"gemm|nvjet|cutlass|xmma|conv|mm\b": "matrix products",
    r"multi_tensor|adam|foreach": "work per weight",
    r"norm|gelu|silu|::(mul|add|sum)_?\b": NORMS,
}


@dataclass(frozen=True)
class Sizes:
    """Of what is measured: models with their batches, and how much of each.

    resolution: of images that are encoded, in px; images: of a batch that is encoded or drawn.
    """

    models: Sequence[str] = ("SiT-XL/2", "SiT-B/2")
    depth: int = 8
    batch: int = 32
    steps: int = 20
    rounds: int = 2
    encoder: str = "dinov2-vit-b"
    resolution: int = RESOLUTION
    images: int = 64
    solver_steps: int = 10


SMALL = Sizes(("SiT-XS/2",), 4, 2, 1, 1, "dinov2-vit-s", 64, 2, 2)


@dataclass(frozen=True)
class Bench:
    """What the parts have in common. folder: for what they write."""

    sizes: Sizes
    device: torch.device
    folder: Path

    @property
    def rate(self) -> float | None:
        """The card's nominal rate, if it is known."""
        if self.device.type != "cuda":
            return None
        name = torch.cuda.get_device_name(self.device)
        return next((rate for part, rate in NOMINAL.items() if part in name), None)

    def settings(self, model: str) -> TrainSettings:
        term = {"kind": "repa", "encoder": self.sizes.encoder, "depth": self.sizes.depth}
        return TrainSettings(
            run=self.folder / "run",
            model=model,
            align=(term,),  # type: ignore[arg-type]
            batch_size=self.sizes.batch,
            # More than any machine makes.
            steps=(1 << 31) - 1,
            device=str(self.device),
            reading=ReadingSettings(memory_gb=0),
        )

    @cached_property
    def tensors(self) -> CachedTensors:
        """Of a cache of random numbers, beside which lies a file with the encoder's weights."""
        width, _ = write_encoder(self.sizes.encoder, self.folder)
        return write_cache(self.folder / "random.zarr", {self.sizes.encoder: width}, "int8")

    def images_a_second(self, work: Callable[[], Any]) -> float:
        """Of work on a batch of images, behind a first time, in which it is set up."""
        work()
        count = 5 if self.device.type == "cuda" else 1
        return self.sizes.images / Timer("work()", globals={"work": work}).timeit(count).mean


class OnlinePublishedLoop:
    """The published loop with the encoder in every step, in eager mode like the rest of it."""

    wait_seconds = 0.0

    def __init__(self, settings: TrainSettings, tensors: CachedTensors, weights: Path) -> None:
        self._loop = published_loop(settings, tensors, weights)
        eager = settings.model_copy(update={"compute": ComputeSettings(compile=False)})
        spec = find_encoder(settings.encoders[0])
        self._encoder = OnlineEncoder(spec, spec.size_for(RESOLUTION), weights, eager)
        shape = (settings.batch_size, 3, RESOLUTION, RESOLUTION)
        self._images = torch.randint(256, shape, dtype=torch.uint8, device=settings.device)

    def step(self) -> None:
        tokens = self._encoder.arrays(self._images)["tokens"]
        self._loop.inputs = replace(self._loop.inputs, tokens=[tokens])
        self._loop.step()

    def finish(self) -> None:
        self._loop.finish()


# What the cache is compared with.
OTHERS: Mapping[str, MakeLoop] = {
    "published loop": published_loop,
    "published loop, encoder online": OnlinePublishedLoop,
}


def train(bench: Bench) -> Iterator[str]:
    sizes, tensors = bench.sizes, bench.tensors
    weights = tensors.path.with_name(f"{sizes.encoder}.pth")
    check_agreement(bench.settings(sizes.models[0]), tensors)
    yield from table_head("model", "loop", "step", "steps/s", "MFU", "peak", "gain of the cache")
    for model, (name, make) in product(sizes.models, OTHERS.items()):
        settings = bench.settings(model)
        flops = flops_of(settings, tensors) * sizes.batch
        own = {CACHED: (cached_loop, settings), name: (make, settings)}
        with processes(own, tensors, weights) as loops:
            spent = alternate(loops, sizes.steps, sizes.rounds)
            for loop in loops.values():
                # No further steps, and no profile.
                loop.send(0)
                loop.send(False)
        pairs = zip(spent[CACHED], spent[name], strict=True)
        gains = {name: f"{median(other.seconds / one.seconds for one, other in pairs):.2f}"}
        for loop_name, rounds in spent.items():
            seconds = median(one.seconds for one in rounds) / sizes.steps
            yield row(
                *(f"{model}, {sizes.batch}", loop_name),
                *(f"{1e3 * seconds:.1f} ms", f"{1 / seconds:.2f}"),
                f"{flops / seconds / bench.rate:.0%}" if bench.rate else "",
                *(f"{rounds[-1].peak / 1e9:.1f} GB", gains.get(loop_name, "")),
            )


# What a step's computation may be set to, beside what it is by default.
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "the defaults": {},
    "deterministic = false": {"compute": {"deterministic": False}},
    'precision = "float8"': {"precision": "float8"},
}
OPTIONS_OF_GPUS: Mapping[str, Mapping[str, Any]] = {
    'attention = "cudnn", not deterministic': {
        "compute": {"deterministic": False, "attention": "cudnn"}
    },
    'compile = "max-autotune", not deterministic': {
        "compute": {"deterministic": False, "compile": "max-autotune"}
    },
}


def options(bench: Bench) -> Iterator[str]:
    settings, steps = bench.settings(bench.sizes.models[0]), bench.sizes.steps
    yield from table_head(f"{settings.model}, {settings.batch_size}", "step", "of the defaults")
    first, more = None, OPTIONS_OF_GPUS if bench.device.type == "cuda" else {}
    for name, changed in {**OPTIONS, **more}.items():
        told = TrainSettings.model_validate({**settings.model_dump(), **changed})
        loop = OwnLoop(told, bench.tensors)
        with loop._arithmetic, closing(loop._batches):
            # The first steps compile, and are recorded.
            measure(loop, bench.device, UNTIMED_STEPS)
            seconds = measure(loop, bench.device, steps).seconds / steps
        first = first or seconds
        yield row(name, f"{1e3 * seconds:.1f} ms", f"{seconds / first:.2f}")


def profile(bench: Bench) -> Iterator[str]:
    is_cuda = bench.device.type == "cuda"
    settings, steps = bench.settings(bench.sizes.models[0]), bench.sizes.steps
    loop = OwnLoop(settings, bench.tensors)
    activity = ProfilerActivity.CUDA if is_cuda else ProfilerActivity.CPU
    with loop._arithmetic, closing(loop._batches):
        # The first steps compile, and are recorded.
        for _ in range(UNTIMED_STEPS * 2):
            loop.step()
        loop.finish()
        with torch.profiler.profile(activities=[activity]) as found:
            for _ in range(steps):
                loop.step()
            loop.finish()
    spent = Counter[str]()
    for event in found.key_averages():
        if not event.is_user_annotation:
            micros = event.self_device_time_total if is_cuda else event.self_cpu_time_total
            spent[part_of(event.key)] += micros
    whole = spent.total()
    yield from table_head(f"{settings.model}, {settings.batch_size}", "a step", "share")
    for name, micros in [*spent.most_common(), ("all", whole)]:
        yield row(name, f"{micros / 1e3 / steps:.2f} ms", f"{micros / whole:.0%}")


def part_of(kernel: str) -> str:
    """What a kernel is for."""
    matching = (part for names, part in KERNELS.items() if re.search(names, kernel.lower()))
    return next(matching, "all else")


def encode(bench: Bench) -> Iterator[str]:
    side, device, spec = bench.sizes.resolution, bench.device, find_encoder(bench.sizes.encoder)
    images = torch.randint(
        256, (bench.sizes.images, 3, side, side), dtype=torch.uint8, device=device
    )
    yield from table_head(f"images/s, {side} px", "SD-VAE", bench.sizes.encoder, "both")
    for precision in get_args(Precision):
        vae = Autoencoder(VAE, device, precision, untrained=True)
        encoder = FrozenEncoder(spec, spec.size_for(side), None, device, precision, untrained=True)
        speeds = [
            bench.images_a_second(partial(work, images)) for work in (vae.encode, encoder.features)
        ]
        speeds.append(1 / sum(1 / speed for speed in speeds))
        yield row(precision, *(f"{speed:.1f}" for speed in speeds))


def sample(bench: Bench) -> Iterator[str]:
    sizes, device, side = bench.sizes, bench.device, bench.sizes.resolution // 8
    config = config_named(sizes.models[0], side=side, channels=4, classes=1000, has_null_class=True)
    vae = Autoencoder(VAE, device, untrained=True)
    yield from table_head(f"images/s, {sizes.models[0]}", f"{sizes.solver_steps} steps")
    for precision in ("tf32", "bfloat16"):
        settings = SampleSettings(
            solver="euler-maruyama",
            steps=sizes.solver_steps,
            guidance=1.8,
            guidance_interval=(0.0, 0.7),
            precision=precision,
            batch_size=sizes.images,
        )
        model = Transformer(config).eval().requires_grad_(False).to(device)
        sampler = Sampler(settings, model, "linear", vae, device)
        speed = bench.images_a_second(partial(sampler.latents, range(sizes.images)))
        yield row(f"latents, {precision}", f"{speed:.2f}")
    latents = torch.randn(sizes.images, 4, side, side, device=device)
    yield row("decoding", f"{bench.images_a_second(partial(vae.decode, latents)):.1f}")


PARTS: Mapping[str, Callable[[Bench], Iterator[str]]] = {
    "train": train,
    "options": options,
    "profile": profile,
    "encode": encode,
    "sample": sample,
}


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def table_head(*names: str) -> Iterator[str]:
    yield row(*names)
    yield "|---" * len(names) + "|"
