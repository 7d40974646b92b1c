"""What a cache holds beside latents and tokens of the images: mirrored views, and the crops."""

import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from marking import few_fast
from runs import cached_batches
from tiny_cache import content

from cache.errors import DamagedCacheError
from cache.reader import Cache
from pipeline.config import Config, ConfigError
from stages.encode.build import BuildSummary, build, find_columns
from stages.encode.build_options import BuildOptions
from stages.encode.building.columns import load_makers
from stages.encode.images.crop import centre_crop, decode
from stages.encode.images.crop_batches import CropReader, Crops
from stages.placement import Placement
from stages.vision import timm

CPU = torch.device("cpu")
LATENTS, FEATURES = "latents/tiny-vae", "features/efficientnet-lite0"
PIXELS = "pixels/crops"


def built_by(config: Config, options: BuildOptions | None = None) -> BuildSummary:
    return build(config.encode, CPU, options)


def crop_of(config: Config, row: int) -> np.ndarray:
    key = str(Cache(config.cache.path).rows.key[row])
    return centre_crop(decode((config.dataset.path / key).read_bytes()), 32)


@pytest.mark.parametrize("storage", ["float16", "int8"])
def test_the_mirrored_images_are_encoded_and_not_their_tensors_mirrored(
    tiny: Callable[..., Config], storage: str
) -> None:
    config = tiny("dataset.flip=true", f"encoders.efficientnet-lite0.storage={storage}")
    assert built_by(config).counts.shards == 12
    cache = Cache(config.cache.path)
    makers = {maker.column: maker for maker in load_makers(config.encode, CPU)}
    for row in range(0, len(cache.rows), 4):
        image = torch.tensor(np.ascontiguousarray(crop_of(config, row)[:, ::-1]))
        crops = Crops.of(image.permute(2, 0, 1)[None])
        for name in (LATENTS, FEATURES):
            maker = makers[name]
            fresh = maker.network(crops)[maker.array].flatten()
            stored = cache.column(f"{name}.flipped").values(maker.array, [row])
            plain = cache.column(name).values(maker.array, [row])
            cosines = [
                torch.cosine_similarity(torch.from_numpy(other).flatten(), fresh, dim=0)
                for other in (stored, plain)
            ]
            assert cosines[0] > 0.9999
            assert cosines[1] < 0.99


def test_flipping_later_encodes_nothing_but_the_mirrored_images(
    tiny: Callable[..., Config],
) -> None:
    built_by(tiny())
    assert built_by(tiny("dataset.flip=true")).counts.shards == 6
    assert built_by(tiny()).counts.shards == 0
    whole = tiny("dataset.flip=true", "cache.path=whole.zarr")
    built_by(whole)
    assert content(tiny().cache.path) == content(whole.cache.path)


def test_rebuilding_an_encoder_means_both_views(tiny: Callable[..., Config]) -> None:
    settings = tiny("dataset.flip=true").encode
    assert find_columns(settings, ["tiny-vae"]) == {LATENTS, f"{LATENTS}.flipped"}
    assert find_columns(settings, [f"{LATENTS}.flipped"]) == {f"{LATENTS}.flipped"}


@pytest.mark.parametrize("storage", few_fast(["int8", "float16"]))
def test_training_draws_either_view_of_an_image(tiny: Callable[..., Config], storage: str) -> None:
    config = tiny("dataset.flip=true", f"encoders.efficientnet-lite0.storage={storage}")
    built_by(config)
    cache, seen = Cache(config.cache.path), []
    with closing(cached_batches(config, Placement(CPU))) as batches:
        for step in range(30):
            batch = batches.read(step)
            views, rows = np.divmod(batches.rows(step), len(cache.rows))
            seen += views.tolist()
            assert batch["labels"].tolist() == cache.rows.label[rows].tolist()
            for place, (view, row) in enumerate(zip(views, rows, strict=True)):
                suffix = ".flipped" if view else ""
                moments = cache.column(LATENTS + suffix).read("moments", [row])[0]
                np.testing.assert_array_equal(batch["moments"][place].numpy(), moments)
                tokens = torch.from_numpy(cache.column(FEATURES + suffix).values("tokens", [row]))
                cosine = torch.cosine_similarity(
                    batch["efficientnet-lite0/directions"][place], tokens[0], dim=-1
                )
                assert cosine.min() > 0.9999
    assert 0.35 < np.mean(seen) < 0.65


def test_the_views_do_not_depend_on_the_number_of_ranks(tiny: Callable[..., Config]) -> None:
    config = tiny("dataset.flip=true")
    built_by(config)
    rows = []
    for rank, world in ((0, 1), (0, 2), (1, 2)):
        place = Placement(CPU, rank, world)
        with closing(cached_batches(config, place)) as batches:
            rows.append(batches.rows(3))
    np.testing.assert_array_equal(rows[0], np.concatenate(rows[1:]))


@pytest.fixture
def kept(tiny: Callable[..., Config]) -> Config:
    """A cache with the crops, and without any encoder."""
    config = tiny("dataset.pixels=true")
    built_by(config.model_copy(update={"encoders": {}}))
    return config


def test_the_crops_are_kept_to_the_pixel(kept: Config) -> None:
    cache = Cache(kept.cache.path)
    stored = cache.column(PIXELS, verify=True).read("pixels", range(21))
    for row in range(21):
        np.testing.assert_array_equal(stored[row].transpose(1, 2, 0), crop_of(kept, row))


def test_an_encoder_is_added_from_the_crops_alone(
    kept: Config, tiny: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tiny("dataset.pixels=true", "cache.path=whole.zarr")
    built_by(whole)

    def decoded(*_: object) -> None:
        raise AssertionError("an image was decoded")

    monkeypatch.setattr(CropReader, "_decoded_crop", decoded)
    kept.dataset.path.rename(kept.dataset.path.with_name("gone"))
    assert built_by(tiny("dataset.pixels=true")).counts.shards == 3
    assert content(kept.cache.path) == content(whole.cache.path)


def test_images_that_are_gone_are_missed_where_crops_are(
    kept: Config, tiny: Callable[..., Config]
) -> None:
    (kept.cache.path / PIXELS / "ledger/c.1.0").unlink()
    kept.dataset.path.rename(kept.dataset.path.with_name("gone"))
    with pytest.raises(Exception, match="no folder"):
        built_by(tiny("dataset.pixels=true"))
    shutil.rmtree(kept.cache.path)
    with pytest.raises(ConfigError, match=r"dataset\.path: there is no"):
        tiny("dataset.pixels=true")


def test_damaged_crops_are_decoded_again_or_refused(
    kept: Config, tiny: Callable[..., Config]
) -> None:
    whole = tiny("dataset.pixels=true", "cache.path=whole.zarr")
    built_by(whole)
    file = kept.cache.path / PIXELS / "pixels/c.1.0.0.0"
    file.write_bytes(file.read_bytes()[:100] + b"x" + file.read_bytes()[101:])
    built_by(tiny("dataset.pixels=true"))
    assert content(kept.cache.path / FEATURES) == content(whole.cache.path / FEATURES)
    assert built_by(tiny("dataset.pixels=true"), BuildOptions(repair=True)).counts.shards == 1
    assert content(kept.cache.path) == content(whole.cache.path)
    file.write_bytes(file.read_bytes()[:100] + b"x" + file.read_bytes()[101:])
    shutil.rmtree(kept.cache.path / FEATURES)
    kept.dataset.path.rename(kept.dataset.path.with_name("gone"))
    with pytest.raises(DamagedCacheError, match="cannot be decompressed"):
        built_by(tiny("dataset.pixels=true"))


def test_images_that_were_added_are_decoded_and_the_others_are_not(
    kept: Config, tiny: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []
    real = CropReader._decoded_crop

    def crop(self: CropReader, row: int) -> object:
        decoded.append(row)
        return real(self, row)

    monkeypatch.setattr(CropReader, "_decoded_crop", crop)
    shutil.copy(kept.dataset.path / "class1/3.jpg", kept.dataset.path / "class1/8.jpg")
    built_by(tiny("dataset.pixels=true"))
    # The last shard was not full, and is made again from its first new row on.
    assert set(decoded) <= set(range(16, 22))


@pytest.mark.slow
def test_class_tokens_are_kept_beside_the_tokens_of_any_timm_model(
    tiny: Callable[..., Config], images: Path
) -> None:
    name, weights = "vit_tiny_patch16_224.augreg_in21k", images.parent / "vit.pth"
    torch.save(timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict(), weights)
    settings = {"storage": "int8", "input_size": 64, "weights": weights}
    overrides = [f'encoders."{name}".{key}={value}' for key, value in settings.items()]
    both, added = tiny(*overrides, "cache.path=both.zarr"), tiny(*overrides)
    built_by(both)
    built_by(tiny())
    assert built_by(added).counts.shards == 3
    assert content(added.cache.path) == content(both.cache.path)
    cache = Cache(added.cache.path)
    column = cache.column(f"features/{name}", verify=True)
    assert [a.name for a in column.column.arrays] == [
        "tokens",
        "token_scale",
        "class_token",
        "valid",
    ]
    maker = next(m for m in load_makers(added.encode, CPU) if m.column == f"features/{name}")
    crops = Crops.of(torch.tensor(crop_of(added, 5)).permute(2, 0, 1)[None])
    for array, fresh in maker.network(crops).items():
        stored = column.values(array, [5]) if array == "tokens" else column.read(array, [5])
        cosine = torch.cosine_similarity(torch.from_numpy(stored).float(), fresh, dim=-1)
        assert cosine.min() > 0.999, array
