"""A program for torchrun: the program itself, of which one process or all fail at the third step.

torchrun --nproc-per-node 2 tests/tools/failing_rank.py KIND train ...
"""

import os
import signal
import sys
from errno import ENOSPC
from pathlib import Path
from typing import NoReturn

from cache.errors import CacheReadError
from pipeline.commands import app
from stages.train.batches import CachedBatches, Named
from stages.weights import checkpoint

RANK = os.environ["RANK"]


def fail(kind: str) -> None:
    if kind in ("error", "error everywhere"):
        raise CacheReadError("planted: a row is not what was written")
    if kind == "fault":
        raise ZeroDivisionError("planted")
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)


def full(folder: Path, *_: object, **__: object) -> NoReturn:
    raise OSError(ENOSPC, os.strerror(ENOSPC), str(folder))


def main() -> None:
    kind = sys.argv.pop(1)
    real = CachedBatches.read

    def read(batches: CachedBatches, step: int) -> Named:
        if step == 3 and (RANK == "1" or kind.endswith("everywhere")):
            fail(kind)
        return real(batches, step)

    CachedBatches.read = read  # type: ignore[method-assign]
    if kind == "full disk":
        checkpoint.save_file = full
    app()


if __name__ == "__main__":
    main()
