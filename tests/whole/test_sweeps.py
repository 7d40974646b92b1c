"""Sweeps in real processes: killed and resumed, on a cluster, stopped, with runs that fail."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from runs import assert_equal_runs, newest_of, trained
from sweeps import THREE, UNJUDGED, write_sweep

from pipeline.sweep.states import logged_step
from pipeline.sweep.sweep_file import Sweep, load_sweep

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
STEPS = "set.train.steps = 40"


def start(path: Path, *options: str) -> subprocess.Popen[str]:
    """A sweep in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "pipeline", "sweep", str(path), *options],
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str], status: int = 0) -> str:
    said, _ = process.communicate()
    assert process.returncode == status, said
    return said


def wait_until(process: subprocess.Popen[str], holds: Callable[[], bool]) -> None:
    while not holds():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def at_work(sweep: Sweep, name: str) -> int:
    """The process of a run."""
    lock = sweep.folder / "logs" / f".{name}.lock"
    return int(json.loads(lock.read_text())["pid"])


def check_as_if_alone(sweep: Sweep, folder: Path) -> None:
    """All runs equal those that are trained by themselves."""
    for run in sweep.runs:
        train = run.config.train.model_copy(update={"run": folder / run.name})
        alone = run.config.model_copy(update={"train": train})
        trained(alone)
        assert_equal_runs(run.config, alone)


def test_a_sweep_that_is_killed_twice_equals_runs_by_themselves(
    built: Path, tmp_path: Path
) -> None:
    path = write_sweep(tmp_path, built, THREE, STEPS, UNJUDGED)
    sweep = load_sweep(path)
    plain, repa, deep = sweep.runs
    process = start(path)
    wait_until(process, lambda: logged_step(plain.folder) > 5)
    # All at once, as a machine that goes down.
    os.kill(at_work(sweep, "plain"), signal.SIGKILL)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert newest_of(plain.folder).step < 40
    process = start(path)
    wait_until(process, lambda: logged_step(repa.folder) > 5)
    # The process of the run sees that the other one is gone, and stops by itself.
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    said = finish(start(path))
    assert "repa: goes on from step" in said
    assert "deep: begins" in said
    assert str(sweep.folder / "sweep.html") in said
    check_as_if_alone(sweep, tmp_path / "alone")
    before = {run.name: newest_of(run.folder).folder.stat().st_mtime_ns for run in sweep.runs}
    # Nothing is repeated, and what is added is all that runs.
    more = '{name = "repa"}, {name = "more", set.train.seed = 7}'
    path.write_text(path.read_text().replace('{name = "repa"}', more))
    said = finish(start(path))
    assert "more: begins" in said
    assert "goes on" not in said
    assert before == {
        run.name: newest_of(run.folder).folder.stat().st_mtime_ns for run in (plain, repa, deep)
    }


def test_a_run_whose_process_is_killed_is_taken_up_and_one_that_cannot_be_is_reported(
    built: Path, tmp_path: Path
) -> None:
    path = write_sweep(tmp_path, built, THREE, STEPS, "attempts = 2", UNJUDGED)
    sweep = load_sweep(path)
    plain, repa, _ = sweep.runs
    # A file in the place of its folder.
    repa.folder.parent.mkdir(parents=True)
    repa.folder.write_text("no folder")
    process = start(path)
    wait_until(process, lambda: logged_step(plain.folder) > 5)
    os.kill(at_work(sweep, "plain"), signal.SIGKILL)
    said = finish(process, status=1)
    assert "plain: killed by SIGKILL; it is taken up again" in said
    assert "plain: step 40, judged" in said
    assert "deep: step 40, judged" in said
    assert "repa failed: " in said
    assert "logs/repa.log" in said
    assert "Traceback" not in said
    page = (sweep.folder / "sweep.html").read_text()
    assert "<h2>Failed</h2>" in page


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_all_with_checkpoints_and_the_same_command_goes_on(
    built: Path, tmp_path: Path, number: signal.Signals
) -> None:
    path = write_sweep(tmp_path, built, THREE, STEPS, UNJUDGED)
    sweep = load_sweep(path)
    process = start(path, "--workers", "2")
    wait_until(process, lambda: sum(3 < logged_step(run.folder) < 30 for run in sweep.runs) == 2)
    os.killpg(process.pid, number)
    said = finish(process, status=130)
    assert "Run the same command to go on" in said
    stopped = [run for run in sweep.runs[:2] if logged_step(run.folder) < 40]
    for run in stopped:
        assert newest_of(run.folder).step == logged_step(run.folder)
    assert not sweep.runs[2].folder.exists()
    finish(start(path))
    check_as_if_alone(sweep, tmp_path / "alone")


def test_a_worker_of_a_cluster_that_is_killed_costs_no_run(built: Path, tmp_path: Path) -> None:
    path = write_sweep(tmp_path, built, THREE, STEPS, UNJUDGED)
    sweep = load_sweep(path)
    plain = sweep.runs[0]
    process = start(path, "--workers", "2")
    wait_until(process, lambda: logged_step(plain.folder) > 3)
    child = at_work(sweep, "plain")
    worker = int(Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[1])
    assert worker != process.pid
    os.kill(worker, signal.SIGKILL)
    said = finish(process)
    assert "plain: its worker is gone" in said
    assert said.count("judged") == 3
    check_as_if_alone(sweep, tmp_path / "alone")


def test_the_worse_half_ends_early(built: Path, tmp_path: Path) -> None:
    path = write_sweep(
        tmp_path,
        built,
        THREE.replace("[\n", "[\n  {name = 'still', set.train.ema_decay = 0.5},\n", 1),
        "set.train.steps = 4",
        "[judge]\nimages = 4\n[early_stop]\nsteps = [2]",
    )
    sweep = load_sweep(path, early_stop=True)
    said = finish(start(path, "--early-stop"))
    steps = {run.name: newest_of(run.folder).step for run in sweep.runs}
    assert sorted(steps.values()) == [2, 2, 4, 4]
    assert said.count("ends early, at step 2") == 2
    again = finish(start(path, "--early-stop"))
    assert "begins" not in again
    assert "goes on" not in again
    assert {run.name: newest_of(run.folder).step for run in sweep.runs} == steps
    # Whoever wants all has all.
    finish(start(path))
    assert {newest_of(run.folder).step for run in sweep.runs} == {4}


def test_columns_are_built_first_and_the_page_is_seen_by_a_browser(
    tiny: Callable[..., object], tmp_path: Path
) -> None:
    from browser import assert_fine

    assert tiny
    path = write_sweep(tmp_path, tmp_path, THREE, "grid.train.seed = [0, 1]", "judge.steps = [2]")
    said = finish(start(path))
    assert "columns to build: latents/tiny-vae, features/efficientnet-lite0" in said
    assert "The cache saved" in said or "not paid yet" in said
    assert_fine(tmp_path / "runs/sweep/sweep.html")
