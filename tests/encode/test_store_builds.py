"""Builds into an object store, and training from it: byte for byte what disks are given."""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from marking import few_fast
from runs import assert_equal_runs, trained
from tiny import COMPONENTS, save_jpeg
from tiny_cache import content

from cache.errors import RowsChangedError
from cache.reader import Cache
from cache.stores.places import StorePath
from cache.verify import find_all_faults
from pipeline.config import Config
from pipeline.requirements import check_columns
from stages.encode.build import BuildSummary, build
from stages.encode.build_options import BuildOptions

CPU = torch.device("cpu")
KILLS = 30
EVERYTHING = ("dataset.flip=true", "dataset.pixels=true", "latents.scaling=measured")


def built_by(config: Config, options: BuildOptions | None = None) -> BuildSummary:
    return build(config.encode, CPU, options)


@pytest.fixture
def there(bucket: StorePath, request: pytest.FixtureRequest) -> Iterator[str]:
    """The setting of a cache in a store."""
    place = bucket / request.node.name.replace("[", "-").replace("]", "")
    yield f"cache.path={place}/tiny.zarr"
    place.remove_tree()


def assert_same_caches(one: Config, other: Config) -> None:
    assert content(one.cache.path) == content(other.cache.path)
    assert find_all_faults(one.cache.path, 1) == []


def test_a_store_is_given_the_bytes_of_a_disk(tiny: Callable[..., Config], there: str) -> None:
    here, far = tiny(), tiny(there)
    assert built_by(here).counts.shards == built_by(far).counts.shards == 6
    assert_same_caches(here, far)
    assert built_by(far).counts.shards == 0
    # Of the lock there is only that it was given back.
    path = far.cache.path
    (turn,) = path.with_name(".tiny.zarr.turns").iterdir()
    assert b'"is_over": true' in turn.read_bytes()


@pytest.mark.parametrize("kind", few_fast(["captions", "components"]))
def test_columns_of_every_kind_are_those_of_a_disk(
    captioned: Callable[..., Config], there: str, tmp_path: Path, kind: str
) -> None:
    more = ("encoders.efficientnet-lite0.storage=int8",) if kind == "captions" else EVERYTHING
    if kind == "components":
        path = tmp_path / "pipeline.toml"
        path.write_text(path.read_text() + COMPONENTS)
    here, far = captioned(*more), captioned(there, *more)
    for config in (here, far):
        built_by(config)
        check_columns(config)
    assert_same_caches(here, far)


def test_a_cache_in_a_store_grows_and_is_mended(
    tiny: Callable[..., Config], there: str, images: Path
) -> None:
    here, far = tiny(), tiny(there)
    for config in (here, far):
        built_by(config.model_copy(update={"encoders": {}}))
    for config in (here, far):
        # Of the encoder that was added alone.
        assert built_by(config).counts.shards == 3
    for number in range(5):
        save_jpeg(images / f"class{number % 3}" / f"added{number}.jpg", seed=number)
    for config in (here, far):
        assert built_by(config).added == 5
    save_jpeg(images / "class1" / "added1.jpg", seed=50)
    for config in (here, far):
        with pytest.raises(RowsChangedError, match="added1"):
            built_by(config)
        built_by(config, BuildOptions(update=True))
    assert_same_caches(here, far)
    shard = far.cache.path / "features/efficientnet-lite0/tokens/c.1.0.0"
    shard.put(shard.read_bytes()[:-9] + bytes(9))
    (far.cache.path / "latents/tiny-vae/moments/c.0.0.0.0").unlink()
    found = {fault.where for fault in find_all_faults(far.cache.path, 1)}
    assert found == {
        "features/efficientnet-lite0/tokens shard 1",
        "latents/tiny-vae/moments shard 0",
    }
    assert built_by(far, BuildOptions(repair=True)).counts.shards == 2
    assert_same_caches(here, far)
    names = frozenset({"features/efficientnet-lite0"})
    assert built_by(far, BuildOptions(rebuild=names)).counts.shards == 4
    assert_same_caches(here, far)


def test_training_from_a_store_is_training_from_a_disk(
    trainable: Callable[..., Config], there: str, tmp_path: Path
) -> None:
    far = trainable(there, f"train.run={tmp_path / 'far'}")
    built_by(far)
    here = trainable()
    trained(here)
    for steps in (2, 4):
        # The second time, it goes on.
        trained(trainable(there, f"train.run={tmp_path / 'far'}", f"train.steps={steps}"))
    assert_equal_runs(far, here)


@pytest.mark.slow
def test_a_build_that_is_killed_anywhere_leaves_nothing_half(
    tiny: Callable[..., Config], there: str, tmp_path: Path
) -> None:
    here, far = tiny(), tiny(there)
    built_by(here)
    command = (sys.executable, "-m", "pipeline", "build", "--set", there)
    generator = random.Random(0)
    path, made = far.cache.path, 0
    for _ in range(KILLS):
        if path.exists() and generator.random() < 0.3:
            # From the beginning, at times.
            path.remove_tree()
        process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)
        time.sleep(3 + 5 * generator.random())
        made += process.poll() is not None
        process.send_signal(signal.SIGKILL)
        process.wait()
        if path.exists():
            faults = find_all_faults(path, 1)
            assert all(fault.remedy == "repa-cache build" for fault in faults), faults
    assert made < KILLS
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert_same_caches(here, far)
    assert len(Cache(path).rows) == 21
