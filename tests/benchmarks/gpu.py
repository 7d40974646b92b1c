"""How fast this project is on a GPU: one page, part by part, within ten minutes.

    python tests/benchmarks/gpu.py FOLDER [--parts train,options,profile,encode,sample]
        [--device cuda] [--small] [--out FILE]

- train: steps from the cache, against plain_training.py in the same run, without an encoder and
  with DINOv2-B, which it then runs in every step, on images that lie on the device. That both
  compute the same loss is checked first. They alternate, round after round; a gain is the median
  over the rounds;
- options: a step from the cache with other settings of its computation;
- profile: for what the device spends the time of a step;
- encode: the forward passes of SD-VAE and DINOv2-B, in every precision;
- sample: latents by Euler-Maruyama with guidance on an interval, and their decoding.

All weights are random. The utilisation (MFU) is that of the card's nominal rate in bfloat16, by
operations of the transformer and its projectors. A part that fails is named, and the others are
measured; --small rehearses all of them with small models, on a CPU too. FOLDER is removed at the
end.
"""

import argparse
import gc
import platform
import shutil
import subprocess
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path

import torch
from gpu_parts import PARTS, SMALL, Bench, Sizes

from stages.placement import find_device


def introduction(bench: Bench) -> Iterator[str]:
    """The card, its driver and the versions."""
    yield "# Measured on one GPU" if bench.device.type == "cuda" else "# Rehearsed without a GPU"
    yield ""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "timm", "diffusers"))
    yield f"{card(bench.device)}; Python {platform.python_version()}, {packages}."


def card(device: torch.device) -> str:
    if device.type != "cuda":
        return platform.machine()
    query = ("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
    found = subprocess.run(query, capture_output=True, text=True, check=True).stdout
    name, driver = found.splitlines()[0].split(", ")
    return f"{name}, driver {driver}, CUDA {torch.version.cuda}"


def lines_of(bench: Bench, parts: Sequence[str], failed: list[str]) -> Iterator[str]:
    """The page. failed: is given the names of parts that fail."""
    yield from introduction(bench)
    for part in parts:
        yield from ("", f"## {part.capitalize()}", "")
        try:
            yield from PARTS[part](bench)
        except Exception as error:
            traceback.print_exc()
            failed.append(part)
            yield f"\nFailed: {type(error).__name__}: {error}"
        gc.collect()
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--out", type=Path, help="where the page is written, line by line")
    options = parser.parse_args()
    folder, failed = options.folder.resolve(), list[str]()
    folder.mkdir(parents=True)
    sizes = SMALL if options.small else Sizes()
    bench = Bench(sizes, find_device(options.device), folder)
    try:
        with options.out.open("w") if options.out else nullcontext() as page:
            for line in lines_of(bench, options.parts.split(","), failed):
                print(line, file=sys.stdout, flush=True)
                if page:
                    print(line, file=page, flush=True)
    finally:
        shutil.rmtree(folder)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
