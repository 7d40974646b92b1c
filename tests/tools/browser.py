"""A real browser for tests of pages: Debian's chromium, without a window."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from playwright.sync_api import sync_playwright

CHROMIUM = "/usr/bin/chromium"
PHONE, DESKTOP, WIDE = 390, 1280, 1400
# How those elements begin that scroll sideways, other than listings of a configuration.
TOO_WIDE = """
[...document.querySelectorAll("body *:not(pre)")]
  .filter(e => getComputedStyle(e).overflowX == "auto" && e.scrollWidth > e.clientWidth)
  .map(e => e.innerText.slice(0, 80))
"""


@dataclass(frozen=True)
class Seen:
    """What a browser made of a page.

    complaints: errors and warnings of the console, and uncaught errors; requests: addresses
    outside the page that it asked for; width: of the content; scrolled: tables and pictures that
    are wider than their places; background: of the body; text: as it is shown.
    """

    complaints: list[str]
    requests: list[str]
    width: int
    scrolled: list[str]
    background: str
    text: str


def look_at(
    page: Path,
    picture: Path | None = None,
    *,
    width: int = DESKTOP,
    scheme: Literal["light", "dark"] = "light",
) -> Seen:
    """Open a page and, if asked to, take a picture of all of it."""
    complaints: list[str] = []
    requests: list[str] = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM)
        tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        tab.on("console", lambda said: complaints.append(f"{said.type}: {said.text}"))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("request", lambda request: requests.append(request.url))
        tab.goto(page.absolute().as_uri(), wait_until="load")
        if picture is not None:
            tab.screenshot(path=picture, full_page=True)
        found = tab.evaluate("document.documentElement.scrollWidth")
        scrolled = tab.evaluate(TOO_WIDE)
        background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        text = tab.inner_text("body")
        browser.close()
    own = (page.absolute().as_uri(), "data:", "blob:")
    outside = [address for address in requests if not address.startswith(own)]
    return Seen(complaints, outside, found, scrolled, background, text)


def assert_fine(page: Path) -> None:
    """No complaint, nothing from outside, no scrolling sideways on a phone, light and dark."""
    desktop, phone = look_at(page), look_at(page, width=PHONE, scheme="dark")
    for seen in (desktop, phone):
        assert seen.complaints == []
        assert seen.requests == []
    assert desktop.width <= DESKTOP
    assert phone.width <= PHONE
    assert desktop.background != phone.background
