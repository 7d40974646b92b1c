import subprocess
import sys

import pytest
from places import ROOT


@pytest.mark.slow
def test_the_benchmark_finds_both_samplers_to_draw_the_same() -> None:
    command = [sys.executable, ROOT / "tests/benchmarks/sample.py", "--models", "SiT-XS/2"]
    small = ["--images", "1", "--steps", "3", "--rounds", "1"]
    done = subprocess.run([*command, *small], check=True, capture_output=True, text=True)
    assert "SiT-XS/2: this project" in done.stdout
