"""Commands on runs and caches that are named by their paths, where no pipeline.toml is."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from inspecting import cells
from places import ROOT
from typer.testing import CliRunner, Result

from pipeline.commands import app
from stages.evaluate.results import read_results

FD = "fd_efficientnet-lite0"
RUN = "runs/sit"


def finished(*arguments: str | Path, status: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == status, result.output
    return result


def invoke(*arguments: str | Path, status: int = 0) -> str:
    result = finished(*arguments, status=status)
    return result.stdout if status == 0 else result.stderr


@pytest.fixture(scope="module")
def trained_runs(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pipeline.toml, a cache and the runs sit and plain, made by commands."""
    folder = tmp_path_factory.mktemp("trained") / "project"
    shutil.copytree(built, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, *settings in (("sit",), ("plain", "train.align=[]", "sample.guidance=1.5")):
            overrides = [f"train.run=runs/{name}", "train.steps=2", *settings]
            invoke("train", *(word for one in overrides for word in ("--set", one)))
    return folder


@pytest.fixture
def project(trained_runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder with a cache and two runs, but with neither images nor pipeline.toml."""
    folder = Path(shutil.copytree(trained_runs, tmp_path / "project"))
    (folder / "pipeline.toml").unlink()
    shutil.rmtree(folder / "images")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def alone(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with nothing but a run."""
    folder = tmp_path / "elsewhere"
    shutil.copytree(project / RUN, folder / "sit")
    shutil.rmtree(project)
    monkeypatch.chdir(folder)
    return folder


def test_a_run_alone_is_sampled_and_exported(alone: Path) -> None:
    assert "sit/samples/step-00000002: 6 images; 6 drawn" in invoke("sample", "sit")
    assert "nothing was missing" in invoke("sample", "sit")
    assert "ema of step 2 of SiT-XS/2" in invoke("export", "sit", "weights.safetensors")
    assert (alone / "weights.safetensors").is_file()
    (alone / "sit/config.json").unlink()
    assert "layout repa" in invoke("export", "sit", "again.pt")


def test_a_run_alone_is_evaluated_against_what_is_named(alone: Path) -> None:
    invoke("sample", "sit")
    output = invoke("evaluate", "sit", status=1)
    assert "tiny.zarr, which is what samples are compared with by default" in output
    assert "--reference" in output
    reference = alone / "sit/samples/step-00000002"
    invoke("evaluate", "sit", "--reference", reference)
    (result,) = read_results(reference)
    assert result.reference == str(reference)
    assert result.value == pytest.approx(0, abs=1e-3)
    # Neither are its weights needed any more.
    shutil.rmtree(alone / "sit/checkpoints")
    invoke("evaluate", "sit", "--reference", reference)
    assert read_results(reference) == [result]


def test_settings_of_a_run_are_changed_on_the_way(alone: Path) -> None:
    invoke("sample", "sit", "--set", "sample.images=3", "--out", "three")
    assert len(list((alone / "three").glob("0*.png"))) == 3
    assert "unknown key; did you mean 'images'" in invoke(
        "sample", "sit", "--set", "sample.image=3", status=1
    )
    output = invoke("export", "sit", "x.pt", "--set", "train.seed=1", status=1)
    assert "sit tells all that is exported" in output


def test_a_configuration_that_is_named_comes_before_the_run_s_own(
    project: Path, trained_runs: Path
) -> None:
    text = (trained_runs / "pipeline.toml").read_text().replace("images = 6", "images = 4")
    (project / "other.toml").write_text(text)
    output = invoke("sample", RUN, "--config", "other.toml")
    assert "runs/sit/samples/step-00000002: 4 images; 4 drawn" in output


@pytest.mark.slow
def test_several_runs_are_measured_alike_in_one_table(project: Path) -> None:
    for run in ("sit", "plain"):
        invoke("sample", f"runs/{run}")
    alone = [cells(invoke("evaluate", f"runs/{run}"), FD)[0] for run in ("sit", "plain")]
    output = invoke("evaluate", RUN, "runs/plain", "runs/sit/samples/step-00000002")
    sit, again = cells(output, "runs/sit/samples/step-00000002")
    (plain,) = cells(output, "runs/plain/samples/step-00000002")
    assert sit == again
    for row, (_, value, floor, *_) in ((sit, alone[0]), (plain, alone[1])):
        assert row[1:] == ["6", f"{value} ({floor})"]
    assert "against 21 images of tiny.zarr" in output
    assert f"{FD}: the model was aligned to this encoder (runs/sit/samples/step-00000002)" in output
    for run in ("sit", "plain"):
        assert len(read_results(project / f"runs/{run}/samples/step-00000002")) == 1
        assert FD in (project / f"runs/{run}/report.html").read_text()


@pytest.mark.slow
def test_a_run_that_says_otherwise_is_judged_like_the_first_and_that_is_said(project: Path) -> None:
    for run in ("sit", "plain"):
        invoke("sample", f"runs/{run}")
    config = project / "runs/plain/config.json"
    config.write_text(config.read_text().replace('"batch_size": 64', '"batch_size": 8'))
    assert '"batch_size": 8' in config.read_text()
    output = finished("evaluate", RUN, "runs/plain").stderr
    assert "runs/plain/samples/step-00000002: judged like the first" in output
    assert "evaluate.batch_size: its run 8, configuration 64" in output


@pytest.mark.slow
def test_samples_are_measured_as_they_were_drawn_and_a_difference_is_said(project: Path) -> None:
    invoke("sample", RUN, "--set", "sample.images=5", "--set", "sample.steps=3")
    # Sampling would draw others, and refuses; measuring does not.
    refused = invoke("sample", RUN, status=1)
    assert "steps: folder 3, configuration 2" in refused
    assert "`repa-cache evaluate` measures those that are there" in refused
    output = finished("evaluate", RUN).stderr
    assert "images: drawn with 5, configuration 6; steps: drawn with 3, configuration 2" in output
    (result,) = read_results(project / RUN / "samples/step-00000002")
    assert result.images == 5
    (project / RUN / "samples/step-00000002/000001.png").unlink()
    output = invoke("evaluate", RUN, status=1)
    assert "1 of 5 images are missing" in output
    assert "with the settings in its manifest.json" in output


@pytest.mark.slow
def test_samples_of_another_checkpoint_are_named_where_those_of_the_newest_lack(
    project: Path,
) -> None:
    shutil.copytree(
        project / RUN / "checkpoints/step-00000002", project / RUN / "checkpoints/step-00000001"
    )
    invoke("sample", RUN, "--checkpoint", "1")
    output = invoke("evaluate", RUN, status=1)
    assert "There is no runs/sit/samples/step-00000002" in output
    assert "or name others that are there: runs/sit/samples/step-00000001" in output
    invoke("evaluate", "runs/sit/samples/step-00000001")
    assert len(read_results(project / RUN / "samples/step-00000001")) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("project")
def test_samples_of_no_run_need_a_reference_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    invoke("sample", RUN, "--out", tmp_path / "bare/samples-of-mine")
    monkeypatch.chdir(tmp_path / "bare")
    settings = ("--set", "evaluate.metrics=[]", "--set", f'evaluate.frechet_encoders=["{FD[3:]}"]')
    output = invoke("evaluate", "samples-of-mine", *settings, status=1)
    assert "Compared with what?" in output
    invoke("evaluate", "samples-of-mine", *settings, "--reference", "samples-of-mine")
    (result,) = read_results(tmp_path / "bare/samples-of-mine")
    assert result.value == pytest.approx(0, abs=1e-3)


def test_samples_of_two_sizes_are_not_compared(project: Path) -> None:
    from PIL import Image

    invoke("sample", RUN)
    (project / "large").mkdir()
    Image.new("RGB", (64, 64)).save(project / "large/0.png")
    output = invoke("evaluate", RUN, "large", status=1)
    assert "runs/sit/samples/step-00000002 has 32 px, large has 64 px" in output


def in_two_processes(*arguments: str) -> str:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "-m", "pipeline", *arguments]
    root = str(ROOT)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    return subprocess.run(
        command, check=True, env=environment, capture_output=True, text=True
    ).stdout


@pytest.mark.slow
def test_torchrun_samples_a_run(alone: Path) -> None:
    in_two_processes("sample", "sit")
    assert len(list((alone / "sit/samples/step-00000002").glob("0*.png"))) == 6


@pytest.mark.slow
@pytest.mark.usefixtures("project")
def test_torchrun_evaluates_several_runs() -> None:
    for run in ("sit", "plain"):
        invoke("sample", f"runs/{run}")
    expected = invoke("evaluate", RUN, "runs/plain")
    found = in_two_processes("evaluate", RUN, "runs/plain")
    assert len(cells(found, "runs/")) == 2
    assert cells(found, "runs/") == cells(expected, "runs/")


def test_a_cache_is_inspected_by_its_path(project: Path) -> None:
    output = invoke("inspect", "tiny.zarr")
    assert "tiny.zarr: 21 images, 21 of them whole and valid" in output
    assert cells(output, "latents/tiny-vae")[0][1:4] == ["8 x 8", "4", "float16"]
    assert "not as configured" not in output
    assert "not in the configuration" not in output
    # Runs are looked for in `runs` beside the cache.
    assert {row[0] for row in cells(output.partition("used by:")[2], "") if len(row) > 4} >= {
        "sit",
        "plain",
    }
    shutil.rmtree(project / "tiny.zarr/features/efficientnet-lite0/tokens")
    assert "what is wrong" in invoke("inspect", "tiny.zarr")


@pytest.mark.usefixtures("project")
def test_images_of_a_cache_are_named_after_the_option_and_the_cache_before() -> None:
    keys = ("class1/3.jpg", "class0/0.jpg")
    output = invoke("inspect", "tiny.zarr", "--rows", *keys, "--neighbours", "1")
    assert output == invoke("inspect", "--rows", *keys, "--neighbours", "1", "--", "tiny.zarr")
    assert output.count("nearest to") == 2
    refused = invoke("inspect", "class1/3.jpg", status=1)
    assert "There is no cache class1/3.jpg. Name images with --rows class1/3.jpg." in refused
    assert invoke("inspect", "tiny.zarr", "--rows", status=2)


def test_pictures_of_a_cache_without_its_images_say_what_is_not_there(project: Path) -> None:
    assert "tiny-inspect/index.html: 2 images" in invoke(
        *("inspect", "tiny.zarr", "--pictures", "--images", "2")
    )
    page = (project / "tiny-inspect/index.html").read_text()
    assert "without crops: dataset.path: where the images are is not known" in page
    assert "efficientnet-lite0" in page


def test_a_cache_is_verified_by_its_path_and_fidelity_needs_a_configuration(
    project: Path, trained_runs: Path
) -> None:
    assert "complete, and every byte is what was written" in invoke("verify", "tiny.zarr")
    output = invoke("verify", "tiny.zarr", "--fidelity", "3", status=1)
    assert "Name the configuration with --config" in output
    config = ("--config", trained_runs / "pipeline.toml")
    assert "tiny-vae/moments" in invoke("verify", "tiny.zarr", "--fidelity", "3", *config)
    path = project / "tiny.zarr/latents/tiny-vae/moments/c.0.0.0.0"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    assert "latents/tiny-vae" in finished("verify", "tiny.zarr", status=1).stdout
    # The one of the configuration is another, and whole.
    assert "every byte is what was written" in invoke("verify", *config)


@pytest.mark.usefixtures("project")
def test_a_cache_is_timed_by_its_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.plan.reading_speed.MEASURE_SECONDS", 0.1)
    output = invoke("bench", "tiny.zarr", "--set", "train.batch_size=4")
    assert "steps/s of 4 images" in output
    assert "trains SiT-XL/2 on" in output
    latents_alone = ("--set", "train.batch_size=4", "--set", "train.align=[]")
    assert "steps/s of 4 images" in invoke("bench", "tiny.zarr", *latents_alone)
