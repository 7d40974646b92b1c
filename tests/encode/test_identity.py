"""Images in tables stay the rows that they are in a cache, whatever writes the tables anew."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import packing
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from cache.errors import RowsChangedError
from cache.reader import Cache
from cache.rows import content_hash
from pipeline.config import Config
from pipeline.inspection.picture_data import read_crops
from stages.encode.build import BuildSummary, build
from stages.encode.images.crop import centre_crop, decode
from stages.encode.images.sources.tables import TableRows

CPU = torch.device("cpu")
NAMES = ["tench", "goldfish", "shark"]
Rows = Mapping[str, bytes]


def columns(files: Rows, *, has_paths: bool = True) -> list[object]:
    return [
        {"bytes": image, "path": key.replace("/", "_") if has_paths else None}
        for key, image in files.items()
    ]


@pytest.fixture
def files(images: Path) -> Rows:
    return packing.shuffled(packing.tree(images))


@pytest.fixture
def settings(tmp_path: Path, tiny: Callable[..., Config]) -> Callable[..., Config]:
    def configured(source: str = "parquet", folder: str = "data") -> Config:
        return tiny(f"dataset.source={source}", f"dataset.path={tmp_path / folder}")

    return configured


def write(path: Path, files: Rows, *, has_paths: bool = True, has_names: bool = True) -> None:
    path.parent.mkdir(exist_ok=True)
    names = NAMES if has_names else None
    rows = columns(files, has_paths=has_paths)
    packing.write_parquet(path, rows, packing.numbers(files), names=names)


def built(config: Config) -> BuildSummary:
    return build(config.encode.model_copy(update={"encoders": {}}), CPU)


def as_cached(config: Config) -> tuple[object, ...]:
    """What a run sees of the rows, and the latents."""
    cache = Cache(config.cache.path)
    moments = cache.column("latents/tiny-vae", verify=True).read("moments", range(len(cache.rows)))
    return cache.rows.fingerprint, cache.rows.key.tolist(), cache.rows.classes, moments.tobytes()


def in_one_group(folder: Path, _files: Rows) -> None:
    path = folder / "a.parquet"
    pq.write_table(pq.read_table(path), path, compression="zstd", use_dictionary=False)


def with_other_types(folder: Path, _files: Rows) -> None:
    """As Polars does, which keeps no metadata of `datasets` either."""
    table = pq.read_table(folder / "a.parquet")
    image = pa.struct([("bytes", pa.large_binary()), ("path", pa.large_string())])
    schema = pa.schema([("image", image), ("label", pa.int64())])
    pq.write_table(table.cast(schema), folder / "a.parquet", row_group_size=7)


def under_another_name(folder: Path, _files: Rows) -> None:
    (folder / "a.parquet").rename(folder / "train-00000-of-00001.parquet")


def in_two_files(folder: Path, files: Rows) -> None:
    table = pq.read_table(folder / "a.parquet")
    pq.write_table(table.slice(0, 9), folder / "train-00000-of-00002.parquet")
    pq.write_table(table.slice(9), folder / "train-00001-of-00002.parquet")
    (folder / "a.parquet").unlink()
    assert len(table) == len(files)


def in_another_order(folder: Path, files: Rows) -> None:
    write(folder / "a.parquet", dict(reversed(files.items())), has_paths=False)


def without_paths(folder: Path, files: Rows) -> None:
    write(folder / "a.parquet", files, has_paths=False)


def with_paths(folder: Path, files: Rows) -> None:
    write(folder / "a.parquet", files)


@pytest.mark.parametrize(
    ("has_paths", "rewrite"),
    [
        (True, in_one_group),
        (True, with_other_types),
        (False, with_other_types),
        (False, under_another_name),
        (False, in_two_files),
        (False, in_another_order),
        (True, without_paths),
        (False, with_paths),
    ],
)
def test_rows_stay_when_files_are_written_anew(
    rewrite: Callable[[Path, Rows], None],
    has_paths: bool,
    files: Rows,
    settings: Callable[..., Config],
    tmp_path: Path,
) -> None:
    write(tmp_path / "data" / "a.parquet", files, has_paths=has_paths)
    config = settings()
    built(config)
    before = as_cached(config)
    rewrite(tmp_path / "data", files)
    made = built(config)
    assert (made.added, made.counts.shards) == (0, 0)
    assert as_cached(config) == before
    assert built(config).added == 0


def test_rows_stay_when_a_folder_moves_or_becomes_one_of_arrow_files(
    files: Rows, settings: Callable[..., Config], tmp_path: Path
) -> None:
    write(tmp_path / "data" / "a.parquet", files, has_paths=False)
    built(settings())
    before = as_cached(settings())
    (tmp_path / "data").rename(tmp_path / "moved")
    assert built(settings(folder="moved")).added == 0
    rows = columns(files, has_paths=False)
    packing.save_to_disk(tmp_path / "saved", rows, packing.numbers(files), NAMES)
    assert built(settings("arrow", "saved")).added == 0
    assert as_cached(settings("arrow", "saved")) == before


@pytest.mark.parametrize("name", ["0.parquet", "b.parquet"])
def test_rows_stay_when_a_file_joins_that_has_the_same_paths_or_none(
    name: str, files: Rows, settings: Callable[..., Config], tmp_path: Path
) -> None:
    first, second = dict(list(files.items())[:12]), dict(list(files.items())[12:])
    write(tmp_path / "data" / "a.parquet", first)
    built(settings())
    before = Cache(settings().cache.path).rows
    (path, _), (_, image), *others = [next(iter(first.items())), *second.items()]
    same = {path: image, **dict(others)}
    write(tmp_path / "data" / name, same)
    made = built(settings())
    assert made.added == len(same)
    after = Cache(settings().cache.path).rows
    assert after.key[: len(first)].tolist() == before.key.tolist()
    assert set(after.key[len(first) :].tolist()) == {f"{name}/{row}" for row in range(len(same))}
    write(tmp_path / "data" / name, same, has_paths=False)
    assert built(settings()).added == 0


def test_an_image_that_changed_or_vanished_is_still_named(
    files: Rows, settings: Callable[..., Config], tmp_path: Path
) -> None:
    write(tmp_path / "data" / "a.parquet", files)
    built(settings())
    key, other = list(files)[:2]
    write(tmp_path / "data" / "a.parquet", {**files, key: files[key] + b"0"})
    with pytest.raises(RowsChangedError, match=f"1 changed: {key.replace('/', '_')}"):
        built(settings())
    write(tmp_path / "data" / "b.parquet", {name: files[name] for name in files if name != other})
    (tmp_path / "data" / "a.parquet").unlink()
    with pytest.raises(RowsChangedError, match=f"1 vanished: {other.replace('/', '_')}"):
        built(settings())


def test_two_rows_with_the_same_image_stay_two(
    files: Rows, settings: Callable[..., Config], tmp_path: Path
) -> None:
    twice = {**files, "class0/again.jpg": files["class0/0.jpg"]}
    write(tmp_path / "data" / "a.parquet", twice, has_paths=False)
    built(settings())
    before = as_cached(settings())
    in_two_files(tmp_path / "data", twice)
    assert built(settings()).added == 0
    assert as_cached(settings()) == before


def test_rows_stay_when_one_is_put_before_them(
    files: Rows, settings: Callable[..., Config], tmp_path: Path
) -> None:
    (_, image), *others = files.items()
    write(tmp_path / "data" / "a.parquet", dict(others), has_paths=False)
    built(settings())
    before = Cache(settings().cache.path).rows
    write(tmp_path / "data" / "a.parquet", files, has_paths=False)
    assert built(settings()).added == 1
    after = Cache(settings().cache.path).rows
    assert after.key.tolist() == [*before.key.tolist(), "a.parquet/20"]
    assert after.content_hash[:20].tolist() == before.content_hash.tolist()
    assert after.hash_of(20) == content_hash(image)


@pytest.mark.parametrize("rewrite", [with_paths, in_another_order])
def test_files_whose_rows_are_called_otherwise_are_not_read_again(
    rewrite: Callable[[Path, Rows], None],
    files: Rows,
    settings: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write(tmp_path / "data" / "a.parquet", files, has_paths=False)
    built(settings())
    rewrite(tmp_path / "data", files)
    built(settings())
    assert Cache(settings().cache.path).rows.key[0].startswith("a.parquet/")
    monkeypatch.setattr(TableRows, "read", lambda *_: pytest.fail("an image was read"))
    assert built(settings()).added == 0


def test_images_that_are_called_otherwise_are_found_by_inspection(
    files: Rows, settings: Callable[..., Config], tmp_path: Path
) -> None:
    write(tmp_path / "data" / "a.parquet", files, has_paths=False)
    built(settings())
    in_another_order(tmp_path / "data", files)
    built(settings())
    table = Cache(settings().cache.path).rows
    images = {content_hash(content): content for content in files.values()}
    crops = read_crops(settings().encode, table, np.arange(len(table)))
    for row, crop in enumerate(crops.permute(0, 2, 3, 1).numpy()):
        expected = centre_crop(decode(images[table.hash_of(row)]), 32)
        np.testing.assert_array_equal(crop, expected)
