"""Training from a store that fails: equal to training from a disk, or a clear error."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faulty_proxy import Proxy, be_hasty, proxied
from object_store import upload
from runs import assert_equal_runs, trained
from web_server import served

from cache.errors import CacheReadError
from cache.metadata import column_names
from cache.stores.places import StorePath
from cache.stores.requests import StoreError
from pipeline.config import Config, load_config

LITTLE = (
    "train.reading.memory_gb=0",
    "train.block_rows=8",
    "train.steps=12",
    "train.checkpoint_every=3",
)


@pytest.fixture
def there(built: Path, bucket: StorePath) -> StorePath:
    """The tiny cache in a store."""
    return upload(built / "tiny.zarr", bucket / "trained" / "tiny.zarr")


@pytest.fixture
def proxy(there: StorePath, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:  # noqa: ARG001
    be_hasty(monkeypatch, 2)
    with proxied() as proxy:
        yield proxy


@pytest.mark.slow
def test_training_through_faults_is_training_from_a_disk(
    trainable: Callable[..., Config], there: StorePath, proxy: Proxy, tmp_path: Path
) -> None:
    here = trainable(*LITTLE)
    trained(here)
    far = trainable(*LITTLE, f"cache.path={there}", f"train.run={tmp_path / 'far'}")
    for number, proxy.fault in enumerate(("reset", "cut", "503", "delay"), 1):
        steps = {"steps": 3 * number}
        trained(far.model_copy(update={"train": far.train.model_copy(update=steps)}))
    assert_equal_runs(far, here)


def test_training_from_a_local_folder_is_training_from_a_disk_and_asks_for_each_shard_once(
    trainable: Callable[..., Config], there: StorePath, proxy: Proxy, tmp_path: Path
) -> None:
    here = trainable(*LITTLE)
    trained(here)
    local = f"train.reading.local={tmp_path / 'local'}"
    for name in ("far", "again"):
        proxy.paths.clear()
        far = trainable(*LITTLE, local, f"cache.path={there}", f"train.run={tmp_path / name}")
        trained(far)
        assert_equal_runs(far, here)
    # What a second run asks for describes the cache, and which rows are valid.
    shards = {path.split("tiny.zarr/")[1] for path in proxy.paths if "/c." in path}
    assert not any(array in path for path in shards for array in ("moments", "tokens")), shards


def test_training_from_a_web_server_is_training_from_a_disk(
    trainable: Callable[..., Config], built: Path, tmp_path: Path
) -> None:
    here = trainable(*LITTLE)
    trained(here)
    with served(built) as address:
        place = f"{address}/tiny.zarr"
        settings = (*LITTLE, f"cache.path={place}", f"train.run={tmp_path / 'far'}")
        far = load_config(built / "pipeline.toml", settings, needs=())
        trained(far)
        with pytest.raises(CacheReadError, match="a web server does not list what it has"):
            column_names(StorePath(place))
    assert_equal_runs(far, here)


def test_a_store_that_is_gone_ends_the_run_with_its_address(
    trainable: Callable[..., Config], there: StorePath, proxy: Proxy
) -> None:
    far = trainable(*LITTLE, f"cache.path={there}", "train.steps=400")

    real = StorePath.read_range

    def read_range(self: StorePath, start: int, size: int) -> memoryview:
        if self.parent.name == "tokens" and len(proxy.paths) > 200:
            proxy.fault, proxy.every = "503", 1
        return real(self, start, size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StorePath, "read_range", read_range)
        with pytest.raises(StoreError, match=f"{there}/.*: .*"):
            trained(far)
