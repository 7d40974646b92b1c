"""Disks that are full or read-only."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from places import ROOT, TOOLS

from pipeline.config import Config


@pytest.mark.slow
def test_a_full_and_a_read_only_disk_are_clear_errors_and_lose_nothing(
    tiny: Callable[..., Config], images: Path
) -> None:
    tiny()
    disk = images.parent / "disk"
    disk.mkdir()
    namespace = ["unshare", "--user", "--map-root-user", "--mount"]
    done = subprocess.run(
        [
            *namespace,
            sys.executable,
            TOOLS / "on_small_disk.py",
            images.parent / "pipeline.toml",
            disk,
        ],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert re.search(r"need 11\d\.\d kB, and the disk has [\d.]+ kB left", said["foreseen"])
    assert "No space left on device. Finished shards are kept" in said["full"]
    assert said["finished"]
    assert len(said["finished"]) < 3
    assert said["partial"] == []
    assert "cannot be written: Read-only file system" in said["read-only"]
    assert said["room"] is None
    assert said["faults"] == 0
    assert said["rows read-only"] == 21
