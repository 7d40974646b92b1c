"""What is set in processes before they use a GPU, in real ones."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from places import ROOT

from pipeline.config import Config

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
# What the installed command runs.
REPA_CACHE = (sys.executable, "-c", "from repa_cache import app; app()", "train")
MODULE = ("-m", "pipeline", "train")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2")

# Python runs it before everything else: it notes what is set when torch is imported.
WATCH = f"""
import os
import sys


class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            with open(os.environ["SEEN"], "a") as seen:
                print(os.environ.get({WORKSPACE!r}), file=seen)


sys.meta_path.insert(0, Watch())
"""


def seen_by(folder: Path, command: tuple[str, ...], **more: str) -> list[str]:
    """The variable in each process that imports torch, at that moment."""
    (folder / "watch").mkdir()
    (folder / "watch" / "sitecustomize.py").write_text(WATCH)
    path = os.pathsep.join([str(folder / "watch"), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": path, "SEEN": str(folder / "seen"), **more}
    if WORKSPACE not in more:
        environment.pop(WORKSPACE, None)
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    # There is no cache to train from.
    assert done.returncode == int("train" in command), done.stderr
    return sorted((folder / "seen").read_text().split())


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(REPA_CACHE, marks=pytest.mark.slow),
        pytest.param((sys.executable, *MODULE), marks=pytest.mark.slow),
        (sys.executable, "-c", "import stages.placement"),
        (sys.executable, "-c", "import repa_cache, torch"),
    ],
    ids=["repa-cache", "python-m", "import", "door"],
)
def test_cublas_is_told_to_repeat_itself_before_torch_is_imported(
    tiny: Callable[..., Config], command: tuple[str, ...]
) -> None:
    folder = tiny().dataset.path.parent
    assert seen_by(folder, command) == [":4096:8"]


@pytest.mark.slow
def test_so_it_is_in_every_process_of_torchrun(tiny: Callable[..., Config]) -> None:
    folder = tiny().dataset.path.parent
    # torchrun itself, which computes nothing, and two ranks.
    assert seen_by(folder, (*TORCHRUN, *MODULE)) == [":4096:8", ":4096:8", "None"]


def test_what_the_user_has_set_stays(tmp_path: Path) -> None:
    command = (sys.executable, "-c", "import stages.placement")
    assert seen_by(tmp_path, command, **{WORKSPACE: ":16:8"}) == [":16:8"]
