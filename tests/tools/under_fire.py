"""Builds that get killed, over and over, until one comes through; run as a program.

    python under_fire.py CONFIG boundary        each build is killed after the shard it finishes
    python under_fire.py CONFIG random KILLS    the first build is left alone, then builds are
                                                killed at random moments, so many times

Networks are imported once and every build is a fork, so that dozens of builds take seconds.
Prints one JSON object per build: whether it was killed, and which finished shards it found and
left, each with the inode and time of its files.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from tiny_cache import content

from cache import ledger
from pipeline.config import Config, load_config
from stages import vision
from stages.encode.build import build
from stages.encode.networks.transformers_library import import_transformers

# Imported here, so that forked builds need not.
READY = (vision.AutoencoderKL, vision.timm.create_model)


def finished(path: Path) -> dict[str, list[list[int]]]:
    """Inode and time of change of the files of every shard that has a ledger entry."""
    found = {}
    for entry in sorted(path.rglob("ledger/c.*.0")):
        column, shard = entry.parent.parent, entry.name.split(".")[1]
        files = [f for f in sorted(column.rglob(f"c.{shard}.*")) if not f.name.startswith(".")]
        status = [file.stat() for file in files]
        found[f"{column.relative_to(path)} {shard}"] = [[s.st_ino, s.st_mtime_ns] for s in status]
    return found


def attempt(config: Config, in_child: Callable[[], None], kill_after: float | None) -> bool:
    """One build in a process of its own; returns whether it came through."""
    child = os.fork()
    if child == 0:
        try:
            in_child()
            build(config.encode, torch.device("cpu"))
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status) and os.WEXITSTATUS(status):
        raise SystemExit("a build failed")
    return not os.WIFSIGNALED(status)


def die_after_a_shard() -> None:
    """Make this process kill itself right after it recorded a shard."""
    record = ledger.record

    def last_record(*arguments: object) -> None:
        record(*arguments)  # type: ignore[arg-type]
        os.kill(os.getpid(), signal.SIGKILL)

    ledger.record = last_record


def report(path: Path, before: dict[str, list[list[int]]], *, survived: bool) -> None:
    files = content(path) if survived else {}
    print(
        json.dumps(
            {"survived": survived, "before": before, "after": finished(path), "content": files}
        )
    )


def at_boundaries(config: Config) -> None:
    path, survived = config.cache.path, False
    while not survived:
        before = finished(path)
        survived = attempt(config, die_after_a_shard, None)
        report(path, before, survived=survived)


def at_random(config: Config, kills: int) -> None:
    path, generator, survived = config.cache.path, random.Random(0), True
    start = time.monotonic()
    attempt(config, lambda: None, None)
    longest = time.monotonic() - start
    report(path, {}, survived=True)
    while kills > 0 or not survived:
        if survived and path.exists():
            shutil.rmtree(path)
        before = finished(path)
        moment = generator.uniform(0, longest) if kills > 0 else None
        survived = attempt(config, lambda: None, moment)
        kills -= not survived
        report(path, before, survived=survived)


if __name__ == "__main__":
    settings = load_config(Path(sys.argv[1]), ["cache.rows_per_shard=3", "build.threads=1"])
    if settings.texts:
        import_transformers("texts")
    if sys.argv[2] == "boundary":
        at_boundaries(settings)
    else:
        at_random(settings, int(sys.argv[3]))
