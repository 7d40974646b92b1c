"""How a sweep takes up its runs, ends the worse ones, and sums up what came of all."""

import csv
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from runs import trained
from sweeps import ENCODER, THREE, sweep_of, write_sweep
from typer.testing import CliRunner

from cache.metadata import read_group, update_group
from pipeline.commands import app
from pipeline.report.reading import Savings, read_by, savings
from pipeline.report.records import read_run
from pipeline.sweep.halving import halvings, worse_ones
from pipeline.sweep.processes import Ended, Order, Outcome
from pipeline.sweep.schedule import Schedule
from pipeline.sweep.states import Judgement, judging, lacking_steps, logged_step, trained_step
from pipeline.sweep.summary import csv_path, hours_at, spread, summarise, write_csv
from pipeline.sweep.sweep_file import Sweep
from pipeline.sweep.sweep_page import savings_lines, write_sweep_page
from stages.evaluate.results import Result, write_results
from stages.weights.run_folder import samples_path, step_name

DONE, STOPPED = Ended(Outcome.DONE), Ended(Outcome.STOPPED)
BROKEN = Ended(Outcome.FAILED, "it is broken\nand more")
METRIC = f"fd_{ENCODER}"


class Acted:
    """Two places whose processes end at once, as they are told to.

    endings: of a run's processes, one after another; those of others are done.
    """

    def __init__(self, **endings: list[Ended]) -> None:
        self.endings, self.orders, self.at_work = endings, list[Order](), list[str]()
        self.most = 0

    def free(self) -> list[str]:
        return ["one", "other"][len(self.at_work) :]

    def start(self, place: str, order: Order) -> None:
        assert place
        self.orders.append(order)
        self.at_work.append(order.name)
        self.most = max(self.most, len(self.at_work))

    def ended(self) -> list[tuple[str, Ended]]:
        found = [
            (name, own.pop(0) if (own := self.endings.get(name)) else DONE) for name in self.at_work
        ]
        self.at_work.clear()
        return found

    def stop(self) -> None:
        self.endings = {name: [STOPPED] for name in self.at_work}


@pytest.fixture
def sweep(tmp_path: Path, built: Path) -> Sweep:
    return sweep_of(tmp_path, built, THREE)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.sweep.schedule.POLL_SECONDS", 0)


def test_a_run_that_fails_is_taken_up_again_and_one_that_keeps_failing_stops_no_other(
    sweep: Sweep,
) -> None:
    pool = Acted(plain=[BROKEN], repa=[BROKEN] * 9)
    schedule = Schedule(sweep, pool, lambda: False)
    assert schedule.work_through()
    assert [order.name for order in pool.orders].count("plain") == 2
    assert [order.name for order in pool.orders].count("repa") == 3
    assert [order.name for order in pool.orders].count("deep") == 1
    assert pool.most == 2
    (failure,) = schedule.failures.values()
    assert (failure.run.name, failure.error) == ("repa", "it is broken\nand more")
    assert summarise(sweep, schedule.failures).runs[1].state == "failed"


def test_when_asked_to_stop_nothing_more_is_begun(sweep: Sweep) -> None:
    pool = Acted()
    schedule = Schedule(sweep, pool, lambda: bool(pool.orders))
    assert not schedule.work_through()
    assert [order.name for order in pool.orders] == ["plain", "repa"]
    assert schedule.failures == {}


def test_a_process_is_told_all_that_it_needs(sweep: Sweep, tmp_path: Path) -> None:
    pool = Acted()
    Schedule(sweep, pool, lambda: False).work_through()
    order = pool.orders[-1]
    assert (order.name, order.place) == ("deep", tmp_path)
    assert order.work.steps == (4,)
    assert "train.align.0.depth=3" in order.work.overrides
    assert 'train.run="runs/sweep/deep"' in order.work.overrides


def test_what_was_judged_is_not_judged_again_unless_otherwise(sweep: Sweep, built: Path) -> None:
    run = sweep.runs[0]
    run.folder.mkdir(parents=True)
    judgement = Judgement(judging(run)).with_step(2, is_lost=False)
    judgement.write(run.folder)
    assert lacking_steps(run, [2, 4]) == [4]
    judgement.with_step(4, is_lost=True).write(run.folder)
    assert lacking_steps(run, [2, 4]) == []
    more = sweep_of(sweep.path.parent, built, THREE, "judge.images = 5")
    assert lacking_steps(more.runs[0], [2, 4]) == [2, 4]
    (run.folder / "judged.json").write_text("torn")
    assert lacking_steps(run, [2, 4]) == [2, 4]


@pytest.mark.parametrize(
    ("keep", "ending"),
    [(0.5, {"c", "d", "e"} - {"c"}), (0.2, {"b", "c", "d", "e"}), (0.99, set())],
)
def test_the_part_that_goes_on_is_rounded_up(keep: float, ending: set[str]) -> None:
    scores = {"e": math.nan, "a": 1.0, "d": 4.0, "b": 2.0, "c": 3.0}
    assert worse_ones(scores, keep, "fid") == ending


def test_of_some_metrics_the_larger_values_are_better() -> None:
    assert worse_ones({"a": 1.0, "b": 2.0}, 0.5, "is") == {"a"}
    assert worse_ones({"a": math.nan, "b": 2.0}, 0.5, "is") == {"a"}


def judge(sweep: Sweep, name: str, step: int, value: float) -> None:
    """Have a run look as if it was trained and measured up to a step."""
    run = next(run for run in sweep.runs if run.name == name)
    update = {"run": run.folder, "steps": step, "checkpoint_every": step}
    train = run.config.train.model_copy(update=update)
    trained(run.config.model_copy(update={"train": train}))
    folder = samples_path(run.folder, step_name(step))
    folder.mkdir(parents=True)
    result = Result(METRIC, value, None, run.config.sample.images, "ref", 21)
    write_results(folder, [result], {"checkpoint": step_name(step)}, {})
    steps = tuple(one for one in sweep.judged_steps(run) if one <= step)
    Judgement(judging(run), steps).write(run.folder)


def test_groups_are_halved_by_the_mean_of_their_seeds(tmp_path: Path, built: Path) -> None:
    early = "[early_stop]\nenabled = true\nsteps = [1]"
    sweep = sweep_of(tmp_path, built, THREE, "grid.train.seed = [0, 1]", early)
    assert sweep.judged_steps(sweep.runs[0]) == [1, 4]
    values = {"plain": (1, 9), "repa": (2, 4), "deep": (3, 6)}
    stages = halvings(sweep)
    until, runs = next(stages)
    assert (until, len(runs)) == (1, 6)
    for name, (first, second) in values.items():
        judge(sweep, name, 1, first)
        judge(sweep, f"{name}.seed-1", 1, second)
    until, runs = next(stages)
    assert until is None
    assert [run.name for run in runs] == ["repa", "repa.seed-1", "deep", "deep.seed-1"]
    # What has gone on before is not ended by what came later.
    judge(sweep, "plain", 2, 1)
    *_, (_, runs) = halvings(sweep)
    assert "plain" in [run.name for run in runs]


def test_means_spreads_table_and_page(tmp_path: Path, built: Path) -> None:
    sweep = sweep_of(tmp_path, built, THREE, "grid.train.seed = [0, 1]", "judge.steps = [2]")
    judge(sweep, "plain", 4, 3.0)
    judge(sweep, "repa", 4, 1.0)
    judge(sweep, "repa.seed-1", 4, 2.0)
    judge(sweep, "deep", 2, 9.0)
    summary = summarise(sweep, ["deep.seed-1"])
    plain, repa, deep = summary.groups
    found = repa.spread(METRIC, 4)
    assert found is not None
    assert (found.mean, found.count) == (1.5, 2)
    assert found.shown == "1.5 ± 0.71"
    assert plain.state == "1 done, 1 not begun"
    assert deep.state == "1 at step 2 of 4, 1 failed"
    assert summary.varied == ["train.align", "train.align.0.depth"]
    assert summary.gridded == []
    assert summary.own(plain) == ["train.align = none"]
    assert (summary.own(repa), summary.own(deep)) == ([], ["train.align.0.depth = 3"])
    write_csv(summary, csv_path(sweep))
    lines = list(csv.DictReader(csv_path(sweep).read_text().splitlines()))
    assert len(lines) == 6
    by_name = {line["run"]: line for line in lines}
    assert by_name["repa.seed-1"][METRIC] == "2.0"
    assert by_name["repa.seed-1"]["images"] == "16"
    assert by_name["plain"]["train.align"] == "none"
    assert by_name["plain.seed-1"]["step"] == "0"
    page = write_sweep_page(summary, []).read_text()
    for text in ("1.5 ± 0.71", "plain.seed-1", "over hours", "features/efficientnet-lite0"):
        assert text in page


def test_hours_are_those_of_the_logged_steps(sweep: Sweep) -> None:
    judge(sweep, "plain", 4, 1.0)
    record = read_run(sweep.runs[0].folder)
    assert trained_step(sweep.runs[0].folder) == logged_step(sweep.runs[0].folder) == 4
    lines = [{"step": s, "steps_per_second": v} for s, v in ((2, 1.0), (4, 0.5))]
    record = replace(record, log=lines)
    assert [3600 * hours_at(record, step) for step in (1, 2, 3, 4, 6)] == pytest.approx(
        [1, 2, 4, 6, 10]
    )
    assert spread([]) is None
    assert spread([math.nan, 2.0]) == spread([2.0])


def test_the_time_that_a_cache_saves_is_the_measured_one_of_what_was_read(sweep: Sweep) -> None:
    config = sweep.config
    name = f"features/{ENCODER}"
    (kept,) = read_group(config.cache.path / name)["build_times"]
    assert (kept["device"], kept["images"]) == ("cpu", 21)
    assert kept["seconds"] > 0
    read = read_by(config, 10)
    assert [(one.name, one.images) for one in read.columns] == [
        ("latents/tiny-vae", 40),
        (name, 40),
    ]
    assert read.columns[1].bytes == 40 * 16 * 112 * 2
    assert read.saved_seconds == pytest.approx(40 * kept["seconds"] / 21)
    term = config.train.align[0].model_copy(update={"until": 3})
    train = config.train.model_copy(update={"align": (term,)})
    ended = read_by(config.model_copy(update={"train": train}), 10)
    assert [one.images for one in ended.columns] == [40, 12]
    saved = savings(config, [read, ended])
    assert saved.build_seconds == pytest.approx(kept["seconds"])
    assert saved.online_seconds == pytest.approx(52 * kept["seconds"] / 21)
    assert saved.devices == ("cpu",)


def test_a_cache_without_measured_times_says_so(sweep: Sweep, tmp_path: Path) -> None:
    path = shutil.copytree(sweep.config.cache.path, tmp_path / "old.zarr")
    update_group(path / f"features/{ENCODER}", {"build_times": []})
    cache = sweep.config.cache.model_copy(update={"path": path})
    config = sweep.config.model_copy(update={"cache": cache})
    saved = savings(config, [read_by(config, 10)])
    assert saved.unmeasured == (f"features/{ENCODER}",)
    assert list(savings_lines(saved)) == [
        f"Not known of features/{ENCODER}: made by an earlier version, or by a build that was "
        "killed."
    ]
    assert "It has not paid yet" in "".join(savings_lines(Savings(1.0, 2.0, (), ("cpu",))))


def test_a_sweep_is_planned_with_the_columns_of_all_its_runs(tmp_path: Path, built: Path) -> None:
    path = write_sweep(tmp_path, built, THREE, "set.train.steps = 400000")
    shown = CliRunner().invoke(app, ["plan", "--sweep", str(path)])
    assert shown.exit_code == 0, shown.output
    for text in ("3 runs on", "features/efficientnet-lite0/tokens", "deep", "saved, encoding"):
        assert text in shown.output
    again = CliRunner().invoke(app, ["sweep", str(path), "--plan"])
    # Others use the disk as well.
    free = re.compile(r"fits +[\d.]+ \wB")
    texts = [free.sub("", one.output) for one in (again, shown)]
    assert texts[0] == texts[1]
    told = CliRunner().invoke(app, ["plan", "--sweep", str(path), "--json", "--images", "1000"])
    assert '"saved_seconds"' in told.output
    refused = CliRunner().invoke(app, ["plan", "--sweep", str(path), "--set", "train.steps=2"])
    assert refused.exit_code == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["sweep.toml"]
