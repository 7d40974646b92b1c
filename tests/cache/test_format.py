"""What the cache's README says of the format, read without this project's readers."""

import hashlib
import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import torch
import xxhash
import zarr
from numcodecs import Zstd
from places import ROOT

import repa_cache
from pipeline.config import Config
from stages.latents import LatentScaling

ENCODER = "efficientnet-lite0"
COLUMNS = (f"features/{ENCODER}", "latents/tiny-vae", "pixels/crops")
SHARD = 8

pytestmark = pytest.mark.filterwarnings("ignore:Numcodecs codecs")


@pytest.fixture(params=["int8", "float16"])
def path(tiny: Callable[..., Config], request: pytest.FixtureRequest) -> Path:
    config = tiny(f"encoders.{ENCODER}.storage={request.param}", "dataset.pixels=true")
    assert config.cache.rows_per_shard == SHARD
    repa_cache.build(config)
    return config.cache.path


def attributes(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "zarr.json").read_text())["attributes"]


def chunk_of(file: Path, place: int) -> bytes:
    """A row's chunk, by the index at the end of the file of a shard."""
    content = file.read_bytes()
    pairs, checksum = content[-4 - 16 * SHARD : -4], content[-4:]
    assert struct.pack("<I", google_crc32c.value(pairs)) == checksum
    offset, size = struct.unpack_from("<QQ", pairs, 16 * place)
    return content[offset : offset + size]


def row_of(folder: Path, array: dict[str, Any], row: int) -> np.ndarray:
    """A row of an array, as it is stored."""
    shard, place = divmod(row, SHARD)
    dtype = np.dtype(array["dtype"]).newbyteorder("<")
    row_bytes = int(np.prod(array["row_shape"])) * dtype.itemsize
    file = folder / array["name"] / ".".join(["c", str(shard), *["0"] * len(array["row_shape"])])
    if array["is_compressed"]:
        chunk = chunk_of(file, place)
        assert struct.pack("<I", google_crc32c.value(chunk[:-4])) == chunk[-4:]
        differences = np.frombuffer(Zstd().decode(chunk[:-4]), np.uint8)
        content = np.cumsum(differences, dtype=np.uint8).tobytes()
    elif row_bytes >= 4096:
        content = chunk_of(file, place)
    else:
        content = file.read_bytes()[place * row_bytes :][:row_bytes]
    assert len(content) == row_bytes
    return np.frombuffer(content, dtype).reshape(array["row_shape"])


def test_the_reader_of_the_readme_reads_what_ours_does(path: Path) -> None:
    text = (ROOT / "cache/README.md").read_text()
    match = re.search(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert match is not None
    program = match.group(1)
    for theirs, ours in (
        ("imagenet256.zarr", str(path)),
        ("dinov2-vit-b", ENCODER),
        ("sd-vae-ft-mse", "tiny-vae"),
    ):
        assert theirs in program
        program = program.replace(theirs, ours)
    found: dict[str, Any] = {}
    exec(program, found)
    cache = repa_cache.open(path)
    assert np.array_equal(found["tokens"], cache[ENCODER].tokens[3])
    scaling = LatentScaling(0.5, 0.0)
    moments, normal = (torch.from_numpy(x)[None] for x in (cache.latents[3], found["normal"]))
    assert np.allclose(found["clean"], scaling.sample(moments, normal)[0])


def test_the_files_are_as_the_readme_says(path: Path) -> None:
    hashes = zarr.open_group(path, mode="r")["rows/content_hash"][:]
    for name in COLUMNS:
        folder, column = path / name, zarr.open_group(path / name, mode="r")
        told = attributes(folder)
        canonical = json.dumps(told["recipe"], sort_keys=True, separators=(",", ":"))
        assert hashlib.sha256(canonical.encode()).hexdigest() == told["fingerprint"]
        for position, array in enumerate(told["arrays"]):
            for row in (0, 7, 8, 20):
                stored = row_of(folder, array, row)
                assert np.array_equal(stored, column[array["name"]][row])
                checksum = google_crc32c.value(stored.tobytes())
                assert checksum == column["crc32c"][row, position]
        for shard in range(3):
            rows = hashes[shard * SHARD : (shard + 1) * SHARD].astype("<u8")
            images = hashlib.sha256(rows.tobytes()).digest()
            checksums = (folder / f"crc32c/c.{shard}.0").read_bytes()
            seal = hashlib.sha256(told["fingerprint"].encode() + images + checksums).digest()
            assert column["ledger"][shard].tobytes() == images + seal


def test_the_codes_are_as_the_readme_says(path: Path) -> None:
    column = zarr.open_group(path / f"features/{ENCODER}", mode="r")
    if "token_scale" not in column:
        return
    codes, scale = column["tokens"][:], column["token_scale"][:]
    assert codes.dtype == np.int8
    assert np.abs(codes.astype(np.int16)).max() <= 127
    # The largest code of each token is all but full, by the margin of its scale.
    assert (np.abs(codes.astype(np.int16)).max(axis=-1)[scale > 2.0**-14] >= 126).all()
    digest = hashlib.sha256(column["channel_scale"][:].tobytes()).hexdigest()
    assert column.attrs["recipe"]["constants"]["channel_scale"] == digest


def test_the_row_table_is_as_the_readme_says(path: Path) -> None:
    rows = zarr.open_group(path / "rows", mode="r")
    classes, keys = rows.attrs["classes"], rows["key"][:].tolist()
    digest = hashlib.sha256("\0".join([*classes, *keys]).encode())
    digest.update(rows["label"][:].astype("<i4").tobytes())
    hashes = rows["content_hash"][:].astype("<u8")
    digest.update(hashlib.sha256(hashes.tobytes()).digest())
    assert digest.hexdigest() == rows.attrs["fingerprint"]
    for key, label, (high, low) in zip(keys, rows["label"][:], hashes.tolist(), strict=True):
        content = (path.parent / "images" / key).read_bytes()
        assert xxhash.xxh3_128_intdigest(content) == high << 64 | low
        assert key.startswith(classes[label])
