import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from inspecting import CPU, INT8, LATENTS, PIXELS, inspect, settings
from PIL import Image

from pipeline.config import Config
from stages.encode.build import build


@pytest.fixture
def copied(built: Path, tmp_path: Path) -> Path:
    """A folder with the tiny pipeline.toml and a finished cache that may be damaged."""
    return Path(shutil.copytree(built, tmp_path / "copied"))


@pytest.fixture
def drawn(tiny: Callable[..., Config], images: Path) -> Path:
    """A folder with a cache that has int8 tokens and crops, and its page of pictures."""
    build(tiny(INT8, PIXELS).encode, CPU)
    arguments = ("--pictures", "--neighbours", "2", "--images", "5", *settings(INT8, PIXELS))
    assert "tiny-inspect/index.html: 5 images" in inspect(images.parent, *arguments)
    return images.parent


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


def test_a_page_is_drawn_of_what_is_left_of_a_cache(drawn: Path) -> None:
    """Without the images, but with their crops; then without these too, and without a shard."""
    arguments = ("--pictures", "--images", "5", *settings(INT8, PIXELS))
    (drawn / "images").rename(drawn / "elsewhere")
    inspect(drawn, *arguments, "--out", str(drawn / "again"))
    again = (drawn / "again/crops.png").read_bytes()
    assert again == (drawn / "tiny-inspect/crops.png").read_bytes()
    shutil.rmtree(drawn / "tiny.zarr/pixels/crops")
    (drawn / "tiny.zarr" / LATENTS / "ledger/c.1.0").unlink()
    inspect(drawn, *arguments, "--out", str(drawn / "less"))
    page = (drawn / "less/index.html").read_text()
    assert "without crops:" in page
    assert "1 of 3 shards are not finished" in page
    assert page.count('<section class="image"') == 5
    names = {file.name for file in (drawn / "less").glob("*.png")}
    assert "decoded.png" in names
    assert not names & {"crops.png", "errors-efficientnet-lite0.png"}


def test_images_that_the_data_set_has_lost_or_moved_do_not_mislead(
    copied: Path, tmp_path: Path
) -> None:
    arguments = ("--rows", "class1/3.jpg", "class2/0.jpg", "--pictures", "--neighbours", "0")
    inspect(copied, *arguments, "--out", str(tmp_path / "before"))
    (copied / "images/class0/0.jpg").unlink()
    inspect(copied, *arguments, "--out", str(tmp_path / "moved"))
    before, moved = ((tmp_path / name / "crops.png").read_bytes() for name in ("before", "moved"))
    assert before == moved
    (copied / "images/class1/3.jpg").unlink()
    inspect(copied, *arguments, "--out", str(tmp_path / "lost"))
    page = (tmp_path / "lost/index.html").read_text()
    assert "class1/3.jpg is not in the data set any more" in page


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
