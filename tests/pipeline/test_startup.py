"""What a command imports before it does anything: seconds that a mistake should not cost."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.config import Config

NETWORKS = {"diffusers", "timm", "torch_fidelity", "torchvision", "transformers"}
HEAVY = NETWORKS | {
    *("dask", "distributed", "huggingface_hub", "matplotlib", "pandas", "pyarrow"),
    *("safetensors", "scipy", "sympy", "torch", "zarr"),
}
# Runs the program and says at its end, on stderr, which packages it has imported.
PROGRAM = """
import atexit, sys
atexit.register(lambda: print(*{name.partition(".")[0] for name in sys.modules}, file=sys.stderr))
from pipeline.commands import app
app(prog_name="repa-cache")
"""
# A name of timm that no registry of this project has, whose typo is below.
TIMM = "convnext_atto.d2_in1k"


def imported(folder: Path, *arguments: str, status: int = 0) -> tuple[str, set[str]]:
    """What a command said, and the packages that it had imported when it ended."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        cwd=folder,
        env={**os.environ, "XDG_CACHE_HOME": str(folder / "kept")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stderr
    *said, packages = done.stderr.splitlines()
    return "\n".join([done.stdout, *said]), set(packages.split())


@pytest.fixture
def folder(tiny: Callable[..., Config], images: Path) -> Path:
    tiny()
    return images.parent


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["train", "--help"], ["analyze"]])
def test_help_and_version_import_nothing_that_works(tmp_path: Path, arguments: list[str]) -> None:
    status = 2 if arguments == ["analyze"] else 0
    said, packages = imported(tmp_path, *arguments, status=status)
    assert "repa-cache" in said
    assert packages & (HEAVY | {"numpy", "PIL"}) == set()


@pytest.mark.parametrize("arguments", [[], ["--schema"]])
def test_a_configuration_is_explained_without_what_works(
    folder: Path, arguments: list[str]
) -> None:
    said, packages = imported(folder, "config", *arguments)
    assert "efficientnet-lite0" in said or '"$defs"' in said
    assert packages & HEAVY == set()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.align.0.dept=9", "did you mean 'depth'?"),
        ("train.align.0.depth=9", "SiT-XS/2 has 4 blocks"),
        ("train.align.0.kind=nt_xent", "did you mean 'nt-xent'?"),
        ("train.interpolant=cosin", "did you mean 'cosine'?"),
        ("sample.solver=ddpm", "'ddpm' is not for SiT"),
        ("encoders.dinov2-vit-bb.storage=int8", "did you mean 'dinov2-vit-b'?"),
        ("encoders.dinov2-vit-b.storage=int4", "did you mean 'int8'?"),
        ("dataset.source=imagefolders", "did you mean 'imagefolder'?"),
    ],
)
def test_a_mistake_is_named_before_anything_heavy_is_imported(
    folder: Path, setting: str, message: str
) -> None:
    said, packages = imported(folder, "train", "--set", setting, status=1)
    assert message in said
    assert packages & HEAVY == set()


@pytest.mark.slow
def test_a_model_of_timm_is_asked_for_once(folder: Path) -> None:
    setting = f'encoders."{TIMM}".input_size=100'
    said, packages = imported(folder, "plan", "--images", "9", "--set", setting, status=1)
    assert f"encoders.{TIMM}.input_size: 100 is no multiple of its patches of 32 px" in said
    assert "timm" in packages
    again, packages = imported(folder, "plan", "--images", "9", "--set", setting, status=1)
    assert again == said
    assert packages & HEAVY == set()
    typo = f'encoders."{TIMM[:-1]}".input_size=96'
    said, packages = imported(folder, "train", "--set", typo, status=1)
    assert f"did you mean '{TIMM}'?" in said
    assert packages & HEAVY == set()


@pytest.mark.slow
def test_training_imports_no_frozen_network(built: Path, tmp_path: Path) -> None:
    arguments = "train", "--config", str(built / "pipeline.toml"), "--set", "train.steps=2"
    said, packages = imported(tmp_path, *arguments, "--set", "train.run=run")
    assert "2 steps made" in said
    assert (tmp_path / "run").is_dir()
    assert packages & (NETWORKS | {"dask", "distributed", "huggingface_hub", "scipy"}) == set()


def test_a_cache_is_verified_without_what_computes_and_draws(built: Path, tmp_path: Path) -> None:
    said, packages = imported(tmp_path, "verify", str(built / "tiny.zarr"))
    assert "every byte is what was written" in said
    assert packages & (HEAVY - {"safetensors", "zarr"}) == set()


@pytest.mark.slow
def test_a_plan_draws_nothing_and_makes_no_page(built: Path, tmp_path: Path) -> None:
    arguments = "plan", "--config", str(built / "pipeline.toml"), "--images", "30"
    said, packages = imported(tmp_path, *arguments)
    assert "30 images" in said
    assert packages & {"matplotlib", "dask", "distributed"} == set()
