"""What several processes spend on weights at every step, each on the whole or on a part.

    python tests/benchmarks/ranks.py FOLDER [--model SiT-S/2] [--ranks 1,2,4] [--rounds 5]

Processes exchange by Gloo, on CPUs, with a thread each. Of every number of them this prints for
`parallel = "ddp"` and `"fsdp"` how many weights a process updates, and the time that its CPU spends
on clipping, optimiser and moving average, given gradients: the median over rounds, in which both
alternate, of the mean over processes. It depends little on what else the machine does. FOLDER is
removed at the end.
"""

import argparse
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

import torch
from torch import distributed
from torch.multiprocessing.spawn import spawn
from training_loops import write_cache

from stages.placement import Placement
from stages.train.cached_data import CachedData
from stages.train.compute import own
from stages.train.run import Run
from stages.train.step import Step
from stages.train.terms.run_terms import RunTerms
from stages.train.train_settings import CachedTensors, TrainSettings

KINDS, ENCODER, WIDTH = ("ddp", "fsdp"), "dinov2-vit-b", 768


class Worked:
    """The work on weights of a run in one of its processes."""

    def __init__(self, settings: TrainSettings, tensors: CachedTensors, place: Placement) -> None:
        terms, data = RunTerms.of(settings), CachedData(tensors, settings.encoders)
        self._run = Run(settings, data, place, None, terms)
        self._step = Step(settings, self._run, terms, data, place)
        self._trained = [p for p in self._run.model.parameters() if p.requires_grad]

    @property
    def weights(self) -> int:
        """How many this process updates."""
        return sum(own(parameter.detach()).numel() for parameter in self._trained)

    def seconds(self) -> float:
        """Of the CPU, for an update from gradients that are there."""
        for parameter in self._trained:
            parameter.grad = torch.full_like(parameter, 1e-3)
        start = time.process_time()
        self._step._update()
        return time.process_time() - start


def work(
    rank: int, world: int, folder: Path, settings: Mapping[str, TrainSettings], rounds: int
) -> None:
    """Measure as one of some processes, of which the first prints what all have found."""
    torch.set_num_threads(1)
    store = f"file://{folder / f'store-{world}'}"
    distributed.init_process_group("gloo", init_method=store, world_size=world, rank=rank)
    place = Placement(torch.device("cpu"), rank, world)
    tensors = CachedTensors(folder / "cache.zarr", "latents/random")
    kinds = {name: Worked(own_settings, tensors, place) for name, own_settings in settings.items()}
    spent: dict[str, list[float]] = {name: [] for name in kinds}
    # The first round makes the optimiser's state.
    for turn in range(rounds + 1):
        for name, kind in kinds.items():
            seconds = torch.tensor(kind.seconds(), dtype=torch.float64)
            distributed.all_reduce(seconds)
            if turn:
                spent[name].append(float(seconds) / world)
    for name, kind in kinds.items() if rank == 0 else ():
        print(f"{world} x {name}: {kind.weights / 1e6:5.1f} M weights, {median(spent[name]):.3f} s")
    distributed.destroy_process_group()


def settings_of(folder: Path, model: str, parallel: str) -> TrainSettings:
    document = {
        "run": folder / parallel,
        "model": model,
        "precision": "float32",
        "device": "cpu",
        "align": [{"kind": "repa", "encoder": ENCODER}],
        "compute": {"parallel": parallel},
    }
    return TrainSettings.model_validate(document, strict=False)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="SiT-S/2")
    parser.add_argument("--ranks", default="1,2,4")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args(arguments)
    given.folder.mkdir(parents=True)
    try:
        write_cache(given.folder / "cache.zarr", {ENCODER: WIDTH}, "int8")
        settings = {kind: settings_of(given.folder, given.model, kind) for kind in KINDS}
        for world in map(int, given.ranks.split(",")):
            # One process has no other to share with.
            own_kinds = settings if world > 1 else {"ddp": settings["ddp"]}
            spawn(work, (world, given.folder, own_kinds, given.rounds), nprocs=world)
    finally:
        shutil.rmtree(given.folder)


if __name__ == "__main__":
    main()
