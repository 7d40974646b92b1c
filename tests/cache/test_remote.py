"""Arrays behind an address, over real HTTP on loopback."""

import http.server
import re
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import zarr

from cache.arrays import open_rows
from cache.stores.object_rows import ObjectRows


class RangeHandler(http.server.SimpleHTTPRequestHandler):
    """Serves files and parts of them, as object stores do."""

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        start, stop = 0, len(content)
        if wanted := re.match(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "")):
            first, last = wanted.groups()
            start = int(first) if first else len(content) - int(last)
            stop = min(int(last) + 1, stop) if first and last else stop
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(content)}")
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        self.wfile.write(content[start:stop])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    handler = partial(RangeHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_rows_of_a_remote_array_are_those_of_the_local_one(tmp_path: Path, address: str) -> None:
    content = np.random.default_rng(0).normal(size=(21, 4, 6)).astype(np.float16)
    zarr.create_array(
        tmp_path / "x", data=content, chunks=(1, 4, 6), shards=(8, 4, 6), compressors=None
    )
    source = open_rows(f"{address}/x")
    assert type(source) is ObjectRows
    out = np.empty((4, 4, 6), np.float16)
    source.read(np.array([20, 3, 3, 9]), out)
    np.testing.assert_array_equal(out, content[[20, 3, 3, 9]])
