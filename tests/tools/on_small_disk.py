"""Builds on a small disk that fills up and becomes read-only; run as a program.

    unshare --user --map-root-user --mount python on_small_disk.py CONFIG MOUNTPOINT

The disk is a tmpfs in a mount namespace of its own. Prints one JSON object: the error of each
build, or null, and what is in the cache afterwards.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch

from cache.errors import RepaCacheError
from cache.ledger import Recorded
from cache.metadata import read_column
from cache.reader import Cache
from cache.verify import find_faults
from pipeline.config import load_config
from stages.encode.build import build as build_columns

FEATURES = "features/efficientnet-lite0"


def mount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)


def error_of(work: Callable[[], object]) -> str | None:
    try:
        work()
    except (RepaCacheError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def main(config: Path, disk: Path) -> dict[str, object]:
    said: dict[str, object] = {}
    settings = load_config(config, [f"cache.path={disk}/x.zarr"]).encode
    path, filler = disk / "x.zarr", disk / "filler"

    def build() -> None:
        build_columns(settings, torch.device("cpu"))

    mount(disk, "size=1m")
    filler.write_bytes(bytes(1024 * (1024 - 150)))
    said["foreseen"] = error_of(build)
    # What fills up while a build works is not foreseen.
    shutil.disk_usage = lambda _: SimpleNamespace(free=1 << 60)  # type: ignore[assignment]
    filler.write_bytes(bytes(1024 * (1024 - 190)))
    said["full"] = error_of(build)
    said["finished"] = sorted(Recorded.of(read_column(path, FEATURES, 21)).entries)
    said["partial"] = [entry.name for entry in path.rglob("*.partial")]
    filler.unlink()
    mount_again = ["mount", "-o", "remount,ro", disk]
    subprocess.run(mount_again, check=True)
    said["read-only"] = error_of(build)
    subprocess.run([*mount_again[:2], "remount,rw", disk], check=True)
    said["room"] = error_of(build)
    said["faults"] = len(find_faults(path, threads=1))
    subprocess.run(mount_again, check=True)
    said["rows read-only"] = len(
        Cache(path).column(FEATURES, verify=True).read("tokens", range(21))
    )
    return said


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]))))
