"""How commands end: one message for every error, on every kind of terminal, pipe and file."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from places import ROOT
from typer.testing import CliRunner

from cache.files import atomic_folder, write_atomically
from pipeline.commands import app
from pipeline.config import Config

PROGRAM = [sys.executable, "-m", "pipeline"]


@pytest.fixture
def folder(tiny: Callable[..., Config], images: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tiny()
    monkeypatch.chdir(images.parent)
    return images.parent


def fails_with(raise_it: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> str:
    """What `train` says when its work ends so."""
    monkeypatch.setattr("pipeline.commands.train.train", lambda _: raise_it())
    result = CliRunner().invoke(app, ["train"])
    assert result.exit_code == 1, result.output
    assert "Traceback" not in result.output
    return result.output


@pytest.mark.usefixtures("folder")
def test_an_error_that_nobody_foresaw_says_what_and_where(monkeypatch: pytest.MonkeyPatch) -> None:
    def mistaken() -> None:
        write_atomically(None, b"")  # type: ignore[arg-type]

    first, second = fails_with(mistaken, monkeypatch).splitlines()
    assert first.startswith("repa-cache: Unexpected AttributeError: 'NoneType' object has no attri")
    assert "(cache/files.py, line " in first
    assert first.endswith("in _aside)")
    assert "with --debug shows the traceback" in second
    result = CliRunner().invoke(app, ["train", "--debug"])
    assert isinstance(result.exception, AttributeError)


def no_memory() -> None:
    raise MemoryError


def no_gpu_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee also ...")


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("allocate", "said"),
    [
        (lambda: torch.empty(1 << 60), "can't allocate memory: you tried to allocate"),
        (no_gpu_memory, "Out of memory: CUDA out of memory. Tried to allocate 2.00 GiB.\n"),
        (no_memory, "Out of memory: no message\n"),
    ],
    ids=["CPU", "GPU", "Python"],
)
def test_memory_that_does_not_suffice_comes_with_the_settings_that_need_less(
    monkeypatch: pytest.MonkeyPatch, allocate: Callable[[], object], said: str
) -> None:
    output = fails_with(allocate, monkeypatch)
    assert output.startswith("repa-cache: Out of memory: ")
    assert said in output
    assert "train.compute.micro_batches" in output


@pytest.mark.usefixtures("folder")
def test_an_error_of_the_system_names_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    output = fails_with(lambda: Path("a/b").read_bytes(), monkeypatch)
    assert output == "repa-cache: a/b: No such file or directory.\n"


@pytest.mark.parametrize("arguments", [["init", "--config"], ["report", "runs", "--out"]])
def test_what_cannot_be_written_is_named_as_it_was_asked_for(
    runs: Path, tmp_path: Path, arguments: list[str]
) -> None:
    command, *own = [str(runs / "sit") if part == "runs" else part for part in arguments]
    (tmp_path / "file").write_text("")
    result = CliRunner().invoke(app, [command, *own, str(tmp_path / "file" / "out")])
    assert result.exit_code == 1
    assert result.output.startswith(f"repa-cache: {tmp_path}/file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_errors_of_writing_aside_name_the_place_itself(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for write in (lambda path: write_atomically(path, b""), lambda path: enter(path)):
        with pytest.raises(NotADirectoryError) as caught:
            write(tmp_path / "file" / "x")
        assert caught.value.filename == str(tmp_path / "file" / "x")


def enter(path: Path) -> None:
    with atomic_folder(path):
        pass


def shell(line: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a line of bash, in which `repa-cache` is the program."""
    program = f'repa-cache() {{ "{sys.executable}" -m pipeline "$@"; }}; set -o pipefail; '
    return subprocess.run(
        ["bash", "-c", program + line],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("reader", ["head -n 1", "true"])
def test_a_reader_that_has_seen_enough_ends_a_command_quietly(tmp_path: Path, reader: str) -> None:
    done = shell(f"repa-cache init | {reader}", tmp_path)
    assert done.stderr == ""
    assert done.returncode in {0, 1}


def test_a_full_disk_behind_stdout_is_one_message(tmp_path: Path) -> None:
    done = shell("repa-cache init > /dev/full", tmp_path)
    assert (done.returncode, done.stderr) == (1, "repa-cache: No space left on device.\n")


def test_closed_streams_do_not_matter(tmp_path: Path) -> None:
    done = shell("repa-cache init >&- 2>&-", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "pipeline.toml").is_file()


@pytest.mark.slow
def test_what_a_terminal_cannot_show_is_escaped(folder: Path) -> None:
    (folder / "images/class0").rename(folder / "images/größe 大")
    assert CliRunner().invoke(app, ["build", "--set", "cache.path=größe.zarr"]).exit_code == 0
    done = shell(
        "repa-cache inspect --set cache.path=größe.zarr --rows 'größe 大/3.jpg' --neighbours 0",
        folder,
        PYTHONIOENCODING="ascii:strict",
    )
    assert done.returncode == 0, done.stderr
    assert "gr\\xf6\\xdfe \\u5927/3.jpg" in done.stdout


def test_a_locale_whose_names_of_files_are_others_is_refused(tmp_path: Path) -> None:
    locale = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = shell("repa-cache init", tmp_path, **locale)
    assert done.returncode == 1
    assert done.stderr.startswith("repa-cache: Names of files are ascii in this locale, expected ")
    assert shell("repa-cache --help", tmp_path, **locale).returncode == 0
    assert shell("repa-cache init", tmp_path, LC_ALL="C").returncode == 0


def test_the_version_is_that_of_the_package() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.output) == (0, "repa-cache 0.1.0\n")


@pytest.mark.usefixtures("folder")
def test_a_mistake_in_the_settings_is_told_once_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    torchrun = {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "here", "MASTER_PORT": "1"}
    for name, value in torchrun.items():
        monkeypatch.setenv(name, value)
    mistake = ["train", "--set", "train.align.0.depth=9"]
    for local, said in (("0", True), ("1", False)):
        monkeypatch.setenv("LOCAL_RANK", local)
        result = CliRunner().invoke(app, mistake)
        assert (result.exit_code, "train.align.0.depth" in result.output) == (1, said)
