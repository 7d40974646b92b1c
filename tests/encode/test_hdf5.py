"""REPA-E's HDF5 files where they are not what they should be."""

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import packing
import pytest

from stages.encode.images.sources import Source, SourceError, named_files


@pytest.fixture
def data(images: Path, tmp_path: Path) -> Path:
    """21 images, the moments of each full of its number."""
    (tmp_path / "data").mkdir()
    packing.repa_e(images, tmp_path / "data")
    return tmp_path / "data"


def opened(path: Path) -> Source:
    return packing.opened("repa", path)


def test_moments_belong_to_the_image_with_their_number(data: Path) -> None:
    source = opened(data)
    assert source.latents is not None
    for index in range(21):
        np.testing.assert_array_equal(source.latents(index), np.full((8, 4, 4), index))


def test_moments_of_as_many_channels_as_there_are(data: Path) -> None:
    with h5py.File(data / "vae-sd.h5", "a") as file:
        for name in json.loads((data / "vae-sd_h5.json").read_text()):
            if name.endswith(".npy"):
                del file[name]
                file[name] = np.ones((1, 64, 2, 2), np.float32)
    latents = opened(data).latents
    assert latents is not None
    assert latents(20).shape == (64, 2, 2)


@pytest.mark.parametrize("shape", [(7, 4, 4), (0, 4, 4), (8, 4)])
def test_misshapen_moments_are_refused_by_name(data: Path, shape: tuple[int, ...]) -> None:
    name = "00000/img-mean-std-00000003.npy"
    with h5py.File(data / "vae-sd.h5", "a") as file:
        del file[name]
        file[name] = np.ones(shape, np.float32)
    source = opened(data)
    assert source.latents is not None
    with pytest.raises(SourceError, match=name):
        source.latents(3)


def test_what_claims_more_than_the_file_has_is_refused(data: Path) -> None:
    name = "00000/img-mean-std-00000003.npy"
    with h5py.File(data / "vae-sd.h5", "a") as file:
        del file[name]
        file.create_dataset(name, (8, 4096, 4096), np.float32, chunks=(8, 64, 64))
    source = opened(data)
    assert source.latents is not None
    with pytest.raises(SourceError, match="claims 536870912 bytes"):
        source.latents(3)


def test_a_name_that_is_listed_alone_is_an_error(data: Path) -> None:
    with h5py.File(data / "images.h5", "a") as file:
        del file["00000/img00000003.jpg"]
    with pytest.raises(SourceError, match=r"00000/img00000003\.jpg is not there"):
        opened(data).read(3)


@pytest.mark.parametrize("content", [None, "[", "{}", "[1]"])
def test_a_file_without_its_list_is_refused(data: Path, content: str | None) -> None:
    listing = data / "images_h5.json"
    listing.unlink()
    if content is not None:
        listing.write_text(content)
    with pytest.raises(SourceError, match=r"images_h5\.json: (no list|expected a list)"):
        opened(data)


def test_what_is_no_hdf5_is_refused(data: Path) -> None:
    (data / "images.h5").write_bytes(b"no HDF5")
    with pytest.raises(SourceError, match=r"images\.h5"):
        opened(data)


def test_the_package_is_named_where_it_is_missing(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(named_files, "is_installed", lambda _: False)
    with pytest.raises(SourceError, match=r"pip install 'repa-cache\[hdf5\]'"):
        opened(data)


def test_an_image_that_changes_makes_all_of_them_be_read_again(data: Path) -> None:
    before = opened(data).stamp(0)
    shutil.copy(data / "images.h5", data / "new.h5")
    (data / "new.h5").replace(data / "images.h5")
    assert opened(data).stamp(0) != before
