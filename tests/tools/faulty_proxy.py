"""A proxy on loopback in front of a store, which fails as networks and busy servers do."""

import http.client
import os
import re
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from threading import Event, Thread
from urllib.parse import urlparse

import pytest

from cache.stores import requests as object_requests

DELAY_SECONDS = 0.03
# delay: answers come later; reset: the connection breaks; cut: the body ends early; silent: there
# is no answer; numbers are those of HTTP.
FAULTS = ["cut", "reset", "503", "429", "delay"]
NUMBER = re.compile(r"\d+")
CLOSE_AT_ONCE = struct.pack("ii", 1, 0)


class Passing(BaseHTTPRequestHandler):
    """Passes requests on, and answers back, but for those that fail."""

    protocol_version = "HTTP/1.1"
    server: "Proxy"

    def do_GET(self) -> None:
        self.server.paths.append(urlparse(self.path).path)
        fault = self.server.next_fault()
        if fault == "delay":
            time.sleep(DELAY_SECONDS)
        elif fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, CLOSE_AT_ONCE)
            self._end()
            return
        elif fault == "silent":
            self.server.is_over.wait()
            return
        elif fault in ("503", "429"):
            self._answer(int(fault), {"Content-Length": "0"}, b"")
            return
        status, headers, body = self._asked()
        if fault == "cut":
            body = body[: len(body) // 2]
        self._answer(status, headers, body)
        if fault == "cut":
            self._end()

    def do_HEAD(self) -> None:
        self.do_GET()

    def _asked(self) -> tuple[int, dict[str, str], bytes]:
        """What the store answers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.server.store)
        # The name of the host is signed: the store is shown that of the proxy.
        connection.request(self.command, self.path, headers=dict(self.headers))
        answer = connection.getresponse()
        body = answer.read()
        first, last, size = map(int, NUMBER.findall(answer.getheader("Content-Range", "0-0/0")))
        if size and last - first + 1 == size:
            self.server.whole.append(urlparse(self.path).path)
        headers = {n: v for n, v in answer.getheaders() if n.lower() != "transfer-encoding"}
        headers.setdefault("Content-Length", str(len(body)))
        connection.close()
        return answer.status, headers, body

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _end(self) -> None:
        """Close the connection, with all that is left to send."""
        self.close_connection = True
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""


class Proxy(ThreadingHTTPServer):
    """fault: what fails, every so many requests; paths: what was asked for; whole:
    of that, what was asked for by a range that is all of it; store: its port."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, store: int) -> None:
        super().__init__(("127.0.0.1", 0), Passing)
        self.store = store
        self.fault, self.every = "", 3
        self.paths: list[str] = []
        self.whole: list[str] = []
        self.is_over = Event()
        self._numbers = count(1)

    def next_fault(self) -> str:
        return self.fault if next(self._numbers) % self.every == 0 else ""

    def handle_error(self, *_arguments: object) -> None:
        """Say nothing of clients that went away."""


def be_hasty(patch: pytest.MonkeyPatch, seconds: float) -> None:
    """Ask again at once, and give up after some seconds, with no more of them for a request."""
    backoff = {"init_backoff": timedelta(milliseconds=5), "max_backoff": timedelta(seconds=1)}
    hasty = {"retry_timeout": timedelta(seconds=seconds), "backoff": {**backoff, "base": 2}}
    patch.setattr(object_requests, "RETRIES", object_requests.RETRIES | hasty)
    client = object_requests.CLIENT | {"timeout": timedelta(seconds=seconds)}
    patch.setattr(object_requests, "CLIENT", client)
    patch.setattr(object_requests, "PAUSE_SECONDS", 0.005)


@contextmanager
def proxied() -> Iterator[Proxy]:
    """Have all that reads from the S3 store of the environment go through a proxy."""
    store = urlparse(os.environ["AWS_ENDPOINT_URL"]).port
    assert store is not None, "the store has no port"
    with ExitStack() as ends:
        proxy = ends.enter_context(Proxy(store))
        thread = Thread(target=proxy.serve_forever)
        thread.start()
        for end in (thread.join, proxy.shutdown, proxy.is_over.set):
            ends.callback(end)
        ends.callback(object_requests._opened.cache_clear)
        patch = ends.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.server_port}")
        object_requests._opened.cache_clear()
        yield proxy
