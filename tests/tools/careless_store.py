"""A store on loopback that writes an object again that was to be written only if it is new."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

KEY = re.compile("<Key>(.*?)</Key>")


class Objects(BaseHTTPRequestHandler):
    """Speaks as much of S3 as a lock asks for."""

    protocol_version = "HTTP/1.1"
    server: "Store"

    def do_PUT(self) -> None:
        size = int(self.headers["Content-Length"])
        self.server.objects[self.path] = self.rfile.read(size)
        self._answer(b"")

    def do_POST(self) -> None:
        """Objects are removed."""
        named = KEY.findall(self.rfile.read(int(self.headers["Content-Length"])).decode())
        for key in named:
            del self.server.objects[f"/careless/{key}"]
        gone = "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in named)
        self._answer(f"<DeleteResult>{gone}</DeleteResult>".encode())

    def do_GET(self) -> None:
        """All objects are listed."""
        found = "".join(
            f"<Contents><Key>{path.removeprefix('/careless/')}</Key><Size>{len(content)}</Size>"
            "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
            for path, content in self.server.objects.items()
        )
        self._answer(f"<ListBucketResult>{found}</ListBucketResult>".encode())

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"1"')
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""


class Store(ThreadingHTTPServer):
    """A server with one bucket, called `careless`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Objects)
        self.objects: dict[str, bytes] = {}


@contextmanager
def running() -> Iterator[Store]:
    """A store while the block lasts."""
    with Store() as store:
        thread = Thread(target=store.serve_forever)
        thread.start()
        try:
            yield store
        finally:
            store.shutdown()
            thread.join()
