"""Copies that get killed, over and over, until one comes through; run as a program.

    python copy_under_fire.py KILLS TARGET ORIGINAL [OLDER]

Each copy is a fork that kills itself at a random step, and the next one goes on with what it left.
Once one comes through, the target is removed, or with OLDER made that earlier state of the original
again. In between, what is there is opened. Prints one JSON object for each copy: whether it was
killed, and what was there then: whether it is a cache, and all of it if the copy came through.
"""

import hashlib
import json
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from copies import check, contents

from cache import files
from cache.copies.copying import copy_cache
from cache.stores.places import Place, StorePath, place_of

# What is counted as a step on the way to a disk or a store.
STEPS: dict[Any, tuple[str, ...]] = {
    Path: ("rename", "unlink", "mkdir", "open"),
    StorePath: ("put", "copy_to", "unlink", "remove_tree", "read_range"),
    files: ("sync",),
}


def die_at(number: int) -> list[int]:
    """Make this process kill itself before its so many-th step; returns the count of those left."""
    left = [number]

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        return step

    for place, names in STEPS.items():
        for name in names:
            setattr(place, name, counted(getattr(place, name)))
    return left


def forked(work: Callable[[], object]) -> Any:
    """What is returned in a process of its own, which alone opens a store; None if it is killed."""
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        os.close(reading)
        try:
            os.write(writing, json.dumps(work()).encode())
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        told = stream.read()
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status) and os.WEXITSTATUS(status):
        raise SystemExit("a copy, or a look at it, failed")
    return json.loads(told) if told else None


def start_again(target: Place, older: Path | None) -> None:
    if isinstance(target, StorePath):
        target.remove_tree()
    else:
        shutil.rmtree(target, ignore_errors=True)
    if older:
        copy_cache(older, target)


def steps_of_a_copy(original: Path, target: Place) -> int:
    left = die_at(sys.maxsize)
    copy_cache(original, target)
    return sys.maxsize - left[0]


def copied(original: Path, target: Place, number: int) -> bool:
    die_at(number)
    copy_cache(original, target)
    return True


def looked_at(target: Place, originals: list[Path], survived: bool) -> dict[str, Any]:
    is_cache = check(target, originals)
    digests = {name: hashlib.sha256(c).hexdigest() for name, c in contents(target).items()}
    return {"survived": survived, "is_cache": is_cache, "contents": digests if survived else {}}


def under_fire(kills: int, target: Place, original: Path, older: Path | None) -> None:
    generator, originals = random.Random(0), [original, *([older] if older else [])]
    forked(lambda: start_again(target, older))
    steps = forked(lambda: steps_of_a_copy(original, target))
    survived = True
    while kills > 0 or not survived:
        if survived:
            forked(lambda: start_again(target, older))
        number = generator.randrange(1, steps) if kills > 0 else sys.maxsize
        survived = bool(forked(lambda: copied(original, target, number)))  # noqa: B023
        kills -= not survived
        print(json.dumps(forked(lambda: looked_at(target, originals, survived))), flush=True)  # noqa: B023


if __name__ == "__main__":
    count, to, *caches = sys.argv[1:]
    paths = [*map(Path, caches), None]
    assert paths[0] is not None
    under_fire(int(count), place_of(to), paths[0], paths[1])
