import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from tiny import save_jpeg
from tiny_cache import content

from cache.errors import RowsChangedError, StaleCacheError
from cache.reader import Cache
from pipeline.config import Config
from stages.encode.build import BuildSummary, build
from stages.encode.building.columns import load_makers
from stages.encode.images import crop_batches
from stages.encode.images.crop import centre_crop, decode
from stages.encode.images.crop_batches import Crops, ImageError
from stages.encode.networks.frozen_encoder import EncoderError

CPU = torch.device("cpu")
FEATURES = "features/efficientnet-lite0"
LATENTS = "latents/tiny-vae"


def built_by(config: Config) -> BuildSummary:
    return build(config.encode, CPU)


def test_every_row_holds_the_tensors_of_its_own_image(tiny: Callable[..., Config]) -> None:
    config = tiny()
    assert built_by(config).counts.shards == 6
    cache = Cache(config.cache.path)
    assert sorted(cache.rows.key.tolist()) != cache.rows.key.tolist()
    makers = {maker.column: maker for maker in load_makers(config.encode, CPU)}
    for row in range(len(cache.rows)):
        file = config.dataset.path / str(cache.rows.key[row])
        pixels = torch.tensor(centre_crop(decode(file.read_bytes()), 32))
        for column, array in ((LATENTS, "moments"), (FEATURES, "tokens")):
            fresh = makers[column].encode(Crops.of(pixels.permute(2, 0, 1)[None]), {})[array]
            stored = cache.column(column).read(array, [row])
            np.testing.assert_allclose(stored, fresh, rtol=2e-3, atol=2e-3)
        assert cache.rows.classes[cache.rows.label[row]] == str(cache.rows.key[row]).split("/")[0]


def test_plain_zarr_python_reads_what_the_reader_reads(built: Path) -> None:
    cache, group = Cache(built / "tiny.zarr"), zarr.open_group(built / "tiny.zarr", mode="r")
    for column, array in ((LATENTS, "moments"), (FEATURES, "tokens")):
        stored = group[f"{column}/{array}"][:]
        assert np.isfinite(stored).all()
        np.testing.assert_array_equal(
            stored, cache.column(column).read(array, range(len(cache.rows)))
        )
    np.testing.assert_array_equal(group["rows/key"][:], cache.rows.key)


def test_a_second_build_makes_nothing(tiny: Callable[..., Config]) -> None:
    built_by(tiny())
    before = content(tiny().cache.path)
    assert built_by(tiny()).counts.shards == 0
    assert content(tiny().cache.path) == before


def test_only_missing_shards_are_made_and_they_come_out_the_same(
    tiny: Callable[..., Config],
) -> None:
    config = tiny()
    built_by(config)
    before = content(config.cache.path)
    (config.cache.path / FEATURES / "ledger" / "c.1.0").unlink()
    assert built_by(config).counts.shards == 1
    assert content(config.cache.path) == before


def test_a_build_that_was_stopped_anywhere_goes_on(
    tiny: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, stopped = tiny("cache.path=whole.zarr"), tiny()
    built_by(whole)
    real, calls = crop_batches.decode, 0

    def interrupted(file: bytes) -> object:
        nonlocal calls
        calls += 1
        if calls >= 11:
            raise KeyboardInterrupt
        return real(file)

    monkeypatch.setattr(crop_batches, "decode", interrupted)
    interruptions = 0
    while interruptions < 20:
        calls = 0
        try:
            built_by(stopped)
        except KeyboardInterrupt:
            interruptions += 1
            continue
        break
    assert 2 <= interruptions < 20
    assert content(stopped.cache.path) == content(whole.cache.path)


def test_adding_an_encoder_encodes_only_that_one(tiny: Callable[..., Config]) -> None:
    both, one = tiny("cache.path=both.zarr"), tiny()
    built_by(both)
    assert built_by(one.model_copy(update={"encoders": {}})).counts.shards == 3
    assert built_by(one).counts.shards == 3
    assert content(one.cache.path) == content(both.cache.path)


def test_the_batch_size_and_the_number_of_threads_change_no_recipe(
    tiny: Callable[..., Config],
) -> None:
    built_by(tiny())
    assert built_by(tiny("build.batch_size=7", "build.threads=1")).counts.shards == 0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("encoders.efficientnet-lite0.input_size=96", "input_size: cache 64, configuration 96"),
        ("dataset.resolution=16", "resolution: cache 32, configuration 16"),
        ("cache.rows_per_shard=16", "rows_per_shard: cache 8, configuration 16"),
        ("cache.seed=1", "permutation_seed: cache 0, configuration 1"),
    ],
)
def test_a_cache_of_other_settings_is_refused_and_kept(
    tiny: Callable[..., Config], override: str, message: str
) -> None:
    built_by(tiny())
    before = content(tiny().cache.path)
    with pytest.raises(StaleCacheError, match=message):
        built_by(tiny(override, "train.align=[]"))
    assert content(tiny().cache.path) == before


def test_other_weights_are_refused(tiny: Callable[..., Config], tiny_vae: Path) -> None:
    built_by(tiny())
    other = tiny().dataset.path.parent / tiny_vae.name
    shutil.copytree(tiny_vae, other)
    from stages.vision import AutoencoderKL

    model = AutoencoderKL.from_pretrained(other, low_cpu_mem_usage=False)
    model.decoder.conv_out.bias.data += 1
    model.save_pretrained(other)
    with pytest.raises(StaleCacheError, match="weights_sha256: cache"):
        built_by(tiny(f"latents.vae={other}"))


def test_an_edited_image_is_named(tiny: Callable[..., Config], images: Path) -> None:
    built_by(tiny())
    save_jpeg(images / "class1" / "3.jpg", seed=1)
    save_jpeg(images / "class2" / "new.jpg", seed=2)
    with pytest.raises(RowsChangedError, match=r"1 changed: class1/3\.jpg\)"):
        built_by(tiny())


def test_a_broken_image_is_named_and_the_build_goes_on_after_it_is_mended(
    tiny: Callable[..., Config], images: Path
) -> None:
    broken = images / "class0" / "4.jpg"
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ImageError, match=r"class0/4\.jpg cannot be decoded"):
        built_by(tiny())
    broken.unlink()
    with pytest.raises(RowsChangedError, match=r"1 vanished: class0/4\.jpg"):
        built_by(tiny())


def test_a_build_that_cannot_load_a_network_writes_nothing(tiny: Callable[..., Config]) -> None:
    config = tiny()
    weights = config.dataset.path.parent / "weights.pth"
    torch.save({}, weights)
    with pytest.raises(EncoderError, match="holds other weights"):
        built_by(tiny(f"encoders.efficientnet-lite0.weights={weights}"))
    assert not config.cache.path.exists()
