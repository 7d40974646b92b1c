import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from marking import few_fast
from tiny_cache import ARRAYS, content
from typer.testing import CliRunner

from cache.layout import Column
from cache.sizes import shards_size
from pipeline.commands import app
from pipeline.commands.init import PRESETS
from pipeline.config import Config, load_config
from pipeline.plan.advice import advice
from pipeline.plan.durations import DECODING_SECONDS, BuildTime, feeding
from pipeline.plan.gains import Gains, find_gains
from pipeline.plan.gpu_memory import USABLE
from pipeline.plan.outline import Plan, make_plan
from pipeline.plan.plan_views import exported
from pipeline.plan.reading_speed import GPU_FLOPS, measure_reading
from stages.encode.build import build

CPU = torch.device("cpu")
RUNNER = CliRunner()
PRESET_NAMES = sorted(PRESETS)
# What takes seconds each, as networks of a billion parameters do even without values.
SLOW_PRESETS = {
    "imagenet256-sit-b2",
    "imagenet256-dit-xl2",
    "imagenet256-lightningdit-xl1-vavae",
    "imagenet256-lightningdit-xl2",
    "imagenet256-redi-xl2",
    "imagenet256-sit-xl2-e2e-sdvae",
    "imagenet256-reg-xl2",
    "imagenet256-sit-l2-encoders",
    "imagenet256-sr-dit-b2",
    "imagenet512-sit-xl2",
}
AS_REPA = {"imagenet256-sit-xl2", "imagenet256-sit-xl2-irepa", "imagenet256-dit-xl2"}
IMAGENET = 1_281_167
OFFLINE = "socket.socket.connect"


def invoke(*arguments: str, status: int = 0) -> str:
    result = RUNNER.invoke(app, arguments)
    assert result.exit_code == status, result.output
    return result.output


@pytest.fixture
def folder(tiny: Callable[..., Config], images: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of somebody with the tiny pipeline.toml."""
    tiny()
    monkeypatch.chdir(images.parent)
    return images.parent


def preset(name: str, *overrides: str) -> Config:
    return load_config(Path(str(PRESETS[name])), overrides, needs=())


def sizes_of(cache: Path) -> list[int]:
    return [path.stat().st_size for path in cache.rglob("*") if path.is_file()]


def test_sizes_of_many_shards_are_the_sum_of_those_of_each() -> None:
    column = Column("features/x", Path(), ARRAYS, {}, rows=21, rows_per_shard=8)
    for array in (*ARRAYS, column.crc32c):
        one_by_one = sum(column.shard_bytes(array, shard) for shard in range(column.shards))
        assert shards_size(column, array, 21, 3).bytes == one_by_one


def test_bytes_and_files_are_those_that_a_build_writes(trainable: Callable[..., Config]) -> None:
    config = trainable()
    written = sizes_of(config.cache.path)
    before = make_plan(config.model_copy(update={"cache": _elsewhere(config)}), None, 1).space
    assert before.whole.bytes == pytest.approx(sum(written), rel=0.01)
    assert before.whole.files == len(written)
    assert before.missing == before.whole
    after = make_plan(config, None, 1).space
    # Each column says what the build took, in less than two hundred bytes.
    assert 0 <= sum(written) - after.whole.bytes < 400
    assert (after.missing.files, after.missing.bytes) == (0, 0)


def _elsewhere(config: Config) -> object:
    return config.cache.model_copy(update={"path": config.train.run / "deep" / "other.zarr"})


@pytest.mark.slow
def test_bytes_of_the_demo_are_those_that_a_build_writes(tmp_path: Path) -> None:
    config = preset(
        "demo",
        f"cache.path={tmp_path / 'demo.zarr'}",
        "dataset.flip=true",
        "dataset.pixels=true",
        "encoders.efficientnet-lite0.storage=int8",
    )
    planned = make_plan(config, None, 1).space
    build(config.encode, CPU)
    written = sizes_of(config.cache.path)
    assert planned.whole.bytes == pytest.approx(sum(written), rel=0.01)
    assert planned.whole.files == len(written)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in SLOW_PRESETS else [])
        for name in PRESET_NAMES
    ],
)
def test_every_preset_is_planned_without_data_weights_and_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(OFFLINE, None)
    monkeypatch.chdir(tmp_path)
    invoke("init", "--preset", name)
    before = content(tmp_path)
    result = RUNNER.invoke(app, ["plan", "--images", str(IMAGENET), "--json"])
    found = json.loads(result.stdout)
    assert result.exit_code == (0 if found["disk"]["fits"] else 1)
    assert content(tmp_path) == before
    gigabytes = {
        "cifar10-methods": 87.7,
        "coco256-mmdit-b2": 1033,
        "demo": 23.7,
        "demo-text": 87.9,
        "demo-pixels": 25.4,
        "imagenet256-jit-b16": 620,
        "imagenet256-lightningdit-xl2": 42.1,
        "imagenet256-lightningdit-xl1-vavae": 84.1,
        "imagenet256-sit-xl1-e2e-vavae": 296.6,
        "imagenet256-redi-xl2": 281,
        "imagenet256-sit-b2-contrastive": 21.1,
        "imagenet256-sit-b2-dispersive": 21.1,
        "imagenet256-sit-xl2-sra": 21.1,
        "imagenet256-sit-l2-encoders": 1836,
        "imagenet512-sit-xl2": 1099,
    }.get(name, 276)
    assert found["disk"]["whole"]["bytes"] / 1e9 == pytest.approx(gigabytes, rel=0.01)
    if name == "coco256-mmdit-b2":
        assert found["parameters"] == 512_415_504
        texts = found["networks"]["captions/features/clip-vit-L"]
        assert texts["flops"] / 1e9 == pytest.approx(13.3, rel=0.01)
    elif name == "imagenet256-lightningdit-xl2":
        assert found["gains"]["step_flops"] / 1e9 == pytest.approx(712, rel=0.01)
    elif name in AS_REPA:
        assert found["gains"]["run_saving"] == pytest.approx(0.06, abs=0.001)
        assert found["gains"]["step_flops"] / 1e9 == pytest.approx(724, rel=0.01)
        assert any("For one run it gains little: 6.0%" in one for one in found["advice"])


def test_captions_of_coco_take_what_is_known_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OFFLINE, None)
    monkeypatch.chdir(tmp_path)
    invoke("init", "--preset", "coco256-mmdit-b2")
    found = json.loads(RUNNER.invoke(app, ["plan", "--images", "82783", "--json"]).stdout)
    arrays = {f"{one['column']}/{one['array']}": one["whole"] for one in found["disk"]["arrays"]}
    tokens = arrays["captions/features/clip-vit-L/tokens"]["bytes"]
    assert tokens / 1e9 == pytest.approx(49, rel=0.01)
    assert found["gains"]["step_ratio"] == pytest.approx(1.13 + 0.036, abs=0.01)
    # Latents, int8 codes, and a caption with its length.
    assert found["reading"]["image_bytes"] == 16384 + 256 * 768 + 77 * 768 * 2 + 3


def test_what_cannot_fit_is_status_one_with_ways_out(folder: Path) -> None:
    assert "it fits" in invoke("plan")
    output = invoke("plan", "--images", str(10**12), status=1)
    assert "too little" in output
    assert 'storage = "int8" for efficientnet-lite0 (saves 1.8 PB)' in output
    assert "Traceback" not in output
    assert not list(folder.glob("*.zarr"))


def test_without_data_the_error_names_the_option(folder: Path) -> None:
    (folder / "images").rename(folder / "gone")
    output = invoke("plan", status=1)
    assert "dataset.path: no folder" in output
    assert "--images N" in output
    assert "21 images (--images)" in invoke("plan", "--images", "21")
    assert "weights: there is no file" in invoke(
        "build", "--set", "encoders.efficientnet-lite0.weights=w.pth", status=1
    )
    assert "21 images" in invoke(
        "plan", "--images", "21", "--set", "encoders.efficientnet-lite0.weights=w.pth"
    )


def test_break_even_is_where_both_ways_have_cost_the_same() -> None:
    # A run of 80 epochs, half of them aligned; encoding once costs as much as 10 epochs online.
    gains = Gains(
        step_flops=300.0,
        encoder_flops=100.0,
        epochs=80.0,
        aligned_epochs=40.0,
        build_seconds=500.0,
        online_epoch_seconds=50.0,
    )
    assert gains.step_ratio == pytest.approx(4 / 3)
    assert gains.break_even_epochs == 10
    assert gains.break_even_runs == 0.25
    assert gains.saved_seconds == 40 * 50
    online = 80 * 300 + 40 * 100
    assert gains.run_saving == pytest.approx(40 * 100 / online)
    assert gains.saving(1) == pytest.approx((40 - 10) * 100 / online)
    assert gains.saving(10) == pytest.approx((400 - 10) * 100 / (10 * online))


@pytest.fixture
def planned(tiny: Callable[..., Config]) -> Plan:
    return make_plan(tiny(), None, 1)


def gains_of(plan: Plan, config: Config) -> Gains:
    """The gains of another run on the planned cache."""
    return find_gains(config, plan.foreseen, 21, plan.gains.step_flops, plan.pace)


def test_gains_follow_the_configuration(planned: Plan, tiny: Callable[..., Config]) -> None:
    def gains(*overrides: str) -> Gains:
        return gains_of(planned, tiny("train.steps=100", *overrides))

    one = gains()
    assert one.epochs == one.aligned_epochs == 100 * 4 / 21
    assert gains("train.align.0.until=25").aligned_epochs == 25 * 4 / 21
    # float32 units of a GPU are ten times slower than those that published code uses.
    assert one.break_even_epochs == pytest.approx(10)
    assert gains("dataset.flip=true").break_even_epochs == pytest.approx(20)
    plain = gains("train.align=[]")
    assert plain.break_even_epochs is None
    assert plain.run_saving == 0


def test_advice_follows_from_the_numbers(
    planned: Plan, tiny: Callable[..., Config], trainable: Callable[..., Config]
) -> None:
    def sentences(*overrides: str) -> str:
        config = tiny(*overrides)
        return " ".join(advice(replace(planned, config=config, gains=gains_of(planned, config))))

    assert "is better run online" in sentences("train.steps=40")
    assert "It pays after 10 epochs" in sentences("train.steps=400")
    assert "This run aligns to no encoder" in sentences("train.align=[]")
    assert 'precision = "tf32" for the VAE and "float16" for efficientnet-lite0' in sentences()
    half = 'latents.precision="float16"', 'encoders.efficientnet-lite0.precision="float16"'
    assert "precision" not in sentences(*half)
    built = make_plan(trainable(), None, 1)
    assert "Its tokens are there: a run from them saves" in advice(built)[0]


def test_cores_that_decode_keep_up_with_all_gpus(planned: Plan) -> None:
    assert planned.feeding is not None
    seconds = sum(planned.pace.building.values())
    assert planned.feeding.cores == pytest.approx(DECODING_SECONDS / seconds)
    assert any("A GPU encodes" in sentence for sentence in advice(planned))
    eight = feeding(planned.foreseen, planned.pace, None, 8)
    assert eight is not None
    assert eight.cores == pytest.approx(8 * planned.feeding.cores)
    built = [replace(one, missing_rows=0) for one in planned.foreseen]
    assert feeding(built, planned.pace, None, 8) is None


def test_a_step_that_no_gpu_has_memory_for_is_said_with_ways_out(
    planned: Plan, tiny: Callable[..., Config]
) -> None:
    assert "A step of" not in " ".join(advice(planned))
    large = replace(planned, config=tiny("train.batch_size=1024"))
    small = replace(large, card_bytes=(large.memory.peak - 1) / USABLE)
    (sentence,) = (one for one in advice(small) if one.startswith("A step of 1024 images on a GPU"))
    assert "Ways, in [train.compute]: recompute_activations = true (" in sentence
    none = " ".join(advice(replace(large, card_bytes=1e6)))
    assert "none: it takes more GPUs or larger ones" in none


def test_the_memory_of_a_gpu_may_be_given(folder: Path) -> None:
    assert "80.0 GB of a GPU" in invoke("plan")
    assert "24.0 GB of a GPU" in invoke("plan", "--gpu-memory", "24")
    assert folder.exists()


def test_a_loss_is_no_saving_and_counts_have_no_exponents(folder: Path) -> None:
    output = invoke("plan", "--set", "train.steps=1", "--set", "train.batch_size=1")
    assert re.search(r"break-even +10 epochs, 210 runs", output)
    assert re.search(r"saved of one run, encoding counted +nothing: it costs more", output)
    assert "e+" not in output
    assert folder.exists()


def test_parts_of_a_build_share_cores_or_run_side_by_side() -> None:
    networks = {"latents/x": 4.0, "features/y": 2.0}
    assert BuildTime(networks, decoding=1.0, writing=8.0).seconds == 8
    assert BuildTime(networks, decoding=1.0, writing=8.0).slowest == "writing"
    assert BuildTime(networks, decoding=1.0, writing=8.0, is_shared=True).seconds == 15
    assert BuildTime(networks).seconds == 6


@pytest.fixture
def measured(
    trainable: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Plan]:
    """A plan with short measurements."""
    monkeypatch.setattr("pipeline.plan.reading_speed.MEASURE_SECONDS", 0.1)
    monkeypatch.setattr("stages.encode.measuring.encode_speeds.MEASURE_SECONDS", 0.1)
    return lambda *overrides: make_plan(trainable(*overrides), None, 3, is_measured=True)


@pytest.mark.parametrize("alignment", few_fast(["repa", "nt-xent"]))
def test_reading_is_what_bench_says_of_the_built_cache(
    trainable: Callable[..., Config], measured: Callable[..., Plan], alignment: str
) -> None:
    settings = f"train.align.0.kind={alignment}", "train.batch_size=8"
    config = trainable(*settings)
    before = sorted(config.cache.path.parent.iterdir())
    planned, benched = measured(*settings), measure_reading(config.train, config.tensors)
    assert planned.measured is not None
    for reading in (planned.rate, planned.measured.reading):
        assert reading.image_bytes == benched.image_bytes
    assert planned.rate.images_per_second == planned.measured.reading.needed == benched.needed
    assert planned.rate.needed_images_per_second == 3 * benched.needed
    assert planned.rate.images_per_second * planned.gains.step_flops == pytest.approx(GPU_FLOPS)
    assert sorted(config.cache.path.parent.iterdir()) == before


def test_measured_speeds_are_those_of_this_machine(measured: Callable[..., Plan]) -> None:
    plan = measured()
    found = exported(plan)
    assert found["build"]["is_measured"]
    assert found["build"]["device"] == "CPU"
    assert set(found["build"]["parts"]) == {"networks", "decoding", "writing"}
    assert found["feeding"] is None
    assert found["reading"]["measured_cold_images_per_second"] > 0
    assert found["reading"]["measured_write_bytes_per_second"] > 0
    for network in found["networks"].values():
        assert 0 < network["build_seconds_per_image"] < math.inf
    # On one device encoding once costs what it costs in an epoch.
    assert plan.gains.break_even_epochs == pytest.approx(1)


def test_an_interrupted_measurement_leaves_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.encode.measuring.encode_speeds.MEASURE_SECONDS", 0.1)
    seen: list[str] = []

    def interrupt(*_: object) -> None:
        seen.extend(path.name for path in folder.glob(".tiny.zarr.plan-*.partial"))
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.plan.durations.measure_reading", interrupt)
    before = sorted(folder.rglob("*"))
    invoke("plan", "--measure", status=130)
    assert len(seen) == 1
    assert sorted(folder.rglob("*")) == before


def test_json_is_one_object_beside_what_is_said(folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    found = json.loads(RUNNER.invoke(app, ["plan", "--json", "--gpus", "2"]).stdout)
    assert sorted(folder.rglob("*")) == before
    assert found["images"] == 21
    assert found["reading"]["gpus"] == 2
    assert found["disk"]["needed_bytes"] == found["disk"]["missing"]["bytes"]
    arrays = {(one["column"], one["array"]): one for one in found["disk"]["arrays"]}
    moments = arrays["latents/tiny-vae", "moments"]
    # 21 rows of 8 x 8 x 8 half-precision numbers; small rows are padded to whole shards.
    assert moments["whole"] == {"files": 3, "bytes": 24 * 1024}
