"""A program that serves a folder as a bucket of S3, each answer a round trip late.

    python tests/tools/distant_files.py FOLDER SECONDS

Prints its port. It is given no work but to wait and to hand files to the kernel, so that it is not
what a benchmark of its clients measures: GET, also of ranges, and HEAD, one thread a connection.
"""

import os
import re
import socket
import sys
import threading
import time
from email.utils import formatdate
from pathlib import Path
from urllib.parse import unquote

REQUEST = re.compile(rb"(GET|HEAD) /bucket/([^ ?]*)\S* HTTP/1.1\r\n")
RANGE = re.compile(rb"\r\nrange: bytes=(\d*)-(\d*)\r\n", re.IGNORECASE)
END = b"\r\n\r\n"


def serve(connection: socket.socket, folder: Path, delay_seconds: float) -> None:
    """Answer the requests of a connection until it is closed."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    buffered = b""
    with connection:
        while True:
            while END not in buffered:
                received = connection.recv(1 << 16)
                if not received:
                    return
                buffered += received
            head, _, buffered = buffered.partition(END)
            time.sleep(delay_seconds)
            answer(connection, head + END, folder)


def answer(connection: socket.socket, request: bytes, folder: Path) -> None:
    found = REQUEST.match(request)
    path = folder / unquote(found[2].decode()) if found else folder
    if not found or not path.is_file():
        connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0" + END)
        return
    size = path.stat().st_size
    start, stop, status = 0, size, "200 OK"
    if wanted := RANGE.search(request):
        first, last = wanted.groups()
        start = int(first) if first else max(size - int(last), 0)
        stop = min(int(last) + 1, size) if first and last else size
        status = "206 Partial Content"
    lines = [
        f"HTTP/1.1 {status}",
        f"Content-Length: {stop - start}",
        f"Content-Range: bytes {start}-{stop - 1}/{size}",
        f"Last-Modified: {formatdate(path.stat().st_mtime, usegmt=True)}",
        'ETag: "1"',
        "Accept-Ranges: bytes",
    ]
    connection.sendall("\r\n".join(lines).encode() + END)
    if found[1] == b"GET":
        with path.open("rb") as file:
            while start < stop:
                start += os.sendfile(connection.fileno(), file.fileno(), start, stop - start)


def main() -> None:
    folder, delay_seconds = Path(sys.argv[1]), float(sys.argv[2])
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as server:
        print(server.getsockname()[1], flush=True)  # noqa: T201 - its first answer
        while True:
            connection, _ = server.accept()
            threading.Thread(
                target=serve, args=(connection, folder, delay_seconds), daemon=True
            ).start()


if __name__ == "__main__":
    main()
