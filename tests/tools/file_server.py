"""A server of files on loopback, also in the layout of the Hugging Face hub, which may fail."""

import hashlib
import json
import re
import socket
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

RANGE = re.compile(r"bytes=(\d+)-(\d+)")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
API = re.compile(r"/api/datasets/(?P<name>[^/]+/[^/]+)(?:/revision/.*|/tree/(?P<tree>.*))?")
RESOLVE = re.compile(r"/datasets/(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.*)")
SIGNED = "X-Amz-Signature=nobody-may-see-this"


@dataclass
class Served:
    """files: by their paths; faults: what happens to the next answers, one each; sent: paths and
    bytes of bodies.
    """

    files: dict[str, bytes]
    has_ranges: bool = True
    is_closed: bool = False
    faults: Iterator[str] = field(default_factory=lambda: iter(()))
    sent: list[tuple[str, int]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    port: int = 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def bytes_of(self, path: str) -> int:
        return sum(count for name, count in self.sent if name == path)

    def requests_of(self, path: str) -> int:
        return sum(name == path for name, _ in self.sent)


def files_in(folder: Path) -> dict[str, bytes]:
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


class Handler(BaseHTTPRequestHandler):
    """Answers for `served`, which a class of its own has for each server."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    served: Served

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        with self.served.lock:
            fault = next(self.served.faults, "")
        if self.served.is_closed:
            self.reply(401, b"", {"X-Error-Code": "GatedRepo"})
        elif fault in {"503", "429"}:
            self.reply(int(fault), b"busy")
        elif fault == "reset":
            # Closed without waiting for what was sent.
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.close_connection = True
        elif found := API.fullmatch(path):
            self.tell(found["name"], found["tree"])
        elif found := RESOLVE.fullmatch(path):
            self.reply(302, b"", {"Location": f"/{found['file']}?{SIGNED}"})
        else:
            self.send_file(path.removeprefix("/"), is_cut=fault == "cut")

    def tell(self, name: str, tree: str | None) -> None:
        """What the hub tells of a repository, or of a folder in it behind the revision."""
        about: Any = {"id": name, "sha": COMMIT, "siblings": [], "tags": []}
        if tree is not None:
            about = hub_listing(self.served.files, tree.partition("/")[2])
        if about:
            self.reply(200, json.dumps(about).encode())
        else:
            self.reply(404, b"", {"X-Error-Code": "EntryNotFound"})

    def send_file(self, name: str, *, is_cut: bool) -> None:
        if name not in self.served.files:
            self.reply(404, b"nothing")
            return
        content = self.served.files[name]
        headers = {"ETag": etag(content)}
        wanted, code = RANGE.fullmatch(self.headers.get("Range", "")), 200
        if wanted and self.served.has_ranges:
            start, last = int(wanted[1]), min(int(wanted[2]), len(content) - 1)
            headers["Content-Range"] = f"bytes {start}-{last}/{len(content)}"
            content, code = content[start : last + 1], 206
        if self.command == "GET":
            with self.served.lock:
                self.served.sent.append((name, len(content)))
        body = content[: len(content) // 2] if is_cut else content
        self.reply(code, body, headers, length=len(content))
        self.close_connection |= is_cut

    def reply(
        self,
        code: int,
        body: bytes,
        headers: Mapping[str, str] | None = None,
        length: int | None = None,
    ) -> None:
        self.send_response(code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@lru_cache
def etag(content: bytes) -> str:
    return f'"{hashlib.md5(content).hexdigest()}"'


def hub_listing(files: Mapping[str, bytes], folder: str) -> list[dict[str, object]]:
    """What the hub tells of the files and folders in a folder."""
    prefix = f"{folder}/" if folder else ""
    found: dict[str, dict[str, object]] = {}
    for name, content in files.items():
        if not name.startswith(prefix):
            continue
        first, slash, _ = name.removeprefix(prefix).partition("/")
        path, digest = f"{prefix}{first}", hashlib.sha256(content).hexdigest()
        if slash:
            found[path] = {"type": "directory", "oid": "0" * 40, "size": 0, "path": path}
        else:
            large = {"oid": digest, "size": len(content), "pointerSize": 100}
            oid, size = digest[:40], len(content)
            found[path] = {"type": "file", "oid": oid, "size": size, "path": path, "lfs": large}
    return list(found.values())


@contextmanager
def serving(files: Mapping[str, bytes]) -> Iterator[Served]:
    """A server of some files."""
    served = Served(dict(files))
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (Handler,), {"served": served}))
    server.daemon_threads = True
    served.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
