"""Images that cannot be read or decoded: they stop a build, or become invalid rows."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import cached_batches
from typer.testing import CliRunner

from cache.errors import IncompleteCacheError, RowsChangedError
from cache.reader import Cache
from pipeline.commands import app
from pipeline.config import Config
from stages.encode.build import build
from stages.encode.build_options import BuildOptions
from stages.encode.images import sources
from stages.encode.images.crop_batches import ImageError
from stages.encode.images.sources.source import FileSettings
from stages.placement import Placement
from stages.train.loop import train

CPU = torch.device("cpu")
SKIP = 'dataset.on_error="skip"'
BROKEN = ("class0/4.jpg", "class2/1.jpg")


@pytest.fixture
def broken(images: Path) -> Path:
    """The images, of which one is truncated and one is none at all."""
    whole = (images / BROKEN[0]).read_bytes()
    (images / BROKEN[0]).write_bytes(whole[: len(whole) // 2])
    (images / BROKEN[1]).write_text("no image")
    return images


def test_they_stop_a_build_that_is_not_told_otherwise(
    broken: Path, tiny: Callable[..., Config]
) -> None:
    assert broken.exists()
    with pytest.raises(
        ImageError, match=r"cannot be decoded: .* set dataset\.on_error to \"skip\""
    ):
        build(tiny().encode, CPU)


def test_their_rows_are_kept_and_marked(broken: Path, tiny: Callable[..., Config]) -> None:
    config = tiny(SKIP, "dataset.pixels=true", "dataset.flip=true")
    made = build(config.encode, CPU)
    assert broken.exists()
    assert sorted(made.invalid) == sorted(BROKEN)
    assert "Truncated" in made.invalid[BROKEN[0]]
    assert "it is no image" in made.invalid[BROKEN[1]]
    cache = Cache(config.cache.path)
    assert len(cache.rows) == 21
    for column in made.columns:
        reader = cache.column(column.name, verify=True)
        assert sorted(cache.rows.key[~reader.valid]) == sorted(BROKEN)
        main = column.arrays[0].name
        stored = reader.read(main, np.flatnonzero(~reader.valid))
        assert not stored.any()
        assert reader.read(main, np.flatnonzero(reader.valid)).any(axis=(1, 2)).any(axis=-1).all()


def test_training_never_draws_them(broken: Path, tiny: Callable[..., Config]) -> None:
    assert broken.exists()
    config = tiny(SKIP)
    build(config.encode, CPU)
    rows = Cache(config.cache.path).rows
    with closing(cached_batches(config, Placement(CPU))) as batches:
        epoch = np.concatenate([batches.rows(step) for step in range(19)])
    counts = np.bincount(epoch, minlength=21)
    bad = np.isin(rows.key.tolist(), BROKEN)
    assert counts[bad].tolist() == [0, 0]
    assert set(counts[~bad].tolist()) == {4}


def test_a_second_build_makes_nothing_and_lists_them_again(
    broken: Path, tiny: Callable[..., Config]
) -> None:
    assert broken.exists()
    build(tiny(SKIP).encode, CPU)
    again = build(tiny(SKIP).encode, CPU)
    assert again.counts.shards == 0
    assert sorted(again.invalid) == sorted(BROKEN)


def test_an_image_that_is_mended_is_taken_over(broken: Path, tiny: Callable[..., Config]) -> None:
    build(tiny(SKIP).encode, CPU)
    (broken / BROKEN[0]).write_bytes((broken / "class0/5.jpg").read_bytes())
    with pytest.raises(RowsChangedError, match=r"1 changed: class0/4\.jpg"):
        build(tiny(SKIP).encode, CPU)
    made = build(tiny(SKIP).encode, CPU, BuildOptions(update=True))
    assert list(made.invalid) == [BROKEN[1]]


def test_files_that_cannot_even_be_read_are_invalid_rows_too(
    tiny: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = sources.SOURCES["imagefolder"]

    def failing(dataset: FileSettings) -> sources.Source:
        source = real.open(dataset)

        def read(index: int) -> bytes:
            if source.keys[index] == BROKEN[0]:
                raise OSError("the disk is broken here")
            return source.read(index)

        return sources.Source(source.keys, source.labels, source.classes, read)

    monkeypatch.setitem(sources.SOURCES, "imagefolder", real._replace(open=failing))
    with pytest.raises(ImageError, match=r"class0/4\.jpg cannot be decoded: the disk is broken"):
        build(tiny().encode, CPU)
    assert build(tiny(SKIP).encode, CPU).invalid == {BROKEN[0]: "the disk is broken here"}
    monkeypatch.undo()
    with pytest.raises(RowsChangedError, match=r"1 changed: class0/4\.jpg"):
        build(tiny(SKIP).encode, CPU)


def test_links_that_lead_nowhere_are_invalid_rows_too(
    images: Path, tiny: Callable[..., Config]
) -> None:
    for key, target in (("class0/link.jpg", "gone.jpg"), ("class1/loop.jpg", "loop.jpg")):
        (images / key).symlink_to(target)
    with pytest.raises(ImageError, match=r"class0/link\.jpg cannot be decoded: .*No such file"):
        build(tiny().encode, CPU)
    made = build(tiny(SKIP).encode, CPU)
    assert made.rows == 23
    assert sorted(made.invalid) == ["class0/link.jpg", "class1/loop.jpg"]
    assert "No such file" in made.invalid["class0/link.jpg"]
    assert build(tiny(SKIP).encode, CPU).counts.shards == 0


def test_a_cache_of_nothing_but_invalid_rows_is_refused(
    images: Path, tiny: Callable[..., Config]
) -> None:
    for file in images.rglob("*.jpg"):
        file.write_text(f"no image {file}")
    config = tiny(SKIP)
    assert len(build(config.encode, CPU).invalid) == 21
    with pytest.raises(IncompleteCacheError, match="No image of the cache could be decoded"):
        train(config.train, config.tensors, Placement(CPU))


def test_the_command_lists_them_at_its_end(broken: Path, tiny: Callable[..., Config]) -> None:
    tiny()
    config = str(broken.parent / "pipeline.toml")
    shown = CliRunner().invoke(app, ["build", "--config", config, "--set", SKIP])
    assert shown.exit_code == 0, shown.output
    assert "2 images could not be decoded" in shown.output
    assert "class0/4.jpg: Truncated File Read" in shown.output
