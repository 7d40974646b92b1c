"""Commands on caches in an object store."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

import repa_cache
from cache.stores.places import StorePath
from pipeline.commands import app
from pipeline.config import Config
from stages.encode.build import build
from stages.placement import find_device

RUNNER = CliRunner()
PRICES = ("stored=0.023", "out=0.09", "puts=0.005", "gets=0.0004")
PRICED = [part for price in PRICES for part in ("--price", price)]


def invoke(*arguments: str, status: int = 0) -> str:
    result = RUNNER.invoke(app, arguments)
    assert result.exit_code == status, result.output
    return result.output


@pytest.fixture
def far(tiny: Callable[..., Config], bucket: StorePath) -> Iterator[str]:
    """The address of a finished tiny cache."""
    address = f"{bucket}/commands/tiny.zarr"
    build(tiny(f"cache.path={address}").encode, find_device("cpu"))
    yield address
    (bucket / "commands").remove_tree()


def test_commands_take_an_address_for_a_cache(
    far: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.plan.reading_speed.MEASURE_SECONDS", 0.1)
    assert f"{far}: 21 images, 21 of them whole" in invoke("inspect", far)
    assert f"{far}: complete" in invoke("verify", far)
    assert "images/s" in invoke("bench", far, "--set", "train.batch_size=4")
    invoke("inspect", far, "--pictures", "--images", "2")
    assert (tmp_path / "tiny-inspect" / "index.html").is_file()
    assert "tiny-encoders.html" in invoke("analyze", "encoders", far, "--no-probe")
    invoke("train", "--set", f"cache.path={far}", "--set", "train.steps=2")
    # The run knows the address of its cache.
    invoke("analyze", "cknna", "run")
    assert repr(repa_cache.open(far)).startswith(f"Cache('{far}'): 21 rows")


def test_a_plan_says_what_a_store_is_asked_for(
    tiny: Callable[..., Config], bucket: StorePath
) -> None:
    tiny()
    new = f"cache.path={bucket}/planned.zarr"
    count = ("--images", "1000000")
    told = json.loads(invoke("plan", "--json", "--set", new, *count, *PRICED))
    kept, made, epoch = told["store"]
    whole, row = told["disk"]["whole"], told["reading"]["image_bytes"]
    assert told["disk"]["free_bytes"] is None
    assert kept["price"] == pytest.approx(0.023 * whole["bytes"] / 1e9)
    # Shards of eight rows are one request each.
    assert (made["puts"], made["bytes"]) == (whole["files"], whole["bytes"])
    assert made["price"] == pytest.approx(0.005 * whole["files"] / 1e3)
    # Latents and tokens.
    assert (epoch["gets"], epoch["bytes"]) == (2_000_000, 1_000_000 * row)
    assert epoch["price"] == pytest.approx(0.0004 * 2000 + 0.09 * row / 1e3)
    large = ("--set", "cache.rows_per_shard=65536", "--set", "train.block_rows=64")
    _, made, epoch = json.loads(invoke("plan", "--json", "--set", new, *large, *count))["store"]
    # By now, shards are sent in parts.
    assert made["puts"] > whole["files"] / 65536 * 8 + made["bytes"] / (5 << 20)
    assert (epoch["gets"], epoch["price"]) == (2 * 15_625, 0)
    assert re.search(r"an epoch +0 +42 ", invoke("plan", "--set", new))


def test_prices_and_addresses_that_are_none_are_refused(tiny: Callable[..., Config]) -> None:
    tiny()
    text = invoke("plan", "--price", "puts=much", status=1)
    assert "'much' is no number" in text
    assert "did you mean 'puts'" in invoke("plan", "--price", "put=1", status=1)
    for path, why in (("s3://", "followed by no bucket"), ("ftp://host/x", "none of s3://")):
        assert why in invoke("plan", "--set", f"cache.path={path}", status=1)
