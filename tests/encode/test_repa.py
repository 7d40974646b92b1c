import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import packing
import pytest
from packing import repa as pack

from stages.encode.images.sources import Source, SourceError


@pytest.fixture
def data(images: Path, tmp_path: Path) -> Path:
    """21 images, the moments of each full of its number."""
    (tmp_path / "data").mkdir()
    pack(images, tmp_path / "data")
    return tmp_path / "data"


def opened(path: Path) -> Source:
    return packing.opened("repa", path)


def moments_file(data: Path, number: int) -> Path:
    return data / "vae-sd" / f"{number // 8:05d}" / f"img-mean-std-{number:08d}.npy"


def relabel(listing: Path, name: str, label: int | None) -> None:
    labels = dict(json.loads(listing.read_text())["labels"])
    labels.pop(name)
    if label is not None:
        labels[name] = label
    listing.write_text(json.dumps({"labels": list(labels.items())}))


def test_moments_belong_to_the_image_with_their_number(data: Path) -> None:
    # Names and folders whose order is not that of the numbers.
    for number in (3, 20):
        target = data / "vae-sd" / "aside" / f"img-mean-std-{number}.npy"
        target.parent.mkdir(exist_ok=True)
        moments_file(data, number).rename(target)
    (data / "vae-sd" / "dataset.json").unlink()
    source = opened(data)
    assert source.latents is not None
    with ThreadPoolExecutor(8) as pool:
        for index, moments in enumerate(pool.map(source.latents, range(21))):
            assert moments.dtype == np.float32
            np.testing.assert_array_equal(moments, np.full((8, 4, 4), index))
    assert source.keys[20] == "00002/img00000020.jpg"


def test_half_precision_and_a_batch_of_one_are_accepted(data: Path) -> None:
    np.save(moments_file(data, 5), np.full((1, 8, 4, 4), 5, np.float16))
    moments = opened(data).latents
    assert moments is not None
    assert moments(5).dtype == np.float32
    np.testing.assert_array_equal(moments(5), moments(4) + 1)


def test_without_moments_there_are_none(data: Path) -> None:
    shutil.rmtree(data / "vae-sd")
    assert opened(data).latents is None


def test_the_listing_may_lie_beside_the_images(data: Path) -> None:
    inside = opened(data)
    (data / "images" / "dataset.json").rename(data / "dataset.json")
    beside = opened(data)
    assert (beside.keys, beside.labels.tolist()) == (inside.keys, inside.labels.tolist())


@pytest.mark.parametrize(
    "moments",
    [
        np.zeros((4, 4, 4), np.float32),
        np.zeros((8, 4, 8), np.float32),
        np.zeros((2, 8, 4, 4), np.float32),
        np.zeros((8, 4, 4), np.float64),
        np.zeros((8, 4, 4), np.int32),
        np.full((8, 4, 4), np.nan, np.float32),
        np.full((8, 4, 4), -1, np.float32),
        np.zeros((), np.float32),
    ],
)
def test_misshapen_moments_are_refused_by_name(data: Path, moments: np.ndarray) -> None:
    source = opened(data)
    np.save(moments_file(data, 7), moments)
    assert source.latents is not None
    with pytest.raises(SourceError, match=r"img-mean-std-00000007\.npy"):
        source.latents(7)


def _lost(path: Path) -> None:
    path.unlink()


def _cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _pickled(path: Path) -> None:
    np.save(path, np.array([{}] * 8, object), allow_pickle=True)


def _several(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, np.zeros((8, 4, 4), np.float32))


def _huge(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"(8, 4, 4), }      ", b"(8, 4, 4000000), }"))


def _garbled(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"}", b" "))


@pytest.mark.parametrize("plant", [_lost, _cut_off, _empty, _garbled, _pickled, _several, _huge])
def test_a_file_that_is_no_array_is_refused_by_name(data: Path, plant: object) -> None:
    source = opened(data)
    plant(moments_file(data, 7))
    assert source.latents is not None
    with pytest.raises(SourceError, match=r"img-mean-std-00000007\.npy"):
        source.latents(7)


def test_images_and_moments_have_to_be_of_each_other(data: Path) -> None:
    moments_file(data, 7).unlink()
    with pytest.raises(SourceError, match="image or moments of number 7 are missing, and 0 more"):
        opened(data)
    np.save(moments_file(data, 7), np.zeros((8, 4, 4), np.float32))
    np.save(data / "vae-sd" / "img-mean-std-30.npy", np.zeros((8, 4, 4), np.float32))
    with pytest.raises(SourceError, match="number 30"):
        opened(data)


def test_two_files_of_one_number_are_refused(data: Path) -> None:
    shutil.copy(moments_file(data, 7), data / "vae-sd" / "img-mean-std-7.npy")
    with pytest.raises(SourceError, match="has no number of its own"):
        opened(data)


@pytest.mark.parametrize("label", [None, 2])
def test_moments_that_are_labelled_otherwise_are_refused(data: Path, label: int | None) -> None:
    name = moments_file(data, 3).relative_to(data / "vae-sd").as_posix()
    relabel(data / "vae-sd" / "dataset.json", name, label)
    with pytest.raises(SourceError, match="image 3 has label 0, but its moments have not"):
        opened(data)


def test_images_have_to_be_those_that_are_labelled(data: Path) -> None:
    image = data / "images" / "00000" / "img00000003.jpg"
    content = image.read_bytes()
    image.unlink()
    with pytest.raises(SourceError, match=r"no such image for '00000/img00000003\.jpg'"):
        opened(data)
    image.write_bytes(content)
    relabel(data / "images" / "dataset.json", "00000/img00000003.jpg", None)
    with pytest.raises(SourceError, match=r"no label for '00000/img00000003\.jpg'"):
        opened(data)


def test_a_label_for_a_file_outside_is_refused(data: Path) -> None:
    listing = data / "images" / "dataset.json"
    relabel(listing, "00000/img00000003.jpg", None)
    listing.write_text(listing.read_text().replace("00000/img00000004", "../images/4"))
    with pytest.raises(SourceError, match="is refused"):
        opened(data)


def test_a_folder_without_a_listing_is_refused(data: Path) -> None:
    (data / "images" / "dataset.json").unlink()
    with pytest.raises(SourceError, match=r"images: no dataset\.json"):
        opened(data)
