"""Every kind of data set through the whole of stage one."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import packing
import pytest
import torch
from marking import few_fast
from odd_images import odd_files, plain, plain_crop

from cache.reader import Cache
from pipeline.config import Config, ConfigError
from stages.encode.build import build
from stages.encode.build_options import BuildOptions
from stages.encode.building import columns
from stages.encode.images.crop_sources import found
from stages.encode.networks.autoencoder import Autoencoder

CPU = torch.device("cpu")
LATENTS = "latents/tiny-vae"
OTHERS = {"imagefolder", "lightningdit", "sample_photos"}
PACKED = [name for name in packing.PACKERS if name not in OTHERS]


def moments_by_image(config: Config, contents: dict[str, bytes]) -> dict[str, np.ndarray]:
    """The cached moments by the hash of the image that they are of."""
    cache = Cache(config.cache.path)
    stored = cache.column(LATENTS, verify=True).read("moments", range(len(cache.rows)))
    hashes = [hashlib.sha256(contents[str(key)]).hexdigest() for key in cache.rows.key]
    return dict(zip(hashes, stored, strict=True))


def pack(name: str, images: Path, tmp_path: Path) -> packing.Packed:
    (tmp_path / "packed").mkdir()
    return packing.PACKERS[name](images, tmp_path / "packed")


@pytest.mark.parametrize("name", few_fast(PACKED, 6))
def test_packed_images_are_encoded_like_those_in_folders(
    name: str, images: Path, tmp_path: Path, tiny: Callable[..., Config]
) -> None:
    packed = pack(name, images, tmp_path)
    plain_config = tiny("train.align=[]", "cache.path=plain.zarr")
    config = tiny(f"dataset.source={packed.source}", f"dataset.path={packed.path}")
    for one in (plain_config, config):
        build(one.encode.model_copy(update={"encoders": {}}), CPU)
    expected = moments_by_image(plain_config, packing.tree(images))
    found = moments_by_image(config, dict(packed.images))
    assert found.keys() == expected.keys()
    for digest, moments in found.items():
        np.testing.assert_allclose(moments, expected[digest], rtol=2e-3, atol=2e-3)


def test_a_build_says_what_it_found_and_what_it_left_out(
    images: Path, tiny: Callable[..., Config], capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny(f"cache.path={images / 'own.zarr'}", "train.align=[]")
    without_encoders = config.encode.model_copy(update={"encoders": {}})
    build(without_encoders, CPU)
    assert f"{images}: 21 images of 3 classes (class0 ... class2)\n" in capsys.readouterr().err
    for name in (".ipynb_checkpoints/1.jpg", "class1/._1.jpg", "class1/notes.txt"):
        packing.write_files(images, {name: b"none"})
    assert build(without_encoders, CPU).counts.shards == 0
    said = capsys.readouterr().err
    assert f"{images}: 21 images of 3 classes (class0 ... class2)\nleft out: 2 hidden (" in said
    assert "1 of a cache or run (own.zarr/)" in said
    assert "1 without an image's suffix (class1/notes.txt)" in said


@pytest.mark.parametrize("name", packing.PACKERS)
def test_images_classes_and_their_names_are_told_of_every_source(
    name: str, images: Path, tmp_path: Path, tiny: Callable[..., Config]
) -> None:
    packed = pack(name, images, tmp_path)
    source = packed.open()
    given = {} if packed.path is None else {"path": packed.path}
    dataset = tiny().dataset.model_copy(update={"source": packed.source, "path": None, **given})
    first, last = source.classes[0], source.classes[-1]
    several = f"{len(source.classes)} classes ({first} ... {last})"
    classes = several if len(source.classes) > 1 else f"1 class ({first})"
    assert (
        found(source, dataset)
        == f"{packed.path or name.replace('_', '-')}: {len(packed.images):,} images of {classes}"
    )


def test_numbers_of_classes_that_no_image_has_are_told(
    tmp_path: Path, tiny: Callable[..., Config]
) -> None:
    files = {"1.jpg": b"", "1.cls": b"1", "2.jpg": b"", "2.cls": b"4"}
    source = packing.opened("tar", packing.write_tar(tmp_path / "x.tar", files))
    assert found(source, tiny().dataset).endswith(
        "2 images of 5 classes (0 ... 4), 3 of them without images, as 0"
    )


def test_rows_of_parquet_files_lie_by_row_groups(
    images: Path, tmp_path: Path, tiny: Callable[..., Config]
) -> None:
    packed = pack("parquet_of_datasets", images, tmp_path)
    config = tiny(f"dataset.source={packed.source}", f"dataset.path={packed.path}")
    build(config.encode.model_copy(update={"encoders": {}}), CPU)
    index = Cache(config.cache.path).rows.source_index
    block = packed.open().block_rows
    assert block > 1
    assert sorted(index) == list(range(21))
    together = (np.diff(index) == 1).sum()
    assert together >= 21 - len(index) // block - 2
    assert index.tolist() != sorted(index)


@pytest.fixture(params=["folders", "hdf5"])
def published(
    request: pytest.FixtureRequest, images: Path, tmp_path: Path, tiny: Callable[..., Config]
) -> Config:
    """What REPA's or REPA-E's preprocessing left, with moments of the right size."""
    packed = packing.repa(images, tmp_path / "repa")
    generator = np.random.default_rng(0)
    for file in (packed.path / "vae-sd").rglob("*.npy"):
        np.save(file, abs(generator.normal(size=(8, 8, 8))).astype(np.float32))
    name = "vae-sd"
    if request.param == "hdf5":
        packing.into_hdf5(packed.path / "images")
        shutil.rmtree(packed.path / "images")
        (packed.path / "vae-sd").rename(packed.path / "invae")
        packing.into_hdf5(packed.path / "invae")
        # What is compared with.
        (packed.path / "invae").rename(packed.path / "vae-sd")
        name = "invae"
    return tiny(
        "dataset.source=repa",
        f"dataset.path={packed.path}",
        f"dataset.moments={name}",
        "latents.imported=true",
        "dataset.pixels=true",
    )


def test_moments_of_the_published_preprocessing_are_kept_and_not_made_again(
    published: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def encode(*_: object) -> None:
        raise AssertionError("the autoencoder ran")

    monkeypatch.setattr(Autoencoder, "encode", encode)
    monkeypatch.setattr(columns, "Autoencoder", encode)
    assert build(published.encode, CPU).missing == 0
    cache = Cache(published.cache.path)
    column = cache.column(LATENTS)
    assert column.column.recipe["imported"] is True
    assert column.column.recipe["scaling_factor"] == 0.5
    for row, key in enumerate(cache.rows.key):
        number = int(str(key)[-12:-4])
        file = next((published.dataset.path / "vae-sd").rglob(f"*-{number:08d}.npy"))
        stored = column.read("moments", [row])[0]
        np.testing.assert_array_equal(stored, np.load(file).astype(np.float16))


def test_moments_of_another_size_are_refused(published: Config) -> None:
    folder = published.dataset.path / "vae-sd"
    for file in folder.rglob("*.npy"):
        np.save(file, np.ones((8, 4, 4), np.float32))
    if published.dataset.moments == "invae":
        packing.into_hdf5(folder).replace(folder.with_name("invae.h5"))
    with pytest.raises(Exception, match=r"\[8, 4, 4\].* \[8, 8, 8\]"):
        build(published.encode, CPU)


def test_imported_latents_need_a_source_that_has_them(tiny: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError, match=r"latents\.imported: only the sources 'repa', 'u-vit', "):
        tiny("latents.imported=true")
    with pytest.raises(ConfigError, match=r"no imported latents of mirrored images"):
        tiny("latents.imported=true", "dataset.flip=true", "dataset.source=repa")


@pytest.mark.slow
def test_a_hundred_odd_images_come_through(
    images: Path, tmp_path: Path, tiny: Callable[..., Config]
) -> None:
    files = dict(odd_files())
    (tmp_path / "odd" / "class0").mkdir(parents=True)
    for name, content in files.items():
        (tmp_path / "odd" / "class0" / name).write_bytes(content)
    config = tiny(
        f"dataset.path={tmp_path / 'odd'}",
        "dataset.pixels=true",
        "cache.rows_per_shard=32",
        "build.batch_size=16",
        'dataset.on_error="skip"',
    )
    assert images.exists()
    made = build(config.encode, CPU)
    assert made.invalid == {}
    assert made.rows == len(files) >= 100
    cache = Cache(config.cache.path)
    crops = cache.column("pixels/crops", verify=True).read("pixels", range(made.rows))
    for key, crop in zip(cache.rows.key, crops, strict=True):
        expected = plain_crop(plain(files[str(key).removeprefix("class0/")]), 32)
        np.testing.assert_array_equal(crop.transpose(1, 2, 0), expected)


def test_a_slice_of_the_shards_is_built_and_the_rest_later(tiny: Callable[..., Config]) -> None:
    config = tiny()
    made = build(config.encode, CPU, BuildOptions(shards=slice(1, 2)))
    assert (made.counts.shards, made.missing) == (2, 4)
    assert build(config.encode, CPU, BuildOptions(shards=slice(0, 2))).missing == 2
    assert build(config.encode, CPU).counts.shards == 2
