"""What a sweep.toml says: runs and their names, and what is refused before anything is written."""

from pathlib import Path

import pytest
from sweeps import ENCODER, TERM, THREE, sweep_of, write_sweep
from typer.testing import CliRunner

from pipeline.commands import app
from pipeline.exits import ConfigError
from pipeline.sweep.sweep_file import Sweep, load_sweep
from pipeline.sweep.variations import dotted, run_name


def names(sweep: Sweep) -> list[str]:
    return [run.name for run in sweep.runs]


def test_every_variation_goes_with_every_point_of_the_grid(tmp_path: Path, built: Path) -> None:
    sweep = sweep_of(tmp_path, built, THREE, "grid.train.seed = [0, 1]", "grid.train.steps = [4]")
    assert names(sweep) == ["plain", "plain.seed-1", "repa", "repa.seed-1", "deep", "deep.seed-1"]
    assert [run.group for run in sweep.runs] == ["plain"] * 2 + ["repa"] * 2 + ["deep"] * 2
    assert [run.seed for run in sweep.runs] == [0, 1] * 3
    plain, *_, deep = sweep.runs
    assert plain.config.train.align == ()
    assert deep.config.train.align[0].depths == (3,)
    assert plain.config.train.checkpoint_every == 2
    assert plain.folder == tmp_path / "runs/sweep/plain"


def test_names_tell_what_differs_from_the_base_and_stay_when_runs_are_added(
    tmp_path: Path, built: Path
) -> None:
    few = sweep_of(tmp_path, built, "grid.train.learning_rate = [1e-3, 2e-3]")
    assert names(few) == ["base", "learning_rate-0.002"]
    more = sweep_of(
        tmp_path,
        built,
        "grid.train.learning_rate = [1e-3, 5e-4, 2e-3]",
        f"grid.train.align = [[{TERM}], [], [{TERM.replace('depth = 2', 'depth = 3')}]]",
    )
    assert set(names(few)) < set(names(more))
    assert "learning_rate-0.0005.plain" in names(more)
    assert f"repa-{ENCODER}-depth-3-projector_width-32" in names(more)
    by_name = {run.name: run for run in more.runs}
    for run in few.runs:
        assert by_name[run.name].config == run.config


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"train.model": "SiT-B/2"}, "model-SiT-B-2"),
        ({"train.align.0.weight": 0.5, "train.align.1.weight": 0.1}, "weight-0.5.weight-1-0.1"),
        ({"train.qk_norm": True}, "qk_norm-true"),
        ({"sample.guidance": 1.5}, "sample.guidance-1.5"),
        ({"train.init_from": "../weights/a b.pt"}, "init_from-weights-a-b.pt"),
    ],
)
def test_names_are_short_and_safe(changed: dict[str, object], name: str) -> None:
    assert run_name(None, changed, frozenset()).replace("..-", "") == name


def test_a_name_that_is_too_long_is_cut_and_stays_one_of_its_own() -> None:
    terms = [[{"kind": "repa", "encoder": "x" * 60, "depth": depth}] for depth in (1, 2)]
    first, second = (run_name(None, {"train.align": one}, frozenset()) for one in terms)
    assert len(first) == 64
    assert first != second


def test_settings_are_written_with_quotes_or_without() -> None:
    nested = {"train": {"seed": [0], "align": {"0": {"depth": 3}}}, "encoders": {"a.b": {"x": 1}}}
    assert dotted(nested) == {
        "train.seed": [0],
        "train.align.0.depth": 3,
        'encoders."a.b".x': 1,
    }
    assert dotted({"train.seed": [0]}) == {"train.seed": [0]}


def test_paths_are_relative_to_the_file(
    tmp_path: Path, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(built)
    sweep = sweep_of(tmp_path, built, 'grid.train.init_from = ["a.pt"]', 'folder = "there"')
    assert sweep.runs[0].config.train.init_from == tmp_path / "a.pt"
    assert sweep.runs[0].folder == tmp_path / "there/init_from-a.pt"


def test_columns_of_all_runs_are_built_together(tmp_path: Path, built: Path) -> None:
    sweep = sweep_of(
        tmp_path,
        built,
        '[[variations]]\nset.encoders.other = {model = "efficientnet-lite0", input_size = 64}',
        f"set.train.align = [{TERM.replace(ENCODER, 'other')}]",
        '[[variations]]\nname = "repa"',
    )
    assert set(sweep.config.encoders) == {ENCODER, "other"}


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (["grid.train.seed = 3"], "grid.train.seed: expected a list of values, got 3"),
        (["grid.train.depht = [3]"], "train.depht: unknown key"),
        (["grids.train.seed = [3]"], "grids: unknown key; did you mean 'grid'?"),
        (["grid.train.seed = [0, -1]"], "greater than or equal to 0"),
        (["grid.train.seed = [2026-01-01]"], "a date or time"),
        (['grid.cache.path = ["a", "b"]'], "cache.path: all runs of a sweep are on one cache"),
        (['grid.train.run = ["a"]'], "train.run: runs have folders of their own"),
        (["grid.sample.seed = [0, 1]"], "sample.seed: samples are compared by the same noises"),
        ([f"grid.encoders.{ENCODER}.input_size = [64, 96]"], "has one column of a name"),
        (["variations = [{name = 'a/b'}]"], "variations.0.name"),
        (["variations = [{name = 'a'}, {name = 'A'}]"], "several runs would be called"),
        (["variations = [{name = 'a'}, {name = 'b'}]"], "a and b have the same settings"),
        (["grid.train.seed = [0]", THREE, "grid.train.model = ['SiT-Q/2']"], "'SiT-Q/2'"),
        (
            ["variations = [{set.train.seed = 1}]", "grid.train.seed = [0]"],
            "train.seed: varied by the grid and by a variation",
        ),
        (["judge.steps = [5]"], "judge.steps: 5, but the longest run has 4"),
        (["early_stop.enabled = true"], "early_stop.steps: none comes before the last step"),
        (
            ["early_stop = {enabled = true, steps = [2], metric = 'fod'}"],
            f"'fod' is not measured; choose from fd_{ENCODER}",
        ),
        (["judge.metrics = ['fib']"], "unknown name 'fib'; did you mean 'fid'?"),
        (["base = 3"], "not valid TOML"),
    ],
)
def test_a_file_that_does_not_do_is_refused_before_anything_is_written(
    tmp_path: Path, built: Path, parts: list[str], message: str
) -> None:
    path = write_sweep(tmp_path, built, *parts)
    with pytest.raises(ConfigError) as caught:
        load_sweep(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    shown = CliRunner().invoke(app, ["sweep", str(path)])
    assert shown.exit_code == 1
    assert "Traceback" not in shown.output
    assert [entry.name for entry in tmp_path.iterdir()] == ["sweep.toml"]


def test_all_mistakes_are_told_at_once_with_the_runs_that_have_them(
    tmp_path: Path, built: Path
) -> None:
    path = write_sweep(
        tmp_path,
        built,
        THREE,
        'grid.train.model = ["SiT-XS/2", "SiT-Q/2"]',
        "grid.train.batch_size = [4, 0]",
    )
    with pytest.raises(ConfigError) as caught:
        load_sweep(path)
    assert "plain, repa and 1 more: train.model" in str(caught.value)
    assert "SiT-Q/2" in str(caught.value)
    assert "train.batch_size" in str(caught.value)


def test_a_file_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"There is no .*none\.toml.*init --sweep"):
        load_sweep(tmp_path / "none.toml")


def test_a_dry_run_lists_runs_and_writes_nothing(tmp_path: Path, built: Path) -> None:
    path = write_sweep(tmp_path, built, THREE, "grid.train.seed = [0, 1]", "judge.steps = [2]")
    shown = CliRunner().invoke(app, ["sweep", str(path), "--dry-run"])
    assert shown.exit_code == 0, shown.output
    assert "deep.seed-1" in shown.output
    assert "6 runs in" in shown.output
    assert f"at step 2, 4; measured: fd_{ENCODER}" in shown.output
    assert [entry.name for entry in tmp_path.iterdir()] == ["sweep.toml"]


def test_the_example_is_a_sweep_over_any_preset_with_an_alignment(
    tmp_path: Path, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.toml").write_text((built / "pipeline.toml").read_text())
    (tmp_path / "images").mkdir()
    shown = CliRunner().invoke(app, ["init", "--sweep", "--config", "tiny.toml"])
    assert shown.exit_code == 0, shown.output
    sweep = load_sweep(tmp_path / "sweep.toml")
    assert [*dict.fromkeys(run.group for run in sweep.runs)] == ["plain", "repa", "repa-weak"]
    assert CliRunner().invoke(app, ["init", "--sweep"]).exit_code == 1


def test_a_preset_has_the_sweep_that_it_is_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cifar10" / "train").mkdir(parents=True)
    (tmp_path / "saliency-vit-s.safetensors").touch()
    for more in ((), ("--sweep",)):
        shown = CliRunner().invoke(app, ["init", "--preset", "cifar10-methods", *more])
        assert shown.exit_code == 0, shown.output
    sweep = load_sweep(tmp_path / "sweep.toml")
    names = ["none", "repa", "irepa", "reg"]
    assert [run.name for run in sweep.runs] == [
        name + seed for name in names for seed in ("", ".seed-1")
    ]
    assert {run.judge.analyses for run in sweep.runs} == {("losses", "probe", "cknna")}
    unknown = CliRunner().invoke(app, ["init", "--preset", "cifar", "--sweep"])
    assert "did you mean 'cifar10-methods'?" in unknown.output
