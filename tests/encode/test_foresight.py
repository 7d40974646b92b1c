import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from marking import few_fast
from packing import repa as pack
from safetensors.torch import save_file
from tiny import save_jpeg

from cache.errors import StaleCacheError
from cache.storage import FLOAT_STORAGES
from pipeline.config import Config
from stages.encode.build import build
from stages.encode.build_settings import EncodeSettings
from stages.encode.images.sources import SourceError
from stages.encode.measuring.foresight import count_images, foresee
from stages.encode.networks.registry import find_encoder
from stages.encode.networks.timm_library import create_network

CPU = torch.device("cpu")
VIT = "test_vit.r160_in1k"


def foreseen(settings: EncodeSettings, count: int | None = None) -> dict[str, tuple]:
    """What is said of every column: its arrays, constants, and what is missing."""
    return {
        one.column.name: (
            one.column.arrays,
            sorted(one.column.constants),
            one.missing_rows,
            one.missing_shards,
        )
        for one in foresee(settings, count_images(settings, count))
    }


@pytest.mark.parametrize("storage", few_fast(FLOAT_STORAGES))
def test_columns_are_those_that_a_build_makes(
    tiny: Callable[..., Config], tmp_path: Path, storage: str
) -> None:
    save_file(create_network(find_encoder(VIT), 64).state_dict(), tmp_path / "w.safetensors")
    config = tiny(
        "dataset.flip=true",
        "dataset.pixels=true",
        f"encoders.efficientnet-lite0.storage={storage}",
        f'encoders."{VIT}".storage={storage}',
        f'encoders."{VIT}".input_size=64',
        f'encoders."{VIT}".weights=w.safetensors',
    ).encode
    before = foreseen(config)
    made = {
        column.name: (column.arrays, sorted(column.constants), column.rows, column.shards)
        for column in build(config, CPU).columns
    }
    assert before == made
    assert [array.name for array in made[f"features/{VIT}"][0]][-2:] == ["class_token", "valid"]
    assert {missing for *_, missing, shards in foreseen(config).values()} == {0}


def test_imported_latents_are_foreseen_and_cost_nothing(
    tiny: Callable[..., Config], images: Path, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    pack(images, tmp_path / "data")
    config = tiny(
        "dataset.source=repa",
        f"dataset.path={tmp_path / 'data'}",
        "latents.imported=true",
        "latents.vae=stabilityai/sd-vae-ft-mse",
        "train.model=SiT-XS/1",
    ).encode
    latents, _ = foresee(config, count_images(config, None))
    assert latents.flops == 0
    assert latents.column.array("moments").row_shape == (8, 4, 4)
    assert latents.column.arrays == build(config, CPU).columns[0].arrays


@pytest.mark.parametrize(
    ("name", "gigaflops"),
    [
        ("dinov2-vit-s", 12),
        ("dinov2-vit-b", 46),
        *(
            pytest.param(name, gigaflops, marks=pytest.mark.slow)
            for name, gigaflops in (
                ("dinov2-vit-l", 162),
                ("clip-vit-L", 162),
                ("mae-vit-l", 162),
                ("dinov2-vit-g", 599),
                ("jepa-vit-h", 333),
            )
        ),
    ],
)
def test_operations_are_those_measured_of_real_networks(
    tiny: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, name: str, gigaflops: float
) -> None:
    monkeypatch.setattr(socket.socket, "connect", None)
    config = tiny(
        "dataset.resolution=256",
        "latents.vae=stabilityai/sd-vae-ft-mse",
        "encoders.efficientnet-lite0.input_size=256",
        f"encoders.{name}.precision=float16",
    ).encode
    latents, _, features = foresee(config, count_images(config, None))
    assert latents.flops / 1e9 == pytest.approx(273, rel=0.005)
    assert features.flops / 1e9 == pytest.approx(gigaflops, rel=0.03)


def test_only_what_is_not_finished_is_missing(tiny: Callable[..., Config], images: Path) -> None:
    config = tiny()
    build(config.encode, CPU)
    (images.parent / "tiny.zarr/latents/tiny-vae/ledger/c.1.0").unlink()
    (images.parent / "tiny.zarr/features/efficientnet-lite0/ledger/c.2.0").unlink()
    assert [lacking[2:] for lacking in foreseen(config.encode).values()] == [(8, 1), (5, 1)]
    # The last shard, of 5 rows, grows to 8, and a fourth one follows.
    assert [lacking[2:] for lacking in foreseen(config.encode, 25).values()] == [(17, 3), (9, 2)]


def test_images_are_counted_in_the_data_set_and_then_in_the_cache(
    tiny: Callable[..., Config], images: Path
) -> None:
    config = tiny()
    counted = count_images(config.encode, None)
    assert (counted.count, counted.counted_in) == (21, "the source imagefolder")
    build(config.encode, CPU)
    save_jpeg(images / "class1/new.jpg", seed=2)
    counted = count_images(config.encode, None)
    assert (counted.count, counted.counted_in) == (21, "the rows of tiny.zarr")
    assert count_images(config.encode, 22).count == 22
    with pytest.raises(SourceError, match=r"--images 20: .*tiny.zarr has 21 rows already"):
        count_images(config.encode, 20)


def test_a_cache_by_another_recipe_or_layout_is_refused(trainable: Callable[..., Config]) -> None:
    other = trainable("encoders.efficientnet-lite0.storage=int8").encode
    with pytest.raises(StaleCacheError, match='storage: cache "float16", configuration "int8"'):
        foresee(other, count_images(other, None))
    with pytest.raises(StaleCacheError, match="rows_per_shard: cache 8, configuration 9"):
        count_images(trainable("cache.rows_per_shard=9").encode, None)
