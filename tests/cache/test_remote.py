"""Arrays behind an address, over real HTTP on loopback."""

from pathlib import Path

import numpy as np
import zarr
from web_server import served

from cache.arrays import open_rows
from cache.stores.object_rows import ObjectRows


def test_rows_of_a_remote_array_are_those_of_the_local_one(tmp_path: Path) -> None:
    content = np.random.default_rng(0).normal(size=(21, 4, 6)).astype(np.float16)
    zarr.create_array(
        tmp_path / "x", data=content, chunks=(1, 4, 6), shards=(8, 4, 6), compressors=None
    )
    out = np.empty((4, 4, 6), np.float16)
    with served(tmp_path) as address:
        source = open_rows(f"{address}/x")
        assert type(source) is ObjectRows
        source.read(np.array([20, 3, 3, 9]), out)
    np.testing.assert_array_equal(out, content[[20, 3, 3, 9]])
