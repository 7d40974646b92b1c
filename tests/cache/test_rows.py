from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from tiny_cache import ROWS_PER_SHARD, SEED, make_rows

from cache.changes import compare, merged
from cache.errors import DamagedCacheError, RowsChangedError
from cache.files import atomic_folder, recover
from cache.rows import RowTable, create_cache, read_rows, write_rows


def changed(rows: RowTable, image: str, **values: object) -> RowTable:
    """The table with other values for one key."""
    place = rows.key.tolist().index(image)
    arrays = {name: getattr(rows, name).copy() for name in values}
    for name, value in values.items():
        arrays[name][place] = value
    return replace(rows, **arrays)


def test_a_data_set_that_is_the_same_in_another_order_has_not_changed(tmp_path: Path) -> None:
    rows = make_rows()
    changes = compare(rows, rows.permuted(seed=9))
    assert changes == compare(rows, rows)
    changes.check(tmp_path, may_update=False)


def test_changed_vanished_relabelled_and_added_images_are_named() -> None:
    current = changed(make_rows(23), "n0/photo ü 3.jpg", content_hash=1)
    current = changed(current, "n1/photo ü 4.jpg", key="n1/another.jpg")
    current = changed(current, "n2/photo ü 5.jpg", label=0)
    changes = compare(make_rows(), current)
    assert changes.changed == ("n0/photo ü 3.jpg",)
    assert changes.vanished == ("n1/photo ü 4.jpg",)
    assert changes.relabelled == ("n2/photo ü 5.jpg",)
    assert set(changes.added) == {"n1/another.jpg", "n0/photo ü 21.jpg", "n1/photo ü 22.jpg"}


def test_a_class_of_another_name_relabels_its_images() -> None:
    rows = make_rows()
    changes = compare(rows, replace(rows, classes=("a", "x", "c")))
    assert len(changes.relabelled) == 7
    assert all(key.startswith("n1/") for key in changes.relabelled)


def test_classes_that_move_labels_are_named(tmp_path: Path) -> None:
    rows = make_rows()
    shifted = replace(rows, label=rows.label + 1, classes=("extra", *rows.classes))
    with pytest.raises(RowsChangedError, match=r"21 labelled .*others \(new: extra\), which moves"):
        compare(rows, shifted).check(tmp_path, may_update=False)
    with pytest.raises(RowsChangedError, match=r"21 labelled .*others \(gone: extra\)"):
        compare(shifted, rows).check(tmp_path, may_update=False)


def test_what_changed_is_refused_with_counts_unless_it_may_be_taken_over(tmp_path: Path) -> None:
    rows = make_rows()
    keys = rows.key.tolist()
    current = rows
    for key in keys[:7]:
        current = changed(current, key, content_hash=2)
    changes = compare(rows, current)
    with pytest.raises(RowsChangedError, match=r"7 changed: .* and 2 more.*--update"):
        changes.check(tmp_path, may_update=False)
    changes.check(tmp_path, may_update=True)
    lost = compare(make_rows(23), rows)
    with pytest.raises(RowsChangedError, match="2 vanished") as error:
        lost.check(tmp_path, may_update=True)
    assert "--update" not in str(error.value)


@given(added=st.integers(0, 40))
def test_added_images_follow_the_rows_that_are_there(added: int) -> None:
    cached, current = make_rows(21), make_rows(21 + added)
    rows = merged(cached, current, SEED)
    assert rows.key[:21].tolist() == cached.key.tolist()
    assert sorted(rows.key.tolist()) == sorted(current.key.tolist())
    for name in ("label", "content_hash", "source_index", "stamp"):
        by_key = dict(zip(current.key.tolist(), getattr(current, name).tolist(), strict=True))
        assert getattr(rows, name).tolist() == [by_key[key] for key in rows.key.tolist()]


def test_added_images_are_permuted_and_the_same_way_every_time() -> None:
    rows = merged(make_rows(21), make_rows(61), SEED)
    assert rows.key[21:].tolist() != sorted(rows.key[21:].tolist())
    assert rows.equals(merged(make_rows(21), make_rows(61), SEED))


def test_the_table_is_replaced_in_one_step_and_recovers_in_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.zarr"
    create_cache(path, make_rows(), ROWS_PER_SHARD, SEED)
    write_rows(path, make_rows(30))
    assert read_rows(path).equals(make_rows(30))

    class PowerFailureError(BaseException):
        pass

    real = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if target == path / "rows":
            raise PowerFailureError
        return real(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(PowerFailureError), atomic_folder(path / "rows"):
        pass
    monkeypatch.undo()
    recover(path / "rows")
    assert read_rows(path).equals(make_rows(30))
    assert sorted(entry.name for entry in path.iterdir()) == [
        "features",
        "latents",
        "pixels",
        "rows",
        "zarr.json",
    ]


def test_an_edited_table_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.zarr"
    create_cache(path, make_rows(), ROWS_PER_SHARD, SEED)
    labels = zarr.open_array(path / "rows/label", mode="r+")
    labels[7] = (labels[7] + 1) % 3
    with pytest.raises(DamagedCacheError, match="were edited"):
        read_rows(path)


@pytest.mark.parametrize("name", ["key", "label", "source_index", "content_hash", "stamp"])
def test_a_flipped_bit_in_the_table_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.zarr"
    create_cache(path, make_rows(), ROWS_PER_SHARD, SEED)
    (file,) = (entry for entry in (path / "rows" / name / "c").rglob("*") if entry.is_file())
    content = bytearray(file.read_bytes())
    for position in np.random.default_rng(0).integers(0, len(content), 5).tolist():
        content[position] ^= 4
        file.write_bytes(content)
        with pytest.raises(DamagedCacheError):
            read_rows(path)
        content[position] ^= 4
