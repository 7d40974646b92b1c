"""How fast training from a cache is, against the encoder online and against the published loop.

    python tests/benchmarks/train.py FOLDER [--models SiT-S/2,SiT-B/2]
        [--encoders dinov2-vit-b,dinov2-vit-l] [--parts encoder,loop,methods] [--batch 8]
        [--steps 1] [--rounds 3] [--storage int8] [--device cuda] [--precision auto]
        [--compile auto] [--at-once 3] [--profile]

All train the same model on random numbers, each in a process of its own:

- from the cache: this project's steps, which read a cache in FOLDER;
- encoder online (part `encoder`): the same, but the encoder computes the tokens at every step,
  from images that lie on the device, in the precision of the transformer. The gain is compared
  with what the numbers of operations allow;
- published loop (part `loop`, with the first encoder alone): plain_training.py, with a batch
  that lies on the device. That both compute the same loss and gradient is checked first;
- methods (part `methods`, with the first encoder alone): from the cache, with the losses and
  layers of each method in the place of REPA's, some at once beside REPA itself.

They alternate, round after round; a ratio is the median over the rounds. FOLDER is removed at
the end.
"""

import argparse
import multiprocessing
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from itertools import product
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from method_settings import REPA, methods
from torch.utils.flop_counter import FlopCounterMode
from training_loops import (
    RESOLUTION,
    Loop,
    Spent,
    cached_loop,
    check_agreement,
    flops_of,
    online_loop,
    published_loop,
    serve,
    write_cache,
)

from stages.encode.networks.registry import find_encoder
from stages.encode.networks.timm_library import create_network, run_to_layer
from stages.placement import find_device
from stages.train.compute import HALF_PRECISIONS, precision_of
from stages.train.train_settings import (
    CachedTensors,
    ComputeSettings,
    ReadingSettings,
    TrainSettings,
)

CACHED, ONLINE, PUBLISHED = "from the cache", "encoder online", "published loop"
MakeLoop = Callable[[TrainSettings, CachedTensors, Path], Loop]
MAKERS: Mapping[str, MakeLoop] = {
    CACHED: cached_loop,
    ONLINE: online_loop,
    PUBLISHED: published_loop,
}
PARTS, METHODS = {"encoder": ONLINE, "loop": PUBLISHED}, "methods"
COMPILE: Mapping[str, bool | str] = {"auto": "auto", "true": True, "false": False}
# Before a round counts: it takes two until freed memory fits all that is asked for.
FIRST_STEPS = 2
# Sides of the matrices whose product shows what the device can do.
MATRIX = {"cuda": 8192, "cpu": 2048}


def write_encoder(name: str, folder: Path) -> tuple[int, float]:
    """An encoder with random weights; the width of its tokens, and operations for an image."""
    spec = find_encoder(name)
    size = spec.size_for(RESOLUTION)
    torch.save(create_network(spec, size).state_dict(), folder / f"{name}.pth")
    counter = FlopCounterMode(display=False)
    with torch.device("meta"), torch.no_grad(), counter:
        network = create_network(spec, size).eval()
        _, tokens = run_to_layer(network, torch.empty(1, 3, size, size), spec)
    return tokens.shape[-1], float(counter.get_total_flops())


def matrix_rate(device: torch.device, precision: str) -> float:
    """Operations a second of the fastest of some products of large matrices."""
    side = MATRIX[device.type]
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    dtype = HALF_PRECISIONS.get(precision, torch.float32)
    one, other = torch.randn(2, side, side, device=device).to(dtype)
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        product = one @ other
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    del one, other, product
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return 2.0 * side**3 / min(seconds)


@contextmanager
def processes(
    loops: Mapping[str, tuple[MakeLoop, TrainSettings]], tensors: CachedTensors, weights: Path
) -> Iterator[dict[str, Connection]]:
    """A process for each loop, by name, while the block lasts."""
    context, children, connections = multiprocessing.get_context("spawn"), [], {}
    for name, (make, settings) in loops.items():
        connections[name], there = multiprocessing.Pipe()
        arguments = (make, settings, tensors, weights, there)
        children.append(context.Process(target=serve, args=arguments, daemon=True))
        children[-1].start()
        there.close()
    yield connections
    for child in children:
        child.join()


def alternate(loops: dict[str, Connection], steps: int, rounds: int) -> dict[str, list[Spent]]:
    """What each of them spends in every round."""
    spent: dict[str, list[Spent]] = {name: [] for name in loops}
    for turn in range(rounds + 1):
        # In another order each time: what runs before leaves caches and clocks behind.
        for name in np.random.default_rng(turn).permutation(list(loops)).tolist():
            is_measured = turn > 0
            loops[name].send(steps if is_measured else max(steps, FIRST_STEPS))
            found = loops[name].recv()
            if is_measured:
                spent[name].append(found)
    return spent


def show(spent: dict[str, list[Spent]], images: int, flops: dict[str, float], rate: float) -> None:
    """A line for each loop. images: of a round; flops: of an image; rate: of the device."""
    for name, rounds in spent.items():
        speed = images / median(found.seconds for found in rounds)
        waited = sum(found.waited for found in rounds) / sum(found.seconds for found in rounds)
        line = (
            f"  {name:<15} {speed:9.2f} images/s, {speed * flops[name] / rate:4.0%} of the rate, "
            f"peak {rounds[-1].peak / 1e9:5.2f} GB, waits {waited:5.2%}"
        )
        if name != CACHED:
            pairs = zip(spent[CACHED], rounds, strict=True)
            gain = median(other.seconds / own.seconds for own, other in pairs)
            line += f"; {CACHED} / this: {gain:.2f}"
            if (allowed := flops[name] / flops[CACHED]) > 1:
                line += f", operations allow {allowed:.2f}: {gain / allowed:.2f} of it"
        print(line, flush=True)


def compare(
    settings: TrainSettings, tensors: CachedTensors, encoder_flops: float, rate: float,
    options: argparse.Namespace, other: str,
) -> None:  # fmt: skip
    """Measure this project's loop and another one, with a model and an encoder."""
    (encoder,) = settings.encoders
    trained = flops_of(settings, tensors)
    flops = {CACHED: trained, ONLINE: trained + encoder_flops, PUBLISHED: trained}
    weights = tensors.path.with_name(f"{encoder}.pth")
    print(
        f"\n{settings.model}, {encoder}: {trained / 1e9:.0f} GFLOP for a training image, "
        f"{encoder_flops / 1e9:.0f} for the encoder's"
    )
    own = {name: (MAKERS[name], settings) for name in (CACHED, other)}
    with processes(own, tensors, weights) as loops:
        spent = alternate(loops, options.steps, options.rounds)
        show(spent, options.steps * options.batch, flops, rate)
        for name, loop in loops.items():
            loop.send(0)
            loop.send(options.profile and name == CACHED)


def compare_methods(
    settings: TrainSettings, tensors: CachedTensors, options: argparse.Namespace
) -> None:
    """Measure each method against REPA: time, memory, and what it trains."""
    (term,) = settings.align
    chosen = methods(settings.encoders[0], term.depths[0])
    print(f"\n{settings.model}, {settings.encoders[0]}: methods against {REPA}")
    others = [name for name in chosen if name != REPA]
    for first in range(0, len(others), options.at_once):
        names = [REPA, *others[first : first + options.at_once]]
        own = {name: (cached_loop, changed(settings, chosen[name])) for name in names}
        with processes(own, tensors, tensors.path) as loops:
            spent = alternate(loops, options.steps, options.rounds)
            for loop in loops.values():
                loop.send(0)
                loop.send(False)
        for name in names[bool(first) :]:
            pairs = list(zip(spent[name], spent[REPA], strict=True))
            time_ratio = median(one.seconds / repa.seconds for one, repa in pairs)
            one, repa = pairs[-1]
            milliseconds = 1e3 * median(one.seconds for one in spent[name]) / options.steps
            print(
                f"  {name:<22} {milliseconds:9.1f} ms a step, this / {REPA}: {time_ratio:.2f}; "
                f"peak {one.peak / 1e9:6.2f} GB, {one.peak / repa.peak:.2f}",
                flush=True,
            )


def changed(settings: TrainSettings, section: Mapping[str, Any]) -> TrainSettings:
    """The settings with some keys of their own."""
    return TrainSettings(**{**dict(settings), **section})


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", default="SiT-S/2,SiT-B/2")
    parser.add_argument("--encoders", default="dinov2-vit-b,dinov2-vit-l")
    parser.add_argument("--parts", default="encoder,loop")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=1, help="in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--storage", choices=("int8", "float16"), default="int8")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--compile", choices=COMPILE, default="auto")
    parser.add_argument("--at-once", type=int, default=3, help="methods beside REPA in memory")
    parser.add_argument("--profile", action="store_true", help="where the time of our steps goes")
    return parser.parse_args()


def settings_of(options: argparse.Namespace, model: str, encoder: str) -> TrainSettings:
    return TrainSettings(
        run=options.folder / "run",
        model=model,
        align=({"kind": "repa", "encoder": encoder},),  # type: ignore[arg-type]
        batch_size=options.batch,
        # More than any machine makes.
        steps=(1 << 31) - 1,
        precision=options.precision,
        device=options.device,
        # Rows come from files, as of a cache that is larger than memory.
        reading=ReadingSettings(memory_gb=0),
        compute=ComputeSettings(compile=COMPILE[options.compile]),  # type: ignore[arg-type]
    )


def main() -> None:
    options = parsed()
    device = find_device(options.device)
    options.folder, options.device = options.folder.resolve(), str(device)
    options.folder.mkdir(parents=True)
    models, encoders = options.models.split(","), options.encoders.split(",")
    first = settings_of(options, models[0], encoders[0])
    precision = precision_of(first, device)
    try:
        networks = {name: write_encoder(name, options.folder) for name in encoders}
        widths = {name: width for name, (width, _) in networks.items()}
        tensors = write_cache(options.folder / "random.zarr", widths, options.storage)
        check_agreement(first, tensors)
        rate = matrix_rate(device, precision)
        name = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
        packages = ", ".join(f"{p} {version(p)}" for p in ("torch", "timm"))
        print(f"{name}, {torch.get_num_threads()} threads; {packages}")
        print(f"{precision}, compile {options.compile}, batch {options.batch}, {options.storage}")
        print(f"{rate / 1e12:.2f} TFLOP/s in products of large matrices", flush=True)
        for model, encoder, part in product(models, encoders, options.parts.split(",")):
            settings = settings_of(options, model, encoder)
            if part == METHODS and encoder == encoders[0]:
                compare_methods(settings, tensors, options)
            elif part == "encoder" or (part == "loop" and encoder == encoders[0]):
                compare(settings, tensors, networks[encoder][1], rate, options, PARTS[part])
    finally:
        shutil.rmtree(options.folder)


if __name__ == "__main__":
    main()
