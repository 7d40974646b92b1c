import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from inspecting import CPU, FEATURES, INT8, LATENTS, cells, inspect, settings
from texts import captions_of
from tiny_cache import content
from typer.testing import CliRunner

from cache.reader import Cache
from pipeline.commands import app
from pipeline.config import Config
from pipeline.inspection.shown_images import drawn_rows, spread_rows
from stages.encode.build import build


@pytest.fixture
def copied(built: Path, tmp_path: Path) -> Path:
    """A folder with the tiny pipeline.toml and a finished cache that may be damaged."""
    return Path(shutil.copytree(built, tmp_path / "copied"))


def test_the_table_has_the_facts_of_every_column(built: Path) -> None:
    output = inspect(built)
    assert "tiny.zarr: 21 images, 21 of them whole and valid in all columns" in output
    assert "3 classes; images of a class: fewest 7, median 7, most 7" in output
    rows = Cache(built / "tiny.zarr").rows
    assert f"rows: {rows.fingerprint[:12]}, permuted by seed 0, 8 in a shard" in output
    held, array, made, identity = cells(output, FEATURES)
    on_disk = sum(file.stat().st_size for file in (built / "tiny.zarr" / FEATURES).rglob("*.*"))
    size = f"{on_disk / 1000:.1f} kB"
    assert held[1:] == ["4 x 4", "112", "float16", size, "3 of 3", "0"]
    assert array == [f"{FEATURES}/tokens", "float16", "16 x 112"]
    attributes = json.loads((built / "tiny.zarr" / FEATURES / "zarr.json").read_text())
    attributes = attributes["attributes"]
    assert made[1:] == ["tf_efficientnet_lite0", "64 px", "stage 3", "float32"]
    assert identity[1] == attributes["fingerprint"][:12]
    assert identity[2] == attributes["recipe"]["weights_sha256"][:12]
    assert identity[3][:10] == attributes["provenance"]["created"][:10]
    assert f"torch {attributes['provenance']['torch']}" in output
    latents, array, *_ = cells(output, LATENTS)
    assert latents[1:3] == ["8 x 8", "4"]
    assert array[2] == "8 x 8 x 8"
    assert "not as configured" not in output


def test_the_cache_of_the_configuration_here_needs_no_words(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(built)
    result = CliRunner().invoke(app, ["inspect"])
    assert result.exit_code == 0, result.output
    assert result.stdout == inspect(built).replace(f"{built}/", "")


def test_a_table_changes_nothing(copied: Path) -> None:
    before = content(copied)
    inspect(copied)
    inspect(copied, "--rows", "class1/3.jpg")
    assert content(copied) == before


def test_columns_that_the_configuration_does_not_have_are_told_from_those_it_has(
    copied: Path,
) -> None:
    changed = settings("latents.precision=float16", 'encoders."test_vit.r160_in1k".input_size=160')
    output = inspect(copied, *changed)
    assert 'compute: cache "float32", configuration "float16"' in output
    assert cells(output, "features/test_vit")[0][1:] == ["not built yet"]
    text = (copied / "pipeline.toml").read_text()
    text = re.sub(r"\[encoders.*?\n\n", "", text, flags=re.DOTALL)
    text = re.sub(r"\[\[train.align.*?\n\n", "", text, flags=re.DOTALL)
    text = re.sub(r"frechet_encoders = .*", "frechet_encoders = []", text)
    (copied / "pipeline.toml").write_text(text)
    assert cells(inspect(copied), FEATURES)[-1][1] == "not in the configuration"


def test_the_runs_that_used_a_column_are_found(built: Path, runs: Path) -> None:
    output = inspect(built, *settings(f"train.run={runs / 'sit'}"))
    _, used = output.split("used by:")
    assert cells(used, "sit")[0] == ["sit", "SiT-XS/2", "2", "these", f"{LATENTS}, {FEATURES}"]
    assert cells(used, "dit")[0][1] == "DiT-XS/2"
    assert cells(used, "plain")[0][4] == LATENTS


def test_a_run_of_another_recipe_or_of_other_images_is_told_apart(
    tiny: Callable[..., Config], images: Path, runs: Path
) -> None:
    build(tiny(INT8).encode, CPU)
    shutil.copy(images / "class0/0.jpg", images / "class0/copy.jpg")
    build(tiny(INT8).encode, CPU)
    output = inspect(images.parent, *settings(INT8, f"train.run={runs / 'sit'}"))
    assert cells(output, "sit")[0][3:] == ["others, or fewer than there are", LATENTS, FEATURES]


def test_checkpoints_that_tell_nothing_are_passed_over(copied: Path) -> None:
    for name, text in (("torn", "{"), ("strange", "[]"), ("other", '{"columns": {}}')):
        folder = copied / name / "checkpoints/step-00000001"
        folder.mkdir(parents=True)
        (folder / "state.json").write_text(text)
    assert "used by" not in inspect(copied)


def test_an_incomplete_cache_says_what_is_missing_and_shows_the_rest(copied: Path) -> None:
    (copied / "tiny.zarr" / FEATURES / "ledger/c.1.0").unlink()
    output = inspect(copied)
    assert "21 images, 13 of them whole" in output
    assert re.search(r"faults: \d, which are listed below", output)
    assert "2 of 3" in cells(output, FEATURES)[0]
    assert "1 of 3 shards are not finished" in output
    key = str(Cache(copied / "tiny.zarr").rows.key[8])
    output = inspect(copied, "--rows", key)
    assert cells(output, key)[2][1:] == [FEATURES, "not finished, or invalid"]


def test_files_that_are_gone_are_named(copied: Path) -> None:
    (copied / "tiny.zarr" / FEATURES / "valid/c.0").unlink()
    (copied / "tiny.zarr" / LATENTS / "moments/c.2.0.0.0").write_bytes(b"short")
    output = inspect(copied)
    assert cells(output, f"{FEATURES}/valid shard 0")[0][1:] == [
        "its file is missing",
        "repa-cache build --repair",
    ]
    assert "its file has 5 bytes" in output
    assert "21 images, 8 of them whole" in output


def edited(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("file", "old", "new", "expected"),
    [
        (f"{FEATURES}/zarr.json", '"float32"', '"float16"', "the recipe was edited"),
        (f"{FEATURES}/zarr.json", "{", "", "its zarr.json cannot be read"),
        (f"{FEATURES}/tokens/zarr.json", "{", "", "its zarr.json cannot be read"),
        ("rows/zarr.json", "class0", "class9", "keys, labels or content hashes were edited"),
        ("rows/zarr.json", "{", "", "the row table cannot be read"),
    ],
)
def test_a_damaged_cache_is_shown_as_far_as_it_can_be_read(
    copied: Path, file: str, old: str, new: str, expected: str
) -> None:
    edited(copied / "tiny.zarr" / file, old, new)
    output = inspect(copied)
    assert expected in output
    assert "what is wrong" in output
    assert cells(output, LATENTS)[0][1:3] == ["8 x 8", "4"]


def test_without_a_row_table_there_is_no_image_to_show(copied: Path) -> None:
    edited(copied / "tiny.zarr/rows/zarr.json", "{", "")
    for arguments in (["--pictures"], ["--rows", "class1/3.jpg"]):
        assert "its row table cannot be read" in inspect(copied, *arguments, status=1)


def test_without_a_cache_the_command_says_what_makes_one(
    tiny: Callable[..., Config], images: Path
) -> None:
    tiny()
    assert "Run `repa-cache build` first" in inspect(images.parent, status=1)


def test_single_images_are_found_by_key_or_a_part_of_it(built: Path) -> None:
    table = Cache(built / "tiny.zarr").rows
    row = table.key.tolist().index("class1/3.jpg")
    digest = "{:016x}{:016x}".format(*table.hash_of(row))
    for key in ("class1/3.jpg", "ss1/3.jpg", "1/3."):
        output = inspect(built, "--rows", key)
        facts = [str(row), str(row // 8), "class1", "1", str(table.source_index[row]), digest]
        assert cells(output, "class1/3.jpg")[0] == ["class1/3.jpg", *facts]
    norms = np.linalg.norm(
        Cache(built / "tiny.zarr").column(FEATURES).values("tokens", [row]), axis=2
    )
    lengths = [f"{value:.4g}" for value in (norms.mean(), norms.min(), norms.max())]
    assert cells(output, "class1/3.jpg")[2] == ["class1/3.jpg", FEATURES, "valid", *lengths]


def test_a_key_that_is_unknown_or_ambiguous_comes_with_those_that_are_near(built: Path) -> None:
    output = inspect(built, "--rows", "class1/9.jpg", status=1)
    assert "no image has such a key" in output
    assert "class1/6.jpg, class2/0.jpg" in output
    output = inspect(built, "--rows", "3.jpg", status=1)
    assert "3 images could be meant" in output
    assert "class0/3.jpg, class1/3.jpg, class2/3.jpg" in output


def test_a_class_stands_for_some_of_its_images(built: Path) -> None:
    config = ("--config", str(built / "pipeline.toml"), "--neighbours", "0")
    result = CliRunner().invoke(app, ["inspect", "--rows", "class1", "--images", "3", *config])
    assert "class1: 3 of its 7 images (--images)" in result.stderr
    shown = {line[0] for line in cells(result.stdout, "class1/")}
    assert len(shown) == 3
    together = inspect(built, "--rows", "class1", "class0/3.jpg", "--neighbours", "0")
    assert {line[0] for line in cells(together, "class")} == {
        *(f"class1/{number}.jpg" for number in range(7)),
        "class0/3.jpg",
    }


def test_several_keys_may_follow_one_option(built: Path) -> None:
    together = inspect(built, "--rows", "class1/3.jpg", "class0/0.jpg", "--neighbours", "2")
    apart = inspect(built, "--rows", "class1/3.jpg", "--rows", "class0/0.jpg", "--neighbours", "2")
    assert together == apart
    assert together.count("nearest to") == 2
    assert len(cells(together, "efficientnet-lite0")) == 4


def test_neighbours_are_the_images_with_the_nearest_mean_tokens(built: Path) -> None:
    cache = Cache(built / "tiny.zarr")
    vectors = cache.column(FEATURES).vectors(np.arange(21))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    row = cache.rows.key.tolist().index("class1/3.jpg")
    cosines = vectors @ vectors[row]
    expected = [int(near) for near in np.argsort(-cosines) if near != row][:8]
    output = inspect(built, "--rows", "class1/3.jpg")
    found = cells(output, "efficientnet-lite0")
    assert [line[1] for line in found] == [str(cache.rows.key[near]) for near in expected]
    assert found[0][3] == f"{cosines[expected[0]]:.4f}"
    assert len(cells(inspect(built, "--rows", "1/3.", "--among", "4"), "efficientnet-lite0")) <= 4
    assert "nearest" not in inspect(built, "--rows", "1/3.", "--neighbours", "0")
    assert "of which images?" in inspect(built, "--neighbours", "3", status=1)


def test_captions_of_images_and_what_is_told_of_alike_are_shown(
    captioned: Callable[..., Config],
) -> None:
    config = captioned()
    build(config.encode, CPU)
    folder = config.cache.path.parent
    assert "captions" in inspect(folder)
    output = inspect(folder, "--rows", "class1/4.jpg", "--neighbours", "2")
    texts = captions_of("class1/4.jpg")
    assert [row[1] for row in cells(output, "class1/4.jpg") if row[1:] and row[1] in texts] == texts
    # Those that have the same captions are nearest.
    assert {row[1] for row in cells(output, "tiny ")} == {"class0/4.jpg", "class2/4.jpg"}
    target = folder / "pages"
    inspect(folder, "--pictures", "--images", "21", "--out", str(target))
    page = next(target.rglob("*.html")).read_text()
    assert all(text in page for text in texts)


def test_images_are_spread_over_the_classes_or_drawn_by_seed() -> None:
    labels = np.repeat(np.arange(4, dtype=np.int32), 25)[np.random.default_rng(0).permutation(100)]
    there = np.ones(100, np.bool_)
    there[labels == 3] = False
    rows = spread_rows(there, labels, 6)
    assert labels[rows].tolist() == [0, 0, 1, 1, 2, 2]
    assert len(spread_rows(there, labels, 1000)) == 75
    assert len(spread_rows(~there & there, labels, 3)) == 0
    drawn = drawn_rows(there, 6, 1)
    assert there[drawn].all()
    assert drawn.tolist() == drawn_rows(there, 6, 1).tolist()
    assert drawn.tolist() != drawn_rows(there, 6, 2).tolist()
