import zipfile
from pathlib import Path

import numpy as np
import pytest

from stages.evaluate.image_sets import ImageSetError, NpzError, NpzFile, NpzImages, write_images

IMAGES = np.random.default_rng(0).integers(0, 256, (11, 6, 6, 3), dtype=np.uint8)
LABELS = np.arange(11)


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    write_images(tmp_path / "images.npz", iter(IMAGES), LABELS)
    return tmp_path / "images.npz"


def test_what_is_written_is_what_numpy_reads(npz: Path) -> None:
    with np.load(npz) as file:
        np.testing.assert_array_equal(file["arr_0"], IMAGES)
        np.testing.assert_array_equal(file["arr_1"], LABELS)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_numpy_writes_is_read_by_rows(tmp_path: Path, save: object) -> None:
    save(tmp_path / "x.npz", IMAGES, LABELS)  # type: ignore[operator]
    file = NpzFile(tmp_path / "x.npz")
    assert file.names == {"arr_0", "arr_1"}
    batches = list(file.rows("arr_0", range(2, 10), 3))
    assert [len(batch) for batch in batches] == [3, 3, 2]
    np.testing.assert_array_equal(np.concatenate(batches), IMAGES[2:10])
    np.testing.assert_array_equal(file.array("arr_1"), LABELS)


def test_images_of_a_file_come_with_channels_first(npz: Path) -> None:
    images = NpzImages(NpzFile(npz))
    assert (len(images), images.side) == (11, 6)
    (batch,) = images.batches(range(4, 7), 8)
    np.testing.assert_array_equal(batch.permute(0, 2, 3, 1), IMAGES[4:7])


@pytest.mark.parametrize(
    ("array", "problem"),
    [
        (IMAGES.astype(np.float32), "float32, expected uint8"),
        (np.asfortranarray(IMAGES), "expected uint8 in C order"),
        (IMAGES[:, :4], r"the shape \[11, 4, 6, 3\], expected \[N, S, S, 3\]"),
        (IMAGES[..., 0], "expected"),
    ],
)
def test_arrays_of_other_kinds_are_refused(tmp_path: Path, array: np.ndarray, problem: str) -> None:
    np.savez(tmp_path / "x.npz", array)
    with pytest.raises((NpzError, ImageSetError), match=problem):
        NpzImages(NpzFile(tmp_path / "x.npz"))


def test_torn_and_other_files_are_refused(tmp_path: Path, npz: Path) -> None:
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(NpzError, match="is no npz file"):
        NpzFile(tmp_path / "text.npz")
    with pytest.raises(NpzError, match="cannot read 'mu'"):
        NpzFile(npz).array("mu")
    with zipfile.ZipFile(tmp_path / "short.npz", "w") as archive:
        content = zipfile.ZipFile(npz).read("arr_0.npy")
        archive.writestr("arr_0.npy", content[:-200])
    with pytest.raises(NpzError, match="'arr_0' ends in row 8"):
        list(NpzFile(tmp_path / "short.npz").rows("arr_0", range(11), 4))


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", mu=np.array([{}], dtype=object))
    with pytest.raises(NpzError, match="allow_pickle"):
        NpzFile(tmp_path / "x.npz").array("mu")
    with pytest.raises(NpzError, match="object"):
        NpzFile(tmp_path / "x.npz").shape("mu")
