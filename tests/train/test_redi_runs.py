"""ReDi from a cache: components built, trained on, resumed, shared by processes, and sampled."""

import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import torch
from launching import assert_close_runs, launch
from marking import few_fast
from runs import cached_batches, drawn_into, image_bytes, log_values, trained, trained_in_parts

from cache.reader import Cache
from pipeline.config import Config, load_config
from pipeline.exits import ConfigError
from pipeline.inspection.contents import gather_contents
from pipeline.plan.outline import make_plan
from pipeline.report.reading import read_by
from stages.encode.building.build_times import seconds_per_image
from stages.sample.samples import read_manifest
from stages.sample.solvers.solver import SampleError

REDI = 'train.align.1={kind="redi", encoder="pca4"}'
# Each is trained in one process and in two. `legacy` is not, as each process decides for itself.
DROP = ("train.align.1.drop=0.5",)


@pytest.fixture
def folder(built_with_components: Path) -> Path:
    return built_with_components


@pytest.fixture
def redi(folder: Path, tmp_path: Path) -> Callable[..., Config]:
    return lambda *overrides: load_config(
        folder / "pipeline.toml", [f"train.run={tmp_path / 'run'}", REDI, *overrides]
    )


def test_both_losses_fall(redi: Callable[..., Config]) -> None:
    config = redi("train.steps=60", "train.log_every=20", "train.checkpoint_every=60")
    trained(config)
    lines = log_values(config)
    for name in ("denoising", "redi"):
        assert lines[-1][name] < 0.9 * lines[0][name], name


@pytest.mark.parametrize(
    "settings",
    few_fast(
        [(), DROP, (*DROP, "train.align.1.drop_mode=legacy"), ("train.align.1.rescale=true",)], 2
    ),
    ids=["plain", "dropped", "legacy", "rescaled"],
)
def test_a_run_that_is_resumed_equals_an_undisturbed_one(
    redi: Callable[..., Config], tmp_path: Path, settings: tuple[str, ...]
) -> None:
    trained_in_parts(redi, tmp_path, *settings)


@pytest.mark.slow
def test_two_processes_train_like_one(folder: Path, tmp_path: Path) -> None:
    def settings(name: str) -> list[str]:
        cache = f"cache.path={folder / 'tiny.zarr'}"
        return [f"train.run={tmp_path / name}", cache, REDI, *DROP]

    alone, two = (load_config(folder / "pipeline.toml", settings(n)) for n in ("one", "two"))
    trained(alone)
    shutil.copy(folder / "pipeline.toml", tmp_path)
    launch(tmp_path, [settings("two")])
    assert_close_runs(two, alone, 1e-4)


def test_components_of_unit_variance_are_read_as_such(redi: Callable[..., Config]) -> None:
    config = redi("train.align.1.rescale=true", "train.batch_size=21")
    reader = Cache(config.cache.path).column("features/pca4")
    with closing(cached_batches(config)) as batches:
        rows, batch = batches.rows(0), batches.read(0)
        scaled = batch["pca4/unit_tokens"].clone()
    plain = torch.from_numpy(reader.values("tokens", rows))
    variances = torch.from_numpy(reader.column.constants["explained_variance"][:4])
    torch.testing.assert_close(scaled, plain / variances.sqrt())
    assert scaled.flatten(0, 1).var(dim=0).numpy() == pytest.approx(1, rel=0.02)


def test_components_save_the_encoder_whose_tokens_they_are_made_of(
    redi: Callable[..., Config],
) -> None:
    read = read_by(redi("train.align.0.until=3"), 10)
    name = "features/efficientnet-lite0"
    assert [(one.name, one.images) for one in read.columns[1:]] == [
        (name, 12),
        ("features/pca4", 40),
    ]
    seconds = seconds_per_image(redi().cache.path, name)
    assert seconds
    assert read.saved == {name: pytest.approx(40 * seconds)}


# Enough for predictions to depend on labels and components.
LEARNT = (*DROP, "train.steps=20", "train.learning_rate=1e-2", "train.ema_decay=0.1")
SOLVERS = ("euler-maruyama", "euler", "heun", "dopri5")


@pytest.mark.parametrize("solver", few_fast(SOLVERS))
def test_images_are_drawn_by_every_solver(
    redi: Callable[..., Config], tmp_path: Path, solver: str
) -> None:
    trained(redi(*LEARNT, "train.checkpoint_every=20"))
    pictures = {}
    for name, guided in {
        "plain": (),
        "labels": ("sample.guidance=3",),
        "all": ("sample.guidance=3", "sample.guide_components=true"),
        "components": ("sample.representation_guidance=3",),
    }.items():
        drawn = drawn_into(tmp_path / name, redi(*LEARNT, f"sample.solver={solver}", *guided))
        pictures[name] = b"".join(image_bytes(drawn.samples))
    assert len(set(pictures.values())) == len(pictures)
    manifest = read_manifest(tmp_path / "components")
    assert manifest is not None
    assert manifest["representation_guidance"] == 3
    assert manifest["guide_components"] is False


def test_guidance_by_components_needs_a_model_that_has_them(
    trainable: Callable[..., Config], tmp_path: Path
) -> None:
    trained(trainable())
    for setting in ("representation_guidance=2", "guide_components=true"):
        with pytest.raises(SampleError, match="for models that diffuse components"):
            drawn_into(tmp_path / "drawn", trainable(f"sample.{setting}"))


def test_a_cache_tells_of_its_components(redi: Callable[..., Config]) -> None:
    config = redi()
    contents = gather_contents(config)
    (held,) = (one for one in contents.columns if one.name == "features/pca4")
    assert (held.shape, held.changes, contents.missing, contents.faults) == ((4, 4, 4), [], (), ())
    changed = gather_contents(redi("components.pca4.seed=3"))
    (held,) = (one for one in changed.columns if one.name == "features/pca4")
    assert held.changes == ["seed: cache 0, configuration 3"]


def test_a_plan_counts_their_bytes(redi: Callable[..., Config], folder: Path) -> None:
    plan = make_plan(redi(), None, 1)
    written = sum(
        path.stat().st_size for path in (folder / "tiny.zarr").rglob("*") if path.is_file()
    )
    # Fingerprints of sources are known once these are there.
    assert plan.space.whole.bytes == pytest.approx(written, rel=0.005)
    assert plan.space.missing.bytes == 0
    (array,) = (
        one.array
        for one in plan.space.arrays
        if (one.column, one.array.name) == ("features/pca4", "tokens")
    )
    assert array.row_bytes == 2 * 16 * 4
    # What is saved is the encoder's work, although components are read.
    alone = make_plan(redi("train.align.0.weight=0"), None, 1)
    assert alone.gains.encoder_flops == plan.gains.encoder_flops > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("train.align.1.encoder=efficientnet-lite0",), "tokens of many features"),
        (("train.align.1.encoder=pca5",), "'pca5' has no section"),
        (("train.align.1.drop_mode=legacy",), "there is nothing to drop, as drop is 0"),
        (("train.model=DiT-XS/2",), "'redi' is for SiT"),
        (("train.align.1.until=2",), "redi has no end"),
    ],
)
def test_what_does_not_fit_is_refused(
    redi: Callable[..., Config], settings: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        redi(*settings)
