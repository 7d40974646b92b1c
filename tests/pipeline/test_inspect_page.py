import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from inspecting import CPU, INT8, LATENTS, PIXELS, inspect, settings
from PIL import Image
from tiny import TINY, write_images

from cache.errors import RowsChangedError
from cache.rows import read_rows
from pipeline.config import load_config
from pipeline.inspection.picture_data import read_crops
from stages.encode.build import build


@pytest.fixture
def copied(built: Path, tmp_path: Path) -> Path:
    """A folder with the tiny pipeline.toml and a finished cache that may be damaged."""
    return Path(shutil.copytree(built, tmp_path / "copied"))


ARGUMENTS = ("--pictures", "--images", "5", *settings(INT8, PIXELS))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory, tiny_vae: Path) -> Path:
    """A folder with a cache that has int8 tokens and crops, and its page of pictures."""
    folder = tmp_path_factory.mktemp("drawn")
    write_images(folder / "images")
    (folder / "pipeline.toml").write_text(TINY.format(vae=tiny_vae))
    build(load_config(folder / "pipeline.toml", [INT8, PIXELS]).encode, CPU)
    output = inspect(folder, *ARGUMENTS, "--neighbours", "2")
    assert "tiny-inspect/index.html: 5 images" in output
    return folder


def test_the_page_needs_no_other_file_and_has_a_png_of_everything(drawn: Path) -> None:
    page = (drawn / "tiny-inspect/index.html").read_text()
    assert "http" not in page
    assert page.count('<section class="image"') == 5
    assert "Nearest by efficientnet-lite0" in page
    assert "without" not in page
    assert {file.name for file in (drawn / "tiny-inspect").glob("*.png")} == {
        *("overview.png", "crops.png", "decoded.png", "classes.png"),
        *(f"{kind}-efficientnet-lite0.png" for kind in ("components", "similarity")),
        *(f"{kind}-efficientnet-lite0.png" for kind in ("norms", "errors")),
    }
    with Image.open(drawn / "tiny-inspect/crops.png") as crops:
        assert crops.size == (8 * 128, 128)
    with Image.open(drawn / "tiny-inspect/overview.png") as overview:
        assert overview.size[0] > 800


def test_a_page_is_drawn_of_what_is_left_of_a_cache(drawn: Path, tmp_path: Path) -> None:
    left = Path(shutil.copytree(drawn, tmp_path / "left"))
    shutil.rmtree(left / "images")
    shutil.rmtree(left / "tiny.zarr/pixels/crops")
    (left / "tiny.zarr" / LATENTS / "ledger/c.1.0").unlink()
    inspect(left, *ARGUMENTS, "--out", str(left / "less"))
    page = (left / "less/index.html").read_text()
    assert "without crops: dataset.path: no folder" in page
    assert "1 of 3 shards are not finished" in page
    assert page.count('<section class="image"') == 5
    names = {file.name for file in (left / "less").glob("*.png")}
    assert "decoded.png" in names
    assert not names & {"crops.png", "errors-efficientnet-lite0.png"}


def test_crops_come_from_the_cache_or_else_from_the_data_set_wherever_it_has_them(
    drawn: Path, tmp_path: Path
) -> None:
    left = Path(shutil.copytree(drawn, tmp_path / "left"))
    config = load_config(left / "pipeline.toml", [INT8, PIXELS]).encode
    table = read_rows(left / "tiny.zarr")
    rows = np.array([table.key.tolist().index(key) for key in ("class1/3.jpg", "class2/0.jpg")])
    (left / "images/class0/0.jpg").unlink()
    stored = read_crops(config, table, rows)
    shutil.rmtree(left / "tiny.zarr/pixels/crops")
    assert torch.equal(read_crops(config, table, rows), stored)
    (left / "images/class1/3.jpg").unlink()
    with pytest.raises(RowsChangedError, match=r"class1/3\.jpg is not in the data set any more"):
        read_crops(config, table, rows)


def test_a_cache_without_a_finished_image_has_no_page(copied: Path) -> None:
    for entry in (copied / "tiny.zarr").rglob("ledger/c.*"):
        entry.unlink()
    assert "no image is finished" in inspect(copied, "--pictures", status=1)
    assert not (copied / "tiny-inspect").exists()


@pytest.mark.slow
def test_the_page_is_fine_in_a_browser(drawn: Path) -> None:
    from browser import assert_fine

    assert_fine(drawn / "tiny-inspect/index.html")


@pytest.mark.slow
def test_a_patch_that_is_clicked_changes_the_similarities_of_its_image_or_of_all(
    drawn: Path,
) -> None:
    from browser import CHROMIUM
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM)
        tab = browser.new_page()
        complaints: list[str] = []
        tab.on("console", lambda said: complaints.append(said.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.goto((drawn / "tiny-inspect/index.html").as_uri())

        def canvases() -> list[str]:
            seen: list[str] = tab.evaluate(
                "[...document.querySelectorAll('canvas')].map(canvas => canvas.toDataURL())"
            )
            return seen

        before = canvases()
        assert len(before) == 5
        first = tab.locator(".picture").first
        first.click(position={"x": 3, "y": 3})
        clicked = canvases()
        assert clicked[0] != before[0]
        assert clicked[1:] == before[1:]
        first.press("ArrowRight")
        assert canvases()[0] != clicked[0]
        tab.locator("#across").check()
        assert all(a != b for a, b in zip(canvases()[1:], before[1:], strict=True))
        tab.locator("#across").uncheck()
        assert canvases()[1:] == before[1:]
        browser.close()
    assert complaints == []
