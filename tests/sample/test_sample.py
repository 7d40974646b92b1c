import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from marking import few_fast
from PIL import Image
from runs import drawn_into, image_bytes, trained

from cache.locking.locks import claimed
from pipeline.config import Config, ConfigError, load_config
from stages.sample import png_files
from stages.sample.sampled_weights import SampleOptions, find_weights
from stages.sample.samples import MANIFEST
from stages.sample.solvers import SOLVERS
from stages.sample.solvers.solver import SampleError
from stages.sample.thread_pieces import map_by_threads, raise_if_abandoned
from stages.weights.checkpoint import CheckpointError

PAPER = ("sample.solver=euler-maruyama", "sample.steps=4", "sample.labels=random")
GUIDED = ("sample.guidance=1.8", "sample.guidance_interval=[0, 0.7]")
DIT = ("train.model=DiT-XS/2", "sample.steps=4")


@pytest.fixture
def drawable(built: Path, runs: Path) -> Callable[..., Config]:
    """The configuration of a run that has been trained, sit, plain or dit."""
    return lambda *overrides, run="sit": load_config(
        built / "pipeline.toml", [f"train.run={runs / run}", *overrides]
    )


def test_images_are_numbered_pngs_with_a_manifest_and_a_grid(
    drawable: Callable[..., Config], tmp_path: Path
) -> None:
    drawn = drawn_into(tmp_path / "samples", drawable())
    samples = drawn.samples
    assert drawn.images == 6
    with Image.open(samples.path(4)) as image, Image.open(samples.grid) as grid:
        assert (image.size, grid.size) == ((32, 32), (96, 64))
        np.testing.assert_array_equal(np.asarray(grid)[32:64, 32:64], np.asarray(image))
    manifest = json.loads((samples.folder / "manifest.json").read_text())
    expected = {
        "solver": "euler-maruyama",
        "steps": 2,
        "seed": 0,
        "labels": "balanced",
        "classes": 3,
        "model": "SiT-XS/2",
        "checkpoint": "step-00000002",
        "precision": "float32",
        "aligned_with": ["efficientnet-lite0"],
        "uint8": "truncate",
        "images": 6,
    }
    assert {name: manifest[name] for name in expected} == expected
    assert len(manifest["checkpoint_sha256"]) == 64


def test_a_manifest_may_tell_options_of_other_solvers(
    drawable: Callable[..., Config], tmp_path: Path
) -> None:
    config, folder = drawable(), tmp_path / "samples"
    path = drawn_into(folder, config).samples.folder / "manifest.json"
    written = path.read_text()
    path.write_text(json.dumps(json.loads(written) | {"tolerances": [1e-6, 1e-3]}))
    assert drawn_into(folder, config).images == 0
    assert path.read_text() == written


def test_only_lacking_images_are_drawn_and_they_come_out_the_same(
    drawable: Callable[..., Config], tmp_path: Path
) -> None:
    config, folder = drawable(), tmp_path / "samples"
    samples = drawn_into(folder, config).samples
    before = image_bytes(samples)
    samples.path(1).unlink()
    samples.path(4).unlink()
    assert drawn_into(folder, config).images == 2
    assert image_bytes(samples) == before
    assert drawn_into(folder, config).images == 0


def test_more_images_are_added_to_those_that_are_there(
    drawable: Callable[..., Config], tmp_path: Path
) -> None:
    drawn_into(tmp_path / "samples", drawable())
    assert drawn_into(tmp_path / "samples", drawable("sample.images=9")).images == 3
    assert json.loads((tmp_path / "samples/manifest.json").read_text())["images"] == 9


def test_a_stopped_sampling_goes_on(
    drawable: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real, lacking = png_files.save_png, {"000003.png", "000005.png"}

    def stops(path: Path, pixels: Any) -> None:
        if path.name in lacking:
            raise KeyboardInterrupt
        real(path, pixels)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(png_files, "save_png", stops)
        drawn_into(tmp_path / "samples", drawable())
    assert 2 <= drawn_into(tmp_path / "samples", drawable()).images <= 3


@pytest.mark.slow
@pytest.mark.parametrize("run", ["sit", "dit"])
def test_a_killed_sampling_resumes_to_the_same_folder(
    drawable: Callable[..., Config], built: Path, tmp_path: Path, run: str
) -> None:
    settings = [*(DIT if run == "dit" else PAPER), *GUIDED, "sample.images=48"]
    config = drawable(*settings, run=run)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    drawn_into(whole, config)
    command = [sys.executable, "-m", "pipeline", "sample", "--out", str(killed)]
    command += ["--config", str(built / "pipeline.toml")]
    for setting in (*settings, f"train.run={config.train.run}", "sample.batch_size=1"):
        command += ["--set", setting]
    process = subprocess.Popen(command)
    while len(list(killed.glob("0*.png"))) < 5:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (killed / ".000047.png.elsewhere-1.partial").write_bytes(b"torn")
    assert 0 < drawn_into(killed, config).images < 44
    assert contents(killed) == contents(whole)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    "settings",
    few_fast([(*PAPER, *GUIDED), ("sample.solver=dopri5",), DIT]),
)
def test_images_do_not_depend_on_the_batch_size(
    drawable: Callable[..., Config], tmp_path: Path, settings: tuple[str, ...]
) -> None:
    run = "dit" if settings is DIT else "sit"
    found = []
    for size in (1, 5, 48):
        config = drawable(*settings, "sample.images=48", f"sample.batch_size={size}", run=run)
        drawn_into(tmp_path / str(size), config)
        found.append(contents(tmp_path / str(size)))
    assert found[0] == found[1] == found[2]
    assert len(set(found[0].values())) == 49


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_images_do_not_depend_on_the_number_of_processes(
    drawable: Callable[..., Config], built: Path, tmp_path: Path, processes: int
) -> None:
    settings = [*PAPER, *GUIDED, "sample.images=20", "sample.npz=true"]
    config = drawable(*settings)
    drawn_into(tmp_path / "one", config)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(processes), "-m", "pipeline", "sample"]
    command += ["--out", str(tmp_path / "several"), "--config", str(built / "pipeline.toml")]
    for setting in (*settings, f"train.run={config.train.run}"):
        command += ["--set", setting]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "2"})
    assert contents(tmp_path / "several") == contents(tmp_path / "one")
    files = [(tmp_path / f"{name}.npz").read_bytes() for name in ("one", "several")]
    with np.load(tmp_path / "several.npz") as found, np.load(tmp_path / "one.npz") as expected:
        np.testing.assert_array_equal(found["arr_0"], expected["arr_0"])
    assert len(files[0]) == len(files[1])


def test_images_do_not_depend_on_the_number_of_threads(
    drawable: Callable[..., Config], tmp_path: Path
) -> None:
    config = drawable(*PAPER, *GUIDED, "sample.images=9")
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        try:
            drawn_into(tmp_path / str(threads), config)
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(1)
        found.append(contents(tmp_path / str(threads)))
    assert found[0] == found[1]


def test_work_that_nobody_waits_for_is_given_up() -> None:
    begun, torch_threads = [], torch.get_num_threads()

    def compute(piece: int) -> int:
        begun.append(piece)
        while piece > 0:
            time.sleep(0.01)
            raise_if_abandoned()
        return piece

    results = map_by_threads(compute, range(100))
    assert next(results) == 0
    results.close()
    assert len(begun) < 5
    assert torch.get_num_threads() == torch_threads


def test_samples_of_other_settings_are_refused(
    drawable: Callable[..., Config], tmp_path: Path
) -> None:
    folder = tmp_path / "samples"
    drawn_into(folder, drawable())
    with pytest.raises(SampleError, match=r"guidance: folder 1\.0, configuration 2\.0"):
        drawn_into(folder, drawable("sample.guidance=2.0"))
    with pytest.raises(SampleError, match="checkpoint_sha256: folder"):
        drawn_into(folder, drawable(), step=1)


# What manifests held at first; each setting since has a default that changes nothing.
FIRST_KEYS = (
    *("images", "model", "checkpoint", "checkpoint_sha256", "interpolant", "aligned_with"),
    *("classes", "vae", "solver", "steps", "guidance", "guidance_interval", "labels", "seed"),
    *("uint8", "precision"),
)


def test_samples_of_earlier_versions_are_taken_up(
    drawable: Callable[..., Config], tmp_path: Path
) -> None:
    folder = tmp_path / "samples"
    drawn_into(folder, drawable())
    manifest = json.loads((folder / MANIFEST).read_text())
    first = {key: manifest[key] for key in FIRST_KEYS} | {"tolerances": [1e-6, 1e-3]}
    (folder / MANIFEST).write_text(json.dumps(first))
    assert drawn_into(folder, drawable()).images == 0
    with pytest.raises(SampleError, match="time_shift: folder null, configuration 2"):
        drawn_into(folder, drawable("sample.time_shift=2.0"))


def test_a_folder_without_images_takes_other_settings(
    drawable: Callable[..., Config], tmp_path: Path
) -> None:
    folder = tmp_path / "samples"
    with pytest.raises(SampleError, match="have 4 channels, got 5"):
        drawn_into(folder, drawable("sample.guided_channels=5"))
    assert drawn_into(folder, drawable()).images == 6


def test_a_folder_of_other_files_or_in_use_is_left_alone(
    drawable: Callable[..., Config], tmp_path: Path
) -> None:
    folder = tmp_path / "photographs"
    folder.mkdir()
    (folder / "000001.png").write_bytes(b"of the user")
    with pytest.raises(SampleError, match="holds other files, and no manifest"):
        drawn_into(folder, drawable())
    assert contents(folder) == {"000001.png": b"of the user"}
    with claimed(tmp_path / ".samples.lock"), pytest.raises(SampleError, match="being filled by"):
        drawn_into(tmp_path / "samples", drawable())


def test_a_run_without_checkpoint_has_nothing_to_sample(
    drawable: Callable[..., Config], tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="has no checkpoint"):
        drawn_into(tmp_path / "samples", drawable(run="none"))
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 7, but of 1, 2\."):
        drawn_into(tmp_path / "samples", drawable(), step=7)


def test_the_weights_as_trained_have_a_folder_of_their_own(
    drawable: Callable[..., Config],
) -> None:
    train = drawable().train
    averaged = find_weights(SampleOptions(), train)
    trained = find_weights(SampleOptions(weights="model"), train)
    assert (averaged.title, trained.title) == ("step-00000002", "step-00000002-model")
    assert averaged.sha256 != trained.sha256


def test_guidance_needs_a_null_class(trainable: Callable[..., Config], tmp_path: Path) -> None:
    config = trainable("train.label_dropping=0", "sample.guidance=2.0", "train.steps=1")
    trained(config)
    with pytest.raises(SampleError, match="has no null class"):
        drawn_into(tmp_path / "samples", config)


@pytest.mark.parametrize("solver", [name for name in SOLVERS if not name.startswith("jit-")])
def test_every_solver_of_latents_draws_images(
    drawable: Callable[..., Config], solver: str, tmp_path: Path
) -> None:
    run = SOLVERS[solver].family.lower()
    settings = [f"train.model={SOLVERS[solver].family}-XS/2", f"sample.solver={solver}"]
    config = drawable(*settings, "sample.guidance=1.5", run=run)
    assert drawn_into(tmp_path / "samples", config).images == 6


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (("sample.solver=ddpm",), "'ddpm' is not for SiT; it takes euler-maruyama, euler, heun"),
        (("train.model=DiT-XS/2", "sample.solver=heun"), "'heun' is not for DiT; it takes ddpm"),
        ((*DIT, "sample.steps=1001"), "sample.steps: DiT has 1000 steps, got 1001"),
        ((*DIT, "sample.solver=ddim", "sample.steps=300"), "take 250"),
        (("sample.solver=hein",), "did you mean 'heun'"),
        (("sample.vae=./nowhere",), "sample.vae: there is no folder"),
    ],
)
def test_what_does_not_fit_together_is_refused_at_once(
    drawable: Callable[..., Config], settings: tuple[str, ...], problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem):
        drawable(*settings)


def test_a_solver_for_another_family_than_the_checkpoint_s_is_refused(
    drawable: Callable[..., Config], tmp_path: Path
) -> None:
    with pytest.raises(SampleError, match="'euler' is for SiT, but the model is a DiT"):
        drawn_into(tmp_path / "samples", drawable("sample.solver=euler", run="dit"))


def test_a_vae_with_other_latents_is_refused(
    drawable: Callable[..., Config], tmp_path: Path
) -> None:
    from stages.vision import AutoencoderKL

    AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=16).save_pretrained(
        tmp_path / "vae16"
    )
    with pytest.raises(SampleError, match="have 16 channels, but those of the model have 4"):
        drawn_into(tmp_path / "samples", drawable(f"sample.vae={tmp_path / 'vae16'}"))


def test_the_paper_s_decoder_is_the_default_for_its_encoder(
    drawable: Callable[..., Config],
) -> None:
    settings = ("train.align=[]", "dataset.resolution=256")
    mse = drawable("latents.vae=stabilityai/sd-vae-ft-mse", *settings)
    assert mse.decoder.location == "stabilityai/sd-vae-ft-ema"
    assert drawable().decoder.location == drawable().latents.location
    chosen = drawable(
        "latents.vae=stabilityai/sd-vae-ft-mse", "sample.vae=demo-autoencoder", *settings
    )
    assert chosen.decoder.location.endswith("demo_autoencoder")


def test_labels_are_random_or_balanced_and_written_beside_the_images(
    drawable: Callable[..., Config], tmp_path: Path
) -> None:
    labels = {}
    for mode in ("random", "balanced"):
        settings = ("sample.images=30", "sample.npz=true", f"sample.labels={mode}")
        samples = drawn_into(tmp_path / mode, drawable(*settings)).samples
        with np.load(samples.npz) as file:
            labels[mode] = file["arr_1"].tolist()
            assert file["arr_0"].shape == (30, 32, 32, 3)
            np.testing.assert_array_equal(file["arr_0"][7], np.asarray(Image.open(samples.path(7))))
    assert labels["balanced"] == [index % 3 for index in range(30)]
    assert set(labels["random"]) == {0, 1, 2}
    assert labels["random"] != sorted(labels["random"])


def test_an_archive_is_written_again_only_if_images_were_drawn(
    drawable: Callable[..., Config], tmp_path: Path
) -> None:
    config = drawable("sample.npz=true")
    npz = drawn_into(tmp_path / "samples", config).samples.npz
    before = npz.stat().st_mtime_ns
    drawn_into(tmp_path / "samples", config)
    assert npz.stat().st_mtime_ns == before
    (tmp_path / "samples/000003.png").unlink()
    drawn_into(tmp_path / "samples", config)
    assert npz.stat().st_mtime_ns > before
