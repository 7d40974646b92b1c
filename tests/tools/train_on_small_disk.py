"""Training on a small disk that is full when a checkpoint is to be written; run as a program.

    unshare --user --map-root-user --mount python train_on_small_disk.py CONFIG MOUNTPOINT COPY

The disk is a tmpfs in a mount namespace of its own; what the run has become is copied from it.
Prints one JSON object: the error, and the checkpoints that are there then.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from on_small_disk import error_of, mount

from pipeline.config import load_config
from stages.placement import Placement
from stages.train import loop
from stages.weights.run_folder import checkpoint_path

ROOM_BYTES = 1 << 20


def main(path: Path, disk: Path, copy: Path) -> dict[str, object]:
    mount(disk, "size=200m")
    run, filler = disk / "run", disk / "filler"

    def train(steps: int) -> None:
        settings = ["train.checkpoint_every=1", "train.keep=3", f"train.steps={steps}"]
        config = load_config(path, [f"train.run={run}", *settings])
        loop.train(config.train, config.tensors, Placement(torch.device("cpu")))

    train(1)
    filler.write_bytes(bytes(shutil.disk_usage(disk).free - ROOM_BYTES))
    error = error_of(lambda: train(4))
    there = sorted(entry.name for entry in checkpoint_path(run, 0).parent.iterdir())
    filler.unlink()
    train(4)
    shutil.copytree(run, copy)
    return {"error": error, "there": there}


if __name__ == "__main__":
    print(json.dumps(main(*map(Path, sys.argv[1:]))))
