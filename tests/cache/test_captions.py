"""Captions in a cache: links between images and texts, whole or refused."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from tiny_cache import make_rows

from cache.captions import (
    CAPTIONS,
    LINKS,
    Captions,
    Links,
    changed_images,
    has_captions,
    links_of,
    located,
    read_links,
    text_rows,
    write_links,
)
from cache.errors import DamagedCacheError
from cache.rows import RowTable, create_cache, write_rows

TOLD = [["a", "b"], [], ["b", "c", "d"], ["a"]]


def write(path: Path, captions: list[list[str]], known: RowTable | None = None) -> RowTable:
    """A cache of some images with these captions; returns its texts."""
    rows = make_rows(len(captions))
    if not path.exists():
        create_cache(path, rows, 4, 0)
    links, texts = links_of(rows.key, captions, known)
    if known is None:
        create_cache(path / CAPTIONS, texts, 4, 0)
    else:
        write_rows(path / CAPTIONS, texts)
    write_links(path, links, texts)
    return texts


def test_each_image_has_its_captions_and_a_text_is_there_once(tmp_path: Path) -> None:
    path = tmp_path / "x.zarr"
    assert not has_captions(path)
    write(path, TOLD)
    assert has_captions(path)
    captions = Captions(path, make_rows(4))
    assert captions.texts.tolist() == ["a", "b", "c", "d"]
    assert [captions.of(row) for row in range(4)] == TOLD
    assert captions.count.tolist() == [2, 0, 3, 1]


def test_texts_stay_where_they_are_and_new_ones_follow(tmp_path: Path) -> None:
    path = tmp_path / "x.zarr"
    before = write(path, TOLD)
    after = write(path, [["e", "b"], ["f"], ["d"], []], before)
    assert after.key.tolist() == ["a", "b", "c", "d", "e", "f"]
    assert after.digest(range(4)) == before.digest(range(4))
    captions = Captions(path, make_rows(4))
    assert [captions.of(row) for row in range(4)] == [["e", "b"], ["f"], ["d"], []]


def test_images_that_came_later_have_no_captions_for_who_read_the_rows_before(
    tmp_path: Path,
) -> None:
    write(tmp_path / "x.zarr", TOLD)
    captions = Captions(tmp_path / "x.zarr", make_rows(4).take(np.arange(3)))
    assert [captions.of(row) for row in range(3)] == TOLD[:3]


def test_a_caption_is_chosen_evenly_and_by_its_number(tmp_path: Path) -> None:
    write(tmp_path / "x.zarr", TOLD)
    captions = Captions(tmp_path / "x.zarr", make_rows(4))
    rows = np.full(3000, 2)
    drawn = np.random.Philox(7).random_raw(3000)
    chosen = captions.chosen(rows, drawn)
    assert chosen[:4].tolist() == [1 + int(number) % 3 for number in drawn[:4]]
    counts = np.bincount(chosen, minlength=4)
    assert counts[0] == 0
    assert (abs(counts[1:] - 1000) < 100).all()


@pytest.mark.parametrize(
    ("now", "changed"),
    [
        (TOLD, []),
        ([["a", "b", "z"], ["y"], *TOLD[2:]], []),
        ([["a"], *TOLD[1:]], ["0"]),
        ([["b", "a"], *TOLD[1:]], ["0"]),
        ([*TOLD[:2], ["b", "c", "e"], []], ["2", "3"]),
    ],
)
def test_what_is_added_is_no_change_and_all_else_is(
    now: list[list[str]], changed: list[str]
) -> None:
    keys = np.array(["0", "1", "2", "3"], np.dtypes.StringDType())
    before, texts = links_of(keys, TOLD, None)
    after, every = links_of(keys, now, texts)
    assert changed_images(before, after, every) == changed


@pytest.mark.parametrize("name", ["key", "count", "text"])
def test_links_that_were_edited_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.zarr"
    texts = write(path, TOLD)
    array = zarr.open_array(path / CAPTIONS / LINKS / name, mode="r+")
    array[0] = {"key": "other", "count": 1, "text": 3}[name]
    with pytest.raises(DamagedCacheError, match="which image has which caption was edited"):
        read_links(path, texts)


def test_links_without_an_array_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.zarr"
    texts = write(path, TOLD)
    shutil.rmtree(path / CAPTIONS / LINKS / "text")
    with pytest.raises(DamagedCacheError, match="cannot be read"):
        read_links(path, texts)


def test_the_fingerprint_tells_texts_and_not_where_they_lie() -> None:
    keys = np.array(["0", "1"], np.dtypes.StringDType())
    one = Links(keys, np.array([1, 1]), np.array([0, 1]))
    other = Links(keys, np.array([1, 1]), np.array([1, 0]))
    assert one.fingerprint(text_rows(["a", "b"])) == other.fingerprint(text_rows(["b", "a"]))
    assert one.fingerprint(text_rows(["a", "b"])) != other.fingerprint(text_rows(["a", "b"]))


def test_columns_of_texts_lie_in_their_own_cache(tmp_path: Path) -> None:
    assert located(tmp_path, "captions/features/x") == (tmp_path / CAPTIONS, "features/x")
    assert located(tmp_path, "features/x") == (tmp_path, "features/x")
