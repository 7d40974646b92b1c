"""What runs have come to, read from their folders alone."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from pipeline.commands import app
from pipeline.config import Config
from pipeline.report.compared_runs import (
    NOT_READ,
    NOT_SET,
    columns_read,
    different_settings,
    judged_samples,
    metric_panels,
    reasons_against_comparing,
)
from pipeline.report.curves import LEVEL_COLOURS, POINTS, thinned
from pipeline.report.grid_pictures import MOST, PICTURES, SIDE, evenly, nearest_steps, strips
from pipeline.report.records import ReportError, read_run
from pipeline.report.report_page import facts_of, page_path, write_own_report, write_report
from stages.evaluate.results import Result, write_results
from stages.sample.samples import MANIFEST
from stages.train.log import log_path
from stages.train.meter import BUCKETS
from stages.weights.checkpoint import latest
from stages.weights.run_folder import config_path, grid_path, samples_path, step_name

DRAWN = {"checkpoint_sha256": "0", "solver": "heun", "steps": 10, "guidance": 1.5}


@pytest.fixture
def three(runs: Path, trainable: Callable[..., Config], tmp_path: Path) -> Path:
    """Copies of the runs sit, plain and dit with their configurations."""
    folder = tmp_path / "three"
    for name, *settings in (
        ("sit",),
        ("plain", "train.align=[]"),
        ("dit", "train.model=DiT-XS/2"),
    ):
        shutil.copytree(runs / name, folder / name)
        config = trainable(f"train.run={folder / name}", "train.steps=2", *settings)
        config_path(folder / name).write_text(json.dumps(config.model_dump(mode="json")))
    return folder


def draw_grids(run: Path, steps: tuple[int, ...], side: int = 64) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8)
    for step in steps:
        grid_path(run, step).parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(grid_path(run, step))


def judge(run: Path, step: int, value: float, title: str = "", **drawn: Any) -> None:
    folder = samples_path(run, title or step_name(step))
    folder.mkdir(parents=True)
    result = Result("fid", value, None, 6, "ref", 21, remarks=("too few samples",))
    write_results(folder, [result], {**DRAWN, "checkpoint": step_name(step), **drawn}, {})


def edit_config(run: Path, **sections: dict[str, Any]) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(config_path(run).read_text())
    for name, values in sections.items():
        config[name] |= values
    config_path(run).write_text(json.dumps(config))
    return config


def page_of(*runs: Path, out: Path) -> str:
    write_report(runs, out)
    page = out.read_text()
    assert "http" not in page
    assert re.findall('src="(?!data:image/)', page) == []
    return page


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_page_of_one_run_needs_nothing_but_its_folder(three: Path, tmp_path: Path) -> None:
    draw_grids(three / "sit", (1, 2))
    judge(three / "sit", 1, 50.0)
    judge(three / "sit", 2, 40.0)
    alone = tmp_path / "elsewhere"
    shutil.move(three / "sit", alone)
    page = page_of(alone, out=tmp_path / "page.html")
    for said in (
        "<h1>elsewhere</h1>",
        "SiT-XS/2, 1.3 M parameters, 32 px, aligned with efficientnet-lite0 (repa) at block 2",
        "0.381 epochs",
        "denoising by level of noise",
        "alignment/efficientnet-lite0",
        'data-step="2"',
        "fid \N{DOWNWARDS ARROW}",
        "too few samples",
        "solver heun, steps 10, guidance 1.5",
        json.loads((latest(alone).folder / "state.json").read_text())["rows"]["fingerprint"],
    ):
        assert said in page, said
    assert page.count("<svg") == 2 * 2 + 4 + 1
    assert page.count('src="data:image/') == 2


def test_several_runs_stand_side_by_side(three: Path, tmp_path: Path) -> None:
    draw_grids(three / "sit", (1, 2))
    draw_grids(three / "dit", (2,))
    names = ("sit", "plain", "dit")
    page = page_of(*(three / name for name in names), out=tmp_path / "page.html")
    for number, name in enumerate(names):
        assert f'id="show-run-{number}" checked' in page
        assert f"{name}: config.json" in page
    assert "Losses of these runs mean different things" in page
    assert "train.model (SiT or DiT)" in page
    assert "not read" in page
    # Three losses, four levels of each, and four panels of the machine.
    assert page.count("<svg") == 3 + 3 * BUCKETS + 4
    assert page.count("data-step=") == 3


def test_only_settings_that_differ_are_compared(three: Path) -> None:
    records = [read_run(three / name) for name in ("sit", "plain", "dit")]
    assert different_settings(records) == {
        "train.model": ["SiT-XS/2", "SiT-XS/2", "DiT-XS/2"],
        "train.align.0.kind": ["repa", NOT_SET, "repa"],
        "train.align.0.encoder": ["efficientnet-lite0", NOT_SET, "efficientnet-lite0"],
    }
    assert different_settings(records[:1]) == {}
    assert reasons_against_comparing(records[:2]) == []
    assert reasons_against_comparing(records) == ["train.model (SiT or DiT)"]


def test_a_setting_that_a_run_does_not_have_is_a_difference(three: Path) -> None:
    config = edit_config(three / "dit")
    config["train"]["align"][0]["until"] = 7
    del config["encoders"]["efficientnet-lite0"]["storage"]
    config_path(three / "dit").write_text(json.dumps(config))
    differing = different_settings([read_run(three / "sit"), read_run(three / "dit")])
    assert differing["encoders.efficientnet-lite0.storage"] == ["float16", NOT_SET]
    assert differing["train.align.0.until"] == [None, 7]


def test_what_a_run_does_not_read_is_no_difference(three: Path) -> None:
    unread = {
        "encoders": {"other": {"storage": "int8"}},
        "dataset": {"path": "/elsewhere", "source": "zip"},
        "sample": {"guidance": 4.0},
        "evaluate": {"batch_size": 7},
        "build": {"threads": 3},
    }
    edit_config(three / "sit", **unread)
    config = edit_config(three / "sit")
    config["train"]["align"][0] |= {"depth": 3, "weight": 0.1}
    config_path(three / "sit").write_text(json.dumps(config))
    differing = different_settings([read_run(three / name) for name in ("sit", "plain", "dit")])
    entry = {f"train.align.0.{key}" for key in ("kind", "encoder", "depth", "weight")}
    assert differing.keys() == {"train.model", *entry}
    assert differing["train.align.0.depth"] == [3, NOT_READ, 2]
    edit_config(three / "sit", train={"grid_every": 1}, dataset={"flip": True})
    edit_config(three / "dit", train={"grid_every": 1})
    differing = different_settings([read_run(three / name) for name in ("sit", "plain", "dit")])
    assert differing["sample.guidance"] == [4.0, NOT_READ, 1.0]
    assert differing["dataset.flip"] == [True, False, False]


def test_samples_that_were_drawn_otherwise_than_configured_are_marked(
    three: Path, tmp_path: Path
) -> None:
    draw_grids(three / "sit", (2,))
    usual = json.loads(config_path(three / "sit").read_text())["sample"]
    for title, changed in (("step-00000001", {}), ("step-00000001-model", {"guidance": 4.0})):
        folder = samples_path(three / "sit", title)
        folder.mkdir(parents=True)
        shutil.copy(grid_path(three / "sit", 2), folder.with_suffix(".png"))
        drawn = {**usual, "solver": "heun", "checkpoint": "step-00000001", **changed}
        (folder / MANIFEST).write_text(json.dumps(drawn))
    page = page_of(three / "sit", out=tmp_path / "page.html")
    assert page.count("drawn otherwise") == 1
    assert "guidance 4.0" in page
    edit_config(three / "dit", sample={"seed": 3})
    draw_grids(three / "dit", (2,))
    page = page_of(three / "sit", three / "dit", out=tmp_path / "page.html")
    assert page.count("drawn otherwise") == 2
    assert "seed 3" in page


def test_other_versions_of_a_cached_column_are_marked(three: Path, tmp_path: Path) -> None:
    newest = latest(three / "dit")
    assert newest is not None
    state = newest.state
    state["columns"]["features/efficientnet-lite0"] = "f" * 64
    (newest.folder / "state.json").write_text(json.dumps(state))
    rows = columns_read([read_run(three / name) for name in ("sit", "plain", "dit")])
    assert {row.name: row.is_of_versions for row in rows} == {
        "latents/tiny-vae": False,
        "features/efficientnet-lite0": True,
        "rows (fingerprint)": False,
        "rows (valid)": False,
    }
    page = page_of(three / "sit", three / "dit", out=tmp_path / "page.html")
    assert page.count("different versions") == 1
    assert f'title="{"f" * 64}">{"f" * 12}<' in page


def test_a_run_that_has_just_begun_has_a_page(three: Path, tmp_path: Path) -> None:
    run = tmp_path / "begun"
    run.mkdir()
    shutil.copy(config_path(three / "sit"), config_path(run))
    page = page_of(run, out=tmp_path / "page.html")
    assert "Nothing has been logged yet" in page
    assert "known from the first checkpoint on" in page
    shutil.copy(log_path(three / "sit"), log_path(run))
    assert "Nothing has been logged yet" not in page_of(run, out=tmp_path / "page.html")


def test_a_run_that_was_killed_while_it_wrote_a_line_has_a_page(
    three: Path, tmp_path: Path
) -> None:
    path = log_path(three / "dit")
    shutil.rmtree(three / "dit/checkpoints")
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + lines[1][:50])
    page = page_of(three / "dit", out=tmp_path / "page.html")
    assert "bound by level of noise" in page
    assert "<dd>1<small>of 2</small></dd>" in page
    assert "left</small>" in page


def test_runs_without_configuration_grids_or_metrics_have_a_page(
    runs: Path, tmp_path: Path
) -> None:
    page = page_of(runs / "plain", runs / "sit", out=tmp_path / "page.html")
    assert "aligned with no encoder" in page
    assert "Nothing that these runs read" in page
    assert "Samples by step" not in page
    assert "Metrics</h2>" not in page


def test_values_that_are_no_numbers_are_left_out(three: Path, tmp_path: Path) -> None:
    path = log_path(three / "sit")
    line = json.loads(path.read_text().splitlines()[-1])
    worse = {**line, "step": 3, "denoising": float("nan"), "gradient_norm": float("inf")}
    skipped = {"step": 4, "skipped": 1.0, "steps_per_second": 2.0}
    with path.open("a") as stream:
        stream.writelines(json.dumps(one) + "\n" for one in (worse, skipped))
    record = read_run(three / "sit")
    assert record.step == 4
    assert record.curve("denoising").steps == [1, 2]
    assert facts_of(record)["steps left out"].value == "1"
    page_of(three / "sit", out=tmp_path / "page.html")


def test_time_and_images_add_up(three: Path) -> None:
    speeds = {10: 2.0, 20: 4.0, 25: 1.0}
    lines = [{"step": step, "steps_per_second": speed} for step, speed in speeds.items()]
    log_path(three / "sit").write_text("".join(json.dumps(line) + "\n" for line in lines))
    record = read_run(three / "sit")
    assert record.seconds == 10 / 2 + 10 / 4 + 5 / 1
    assert (record.step, record.images, record.epochs) == (25, 100, 100 / 21)


def test_the_page_of_a_run_is_what_training_writes(built: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = ["--config", str(built / "pipeline.toml"), "--set", f"train.run={run}"]
    said = invoke("train", *settings, "--set", "train.grid_every=2")
    invoke("sample", *settings, "--set", "train.grid_every=2")
    written = page_path(run).read_bytes()
    (parameters,) = re.findall(r"\((.* M parameters)\)", said)
    assert f"SiT-XS/2, {parameters}, 32 px" in written.decode()
    page_path(run).unlink()
    assert invoke("report", *settings).startswith(f"{page_path(run)}: 1 run, 0.")
    assert page_path(run).read_bytes() == written
    elsewhere = tmp_path / "other/page.html"
    invoke("report", str(run), "--out", str(elsewhere))
    assert elsewhere.read_bytes() == written


@pytest.mark.slow
def test_a_report_of_runs_starts_without_torch_and_configuration(
    three: Path, tmp_path: Path
) -> None:
    code = (
        "import sys; from pipeline.commands import app; "
        "app(['report', *sys.argv[1:]], standalone_mode=False); "
        "assert not {'torch', 'zarr', 'diffusers'} & sys.modules.keys()"
    )
    runs = [str(three / name) for name in ("sit", "dit")]
    done = subprocess.run(
        [sys.executable, "-c", code, *runs],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("report.html: 2 runs")
    assert (tmp_path / "report.html").is_file()


def test_what_is_no_run_is_refused_with_advice(three: Path, tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="There is no folder"):
        read_run(tmp_path / "none")
    with pytest.raises(ReportError, match=r"neither config.json nor log.jsonl.*repa-cache train"):
        read_run(tmp_path)
    with pytest.raises(ReportError, match=r"holds runs: name them, as .*three/dit"):
        read_run(three)
    with pytest.raises(ReportError, match="at most 8"):
        write_report([tmp_path / str(number) for number in range(9)], None)
    config_path(three / "sit").write_text('{"train": ')
    with pytest.raises(ReportError, match="damaged"):
        read_run(three / "sit")


def test_a_run_that_is_named_twice_is_shown_once(three: Path, tmp_path: Path) -> None:
    twice = [three / "sit", three / "plain" / ".." / "sit"]
    assert write_report(twice, tmp_path / "page.html") == (tmp_path / "page.html", 1)


def test_runs_of_one_name_are_told_apart_by_their_paths(three: Path, tmp_path: Path) -> None:
    shutil.copytree(three / "plain", tmp_path / "other/sit")
    page = page_of(three / "sit", tmp_path / "other/sit", out=tmp_path / "page.html")
    assert f"<b>{tmp_path / 'other/sit'}</b>" in page


def test_names_are_escaped(three: Path, tmp_path: Path) -> None:
    bad = three / "<script>alert(1)<"
    (three / "sit").rename(bad)
    judge(bad, 1, 1.0, title="<img src=x>")
    page = page_of(bad, three / "plain", out=tmp_path / "page.html")
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert "&lt;script&gt;alert(1)&lt;" in page


def test_numbers_of_other_settings_have_another_letter(three: Path) -> None:
    run = three / "sit"
    judge(run, 1, 50.0)
    judge(run, 2, 40.0)
    judge(run, 2, 45.0, title=f"{step_name(2)}-model")
    judge(three / "dit", 2, 30.0, guidance=4.0)
    judged, groups = judged_samples([read_run(run), read_run(three / "dit")])
    assert [one.group for one in judged] == ["A", "A", "B", "C"]
    assert "weights ema" in groups["A"]
    assert "weights model" in groups["B"]
    assert "guidance 4.0" in groups["C"]
    # Only one line of A has two steps.
    (panel,) = metric_panels(judged)
    assert panel.picture.count('class="run-') == 1
    assert panel.caption == ""


def test_all_that_was_measured_of_samples_is_shown_and_told_apart(
    three: Path, tmp_path: Path
) -> None:
    run, folder = three / "sit", samples_path(three / "sit", step_name(2))
    judge(run, 2, 40.0)
    drawn = {**DRAWN, "checkpoint": step_name(2)}
    fid = read_run(run).samples[-1].results[0]
    for other in (
        replace(fid, metric="fd_dinov2-vit-b", value=5.0, network="1" * 64),
        replace(fid, value=41.0, reference="other"),
        replace(fid, value=42.0, images=9),
        replace(fid, value=43.0, reference_images=10),
        # The same weights, with images of another size.
        replace(fid, metric="fd_dinov2-vit-b", value=6.0, network="2" * 64, floor=1.5),
    ):
        write_results(folder, [other], drawn, {})
    write_results(folder, [replace(fid, value=44.0)], {**drawn, "guidance": 4.0}, {})
    judged, groups = judged_samples([read_run(run)])
    rows = [{name: one.value for name, one in row.results.items()} for row in judged]
    assert rows == [
        {"fid": 44.0},
        {"fid": 40.0, "fd_dinov2-vit-b": 5.0},
        {"fid": 41.0},
        {"fid": 42.0},
        {"fid": 43.0, "fd_dinov2-vit-b": 6.0},
    ]
    assert len(groups) == len({row.group for row in judged}) == 5
    words = ("guidance 4.0", "by network 11111111", "of other", "9 images", "against 10 images of")
    for row, said in zip(judged, words, strict=True):
        assert said in groups[row.group]
    page = page_of(run, out=tmp_path / "page.html")
    for value in ("44", "40", "5", "41", "42", "43"):
        assert f'<td class="number">{value}</td>' in page
    assert '<td class="number">6 <span class="faint">(1.5)</span></td>' in page
    assert "in brackets the floor" in page


def test_results_of_images_that_were_replaced_are_not_taken_for_those_of_today(three: Path) -> None:
    run, folder = three / "sit", samples_path(three / "sit", step_name(2))
    judge(run, 2, 40.0)
    manifest = {**DRAWN, "checkpoint": step_name(2), "guidance": 4.0, "images": 6}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    today, before = read_run(run).samples
    assert (today.drawn["guidance"], today.results) == (4.0, [])
    assert (before.drawn["guidance"], before.results[0].value) == (1.5, 40.0)


def test_samples_are_part_of_the_strip_and_others_stand_below(three: Path, tmp_path: Path) -> None:
    run = three / "sit"
    draw_grids(run, (1,))
    for title in (step_name(1), step_name(2), f"{step_name(2)}-model"):
        judge(run, int(title[5:13]), 1.0, title=title)
        shutil.copy(grid_path(run, 1), samples_path(run, f"{title}.png"))
    page = page_of(run, out=tmp_path / "page.html")
    assert page.count("data-step=") == 2
    assert page.count('src="data:image/png') == 3
    assert "samples of sit: step-00000002-model" in page


def test_pictures_are_few_and_small_enough(three: Path, tmp_path: Path) -> None:
    draw_grids(three / "sit", tuple(range(1, 101)), side=1)
    draw_grids(three / "plain", (50,), side=SIDE + 200)
    frames, single = strips([read_run(three / "sit"), read_run(three / "plain")])
    assert len(frames) == MOST <= PICTURES // 2
    assert (frames[0].step, frames[-1].step) == (1, 100)
    assert all(frame.picture.is_exact for frame in frames)
    assert (single[0].picture.width, single[0].picture.height) == (SIDE, SIDE)
    assert not single[0].picture.is_exact
    page = page_of(three / "plain", three / "sit", out=tmp_path / "page.html")
    assert "data:image/webp" in page
    assert "compressed" in page


def test_steps_are_chosen_evenly_and_matched_between_runs() -> None:
    assert evenly([1, 2, 3], 5) == [1, 2, 3]
    assert evenly(list(range(0, 101, 10)), 3) == [0, 50, 100]
    there = {step: Path() for step in (10, 48, 52, 90)}
    assert nearest_steps([0, 50, 100], there) == [10, 48, 90]
    assert nearest_steps([5], {}) == []


def test_thinned_curves_keep_their_ends_and_spikes() -> None:
    steps = list(range(10_000))
    values = np.random.default_rng(0).normal(size=10_000)
    values[1234] = 50
    x, y = thinned(steps, values.tolist())
    assert len(x) <= POINTS
    assert (x[0], x[-1]) == (0, 9_999)
    assert y[x == 1234] == [50]
    assert y.min() == values.min()
    short = thinned([1, 2], [3.0, 4.0])
    assert [list(part) for part in short] == [[1, 2], [3.0, 4.0]]


def test_every_level_of_noise_has_its_colour() -> None:
    assert len(set(LEVEL_COLOURS)) == BUCKETS


def test_the_picture_of_a_run_shows_every_loss(three: Path) -> None:
    write_own_report(three / "dit")
    with Image.open(three / "dit/curves.png") as picture:
        assert picture.width == 3 * 4.5 * 150


@pytest.mark.slow
def test_a_browser_shows_one_run_and_three(three: Path, tmp_path: Path) -> None:
    from browser import WIDE, assert_fine, look_at

    names = ("sit", "plain", "dit")
    for name in names:
        draw_grids(three / name, (1, 2), side=320)
        judge(three / name, 1, 5.0)
        judge(three / name, 2, 4.0)
        path = f"/data/of/a/rather/long/name/{name}/of/weights/and/images"
        edit_config(three / name, cache={"path": path}, train={"init_from": path})
    page_of(three / "sit", out=tmp_path / "one.html")
    page_of(*(three / name for name in names), out=tmp_path / "three.html")
    for page in ("one.html", "three.html"):
        assert_fine(tmp_path / page)
    assert look_at(tmp_path / "three.html", width=WIDE).scrolled == []
