"""What a build does to a cache that is already there: grow, mend, rebuild, share."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from faults import PLANTED, flip
from marking import few_fast
from tiny import save_jpeg
from tiny_cache import content

from cache.errors import CacheBusyError, IncompleteCacheError, RowsChangedError, StaleCacheError
from cache.locking.locks import build_locks
from cache.reader import Cache
from cache.verify import find_faults
from pipeline.config import Config
from stages.encode.build import BuildSummary, UnknownColumnError, build, find_columns
from stages.encode.build_options import BuildOptions
from stages.encode.building.shard_making import ShardEncoder
from stages.encode.images.crop_batches import CropReader

CPU = torch.device("cpu")
FEATURES = "features/efficientnet-lite0"
LATENTS = "latents/tiny-vae"
REPAIR = BuildOptions(repair=True)


def built_by(config: Config, options: BuildOptions | None = None) -> BuildSummary:
    return build(config.encode, CPU, options)


def has_no_fault(config: Config) -> bool:
    return find_faults(config.cache.path, threads=1) == []


def add_images(images: Path, count: int = 5) -> None:
    for number in range(count):
        save_jpeg(images / f"class{number % 3}" / f"added{number}.jpg", seed=number)


def test_what_a_killed_build_left_aside_is_removed(tiny: Callable[..., Config]) -> None:
    config = tiny()
    built_by(config)
    path = config.cache.path
    left = [path / name / ".zarr.json.host-1.partial" for name in ("", "latents", LATENTS)]
    for file in left:
        file.touch()
    built_by(config)
    assert not any(file.exists() for file in left)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys of all images that are decoded and cropped from here on."""
    keys: list[str] = []
    real = CropReader._decoded_crop

    def crop(self: CropReader, row: int) -> object:
        keys.append(str(self.rows.key[row]))
        return real(self, row)

    monkeypatch.setattr(CropReader, "_decoded_crop", crop)
    return keys


@pytest.fixture
def copied(built: Path, tmp_path: Path, tiny: Callable[..., Config]) -> Config:
    """The tiny configuration over a finished cache of its own."""
    shutil.rmtree(tmp_path / "images")
    shutil.copytree(built / "images", tmp_path / "images")
    shutil.copytree(built / "tiny.zarr", tmp_path / "tiny.zarr")
    return tiny()


@pytest.mark.parametrize("storage", few_fast(["int8", "float16"]))
def test_added_images_are_appended_and_no_other_is_encoded_again(
    tiny: Callable[..., Config], images: Path, encoded: list[str], storage: str
) -> None:
    config = tiny(f"encoders.efficientnet-lite0.storage={storage}")
    built_by(config)
    before = Cache(config.cache.path)
    tokens = before.column(FEATURES).read("tokens", range(21))
    add_images(images)
    encoded.clear()
    made = built_by(config)
    assert (made.added, made.rows, made.counts.shards) == (5, 26, 4)
    assert sorted(encoded) == [f"class{n % 3}/added{n}.jpg" for n in (0, 3, 1, 4, 2)]
    assert has_no_fault(config)
    after = Cache(config.cache.path)
    assert after.rows.key[:21].tolist() == before.rows.key.tolist()
    np.testing.assert_array_equal(after.column(FEATURES).read("tokens", range(21)), tokens)
    assert built_by(config).counts.shards == 0


def test_rows_that_cannot_be_copied_to_a_grown_shard_are_encoded_again(
    copied: Config, encoded: list[str]
) -> None:
    flip(copied.cache.path / FEATURES / "tokens/c.2.0.0", 9000)
    add_images(copied.dataset.path, 1)
    assert built_by(copied).added == 1
    assert len(encoded) > 1
    assert has_no_fault(copied)


def test_a_column_that_has_not_grown_yet_is_refused_by_readers(copied: Config) -> None:
    add_images(copied.dataset.path)
    built_by(copied.model_copy(update={"encoders": {}}))
    with pytest.raises(IncompleteCacheError, match="2 of 4 shards are missing"):
        Cache(copied.cache.path).column(FEATURES)
    assert built_by(copied).counts.shards == 2
    assert has_no_fault(copied)


def test_images_added_while_another_build_is_at_work_have_to_wait(
    copied: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_images(copied.dataset.path)
    before = content(copied.cache.path)
    monkeypatch.setattr(os, "getpid", lambda: 1)
    other = build_locks(copied.cache.path, print)
    monkeypatch.undo()
    with other.at_work(), pytest.raises(CacheBusyError, match="process 1 on"):
        built_by(copied)
    assert content(copied.cache.path) == before
    assert built_by(copied).added == 5


def test_a_changed_image_is_taken_over_on_request_and_its_shard_made_again(
    copied: Config, encoded: list[str]
) -> None:
    save_jpeg(copied.dataset.path / "class1" / "3.jpg", seed=1)
    with pytest.raises(RowsChangedError, match=r"1 changed: class1/3\.jpg"):
        built_by(copied)
    made = built_by(copied, BuildOptions(update=True))
    assert (made.counts.shards, made.added) == (2, 0)
    assert "class1/3.jpg" in encoded
    assert has_no_fault(copied)
    assert built_by(copied).counts.shards == 0


def test_a_label_that_changed_is_taken_over_without_encoding(
    copied: Config, encoded: list[str]
) -> None:
    (copied.dataset.path / "class0").rename(copied.dataset.path / "class9")
    with pytest.raises(RowsChangedError, match="7 vanished"):
        built_by(copied, BuildOptions(update=True))
    (copied.dataset.path / "class9").rename(copied.dataset.path / "class0")
    (copied.dataset.path / "class00").mkdir()
    save_jpeg(copied.dataset.path / "class00" / "0.jpg", seed=0)
    message = r"14 labelled otherwise: .*\(new: class00\), which moves labels: .*Take out"
    with pytest.raises(RowsChangedError, match=message):
        built_by(copied)
    built_by(copied, BuildOptions(update=True))
    assert encoded == ["class00/0.jpg"]
    rows = Cache(copied.cache.path).rows
    assert rows.classes == ("class0", "class00", "class1", "class2")
    assert {rows.classes[label] for label in rows.label} == set(rows.classes)
    assert all(
        str(key).startswith(rows.classes[label])
        for key, label in zip(rows.key, rows.label, strict=True)
    )


def test_files_that_did_not_change_are_not_read_again(
    copied: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    built_by(copied)
    read: list[str] = []
    real = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path.name) or real(path))
    (copied.dataset.path / "class1" / "3.jpg").touch()
    assert built_by(copied).counts.shards == 0
    assert [name for name in read if name.endswith(".jpg")] == ["3.jpg"]
    read.clear()
    assert built_by(copied).counts.shards == 0
    assert not [name for name in read if name.endswith(".jpg")]


@pytest.mark.parametrize("name", few_fast(PLANTED, 8))
def test_what_is_damaged_is_mended_and_nothing_else_is_made_again(
    copied: Config, name: str
) -> None:
    before = content(copied.cache.path)
    PLANTED[name].plant(copied.cache.path / FEATURES)
    assert find_faults(copied.cache.path, threads=1)
    assert built_by(copied, REPAIR).counts.shards == PLANTED[name].shards
    assert content(copied.cache.path) == before


def test_repairing_a_whole_cache_changes_nothing(copied: Config) -> None:
    before = content(copied.cache.path)
    assert built_by(copied, REPAIR).counts.shards == 0
    assert content(copied.cache.path) == before


@pytest.mark.parametrize("array", ["label", "key", "content_hash"])
def test_a_row_table_that_cannot_be_read_is_taken_from_the_data_set(
    copied: Config, array: str
) -> None:
    before = content(copied.cache.path)
    (file,) = (f for f in (copied.cache.path / "rows" / array / "c").rglob("*") if f.is_file())
    flip(file, 300)
    assert built_by(copied, REPAIR).counts.shards == 0
    assert content(copied.cache.path) == before


def test_damage_in_columns_of_other_configurations_is_reported(copied: Config) -> None:
    flip(copied.cache.path / FEATURES / "tokens/c.1.0.0", 9000)
    flip(copied.cache.path / LATENTS / "moments/c.1.0.0.0", 9000)
    made = built_by(copied.model_copy(update={"encoders": {}}), REPAIR)
    assert made.counts.shards == 1
    assert [fault.where for fault in made.damaged] == [f"{FEATURES}/tokens shard 1"]
    assert built_by(copied, REPAIR).damaged == ()
    assert has_no_fault(copied)


def test_a_column_of_another_recipe_is_not_repaired_into_this_one(
    copied: Config, tiny: Callable[..., Config]
) -> None:
    before = content(copied.cache.path)
    other = tiny("encoders.efficientnet-lite0.input_size=96", "train.align=[]")
    with pytest.raises(StaleCacheError, match="input_size: cache 64, configuration 96"):
        built_by(other, REPAIR)
    PLANTED["an edited recipe"].plant(copied.cache.path / FEATURES)
    with pytest.raises(StaleCacheError, match="were not made by the recipe"):
        built_by(other, REPAIR)
    built_by(copied, REPAIR)
    assert content(copied.cache.path) == before


def test_an_int8_cache_is_refused_as_float16_and_rebuilt_on_request(
    copied: Config, tiny: Callable[..., Config]
) -> None:
    before = content(copied.cache.path)
    int8 = tiny("encoders.efficientnet-lite0.storage=int8")
    with pytest.raises(StaleCacheError, match='storage: cache "float16", configuration "int8"'):
        built_by(int8)
    assert not int8.cache.path.with_name(".tiny.zarr.locks").exists()
    rebuild = BuildOptions(rebuild=find_columns(int8.encode, ["efficientnet-lite0"]))
    assert built_by(int8, rebuild).counts.shards == 3
    assert has_no_fault(int8)
    with pytest.raises(StaleCacheError, match='storage: cache "int8", configuration "float16"'):
        built_by(copied)
    assert built_by(copied, rebuild).counts.shards == 3
    assert content(copied.cache.path) == before


@pytest.mark.parametrize("harm", few_fast(["edit", "flip", "lose"]))
def test_damaged_channel_scales_are_measured_again(tiny: Callable[..., Config], harm: str) -> None:
    config = tiny("encoders.efficientnet-lite0.storage=int8")
    built_by(config)
    before = content(config.cache.path)
    folder = config.cache.path / FEATURES / "channel_scale"
    if harm == "lose":
        shutil.rmtree(folder)
    elif harm == "flip":
        flip(folder / "c/0", 300)
    else:
        (folder / "zarr.json").write_text("{}")
    (fault,) = find_faults(config.cache.path, threads=1)
    assert (fault.where, fault.remedy) == (FEATURES, "repa-cache build --repair")
    assert "channel_scale" in fault.what
    assert built_by(config, REPAIR).counts.shards == 0
    assert content(config.cache.path) == before


def test_only_columns_of_the_configuration_can_be_rebuilt(copied: Config) -> None:
    assert find_columns(copied.encode, ["tiny-vae", FEATURES]) == {LATENTS, FEATURES}
    with pytest.raises(UnknownColumnError, match="did you mean 'tiny-vae'"):
        find_columns(copied.encode, ["tiny-vea"])


@pytest.mark.slow
def test_two_builds_at_once_share_the_work(tiny: Callable[..., Config], images: Path) -> None:
    whole = tiny(f"cache.path={images.parent / 'whole.zarr'}", "cache.rows_per_shard=1")
    built_by(whole)
    command = [sys.executable, "-m", "pipeline", "build", "--set", "cache.rows_per_shard=1"]
    builds = [
        subprocess.Popen(
            command, cwd=images.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    said = [build.communicate() for build in builds]
    assert [build.returncode for build in builds] == [0, 0], said
    made = [
        0 if "nothing was missing" in out else int(out.split("; ")[-1].split()[0])
        for out, _ in said
    ]
    assert sum(made) == 42
    assert has_no_fault(tiny("cache.rows_per_shard=1"))
    files = {path.name for path in images.parent.iterdir()}
    assert files == {"images", "pipeline.toml", "tiny.zarr", "whole.zarr"}


def test_a_cache_is_read_while_another_encoder_is_added(
    copied: Config, monkeypatch: pytest.MonkeyPatch, tiny: Callable[..., Config]
) -> None:
    shutil.rmtree(copied.cache.path / FEATURES)
    moments = Cache(copied.cache.path).column(LATENTS).read("moments", range(21))
    seen, original = [], ShardEncoder._write

    def write(self: ShardEncoder, *arguments: object) -> None:
        original(self, *arguments)  # type: ignore[arg-type]
        stored = Cache(copied.cache.path).column(LATENTS, verify=True).read("moments", range(21))
        seen.append(np.array_equal(stored, moments))

    monkeypatch.setattr(ShardEncoder, "_write", write)
    assert built_by(tiny()).counts.shards == 3
    assert seen == [True] * 8
