"""The benchmark of a GPU, rehearsed without one."""

import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

pytestmark = pytest.mark.slow


def page_of(folder: Path, *options: str) -> tuple[int, str]:
    """The exit code of the benchmark, and the page that it writes."""
    program, page = ROOT / "tests" / "benchmarks" / "gpu.py", folder / "page.md"
    own = (str(program), str(folder / "bench"), "--small", "--device", "cpu", "--out", str(page))
    done = subprocess.run([sys.executable, *own, *options], capture_output=True, text=True)
    assert not (folder / "bench").exists(), done.stderr
    return done.returncode, page.read_text()


@pytest.mark.timeout(900)
def test_every_part_is_measured(tmp_path: Path) -> None:
    code, page = page_of(tmp_path)
    assert code == 0, page
    headings = [line for line in page.splitlines() if line.startswith("## ")]
    assert headings == ["## Train", "## Options", "## Profile", "## Encode", "## Sample"]
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    assert {line.count("|") for line in rows if "from the cache" in line} == {8}
    assert len(rows) >= 5 + 4 + 5 + 3 + 4


def test_a_part_that_fails_leaves_the_others_alone(tmp_path: Path) -> None:
    code, page = page_of(tmp_path, "--parts", "unknown,encode")
    assert code == 1
    assert "Failed: KeyError" in page
    assert "| float32 |" in page
