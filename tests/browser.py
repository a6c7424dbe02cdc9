"""Pages in a real browser: Chromium, driven by Playwright, with axe for accessibility.

A test opens a page with the fixture `browse`. At its end the test fails if the page asked for anything but itself, or
if anything was written to the console as an error. `assert_readable` is for each state of a page that a reader may see.
Tests are skipped where there is no Chromium.
"""

from __future__ import annotations

import os
import shutil
from asyncio import AbstractEventLoop, events
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urljoin
from zlib import crc32

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

EXECUTABLES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


@dataclass(frozen=True, kw_only=True)
class Look:
    """How a page is looked at.

    Attributes:
        width: of the window, in CSS pixels.
        dark: whether the reader prefers dark colors.
    """

    width: int = 1280
    dark: bool = False

    @property
    def phone(self) -> bool:
        """Whether there is a touch screen instead of a mouse."""
        return self.width < 720

    def __str__(self) -> str:
        return f"{self.width}-{'dark' if self.dark else 'light'}"


LOOKS = [Look(width=width, dark=dark) for width in (1280, 390) for dark in (False, True)]


def looks(test: Callable[..., None]) -> Callable[..., None]:
    """Test a page in every look, by the gate in one: the wide light one or the narrow dark one, by the test's name."""
    kept = LOOKS[0] if crc32(f"{test.__module__}.{test.__name__}".encode()) % 2 else LOOKS[-1]
    each = [pytest.param(look, id=str(look), marks=[] if look == kept else [pytest.mark.slow]) for look in LOOKS]
    return pytest.mark.parametrize("look", each)(test)


class Browse(Protocol):
    """Open a file, or the address of a page of a server, which may then ask that server for more.

    The address of a file may have a fragment, such as `x=time`.
    """

    def __call__(self, file: Path | str, look: Look = ..., *, fragment: str = ...) -> Page: ...


@dataclass(frozen=True)
class Chromium:
    """A browser, and the event loop that Playwright runs in this thread until its end.

    The loop is set as the running one while pages are open only: with one running, asyncio.run refuses in other tests.
    """

    browser: Browser
    loop: AbstractEventLoop | None


@pytest.fixture(scope="session")
def chromium() -> Iterator[Chromium]:
    """The one browser of a test session: starting it takes a second."""
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: pip install playwright")
    with api.sync_playwright() as playwright:
        own = playwright.chromium.executable_path
        path = next(filter(None, map(shutil.which, EXECUTABLES)), own if Path(own).exists() else None)
        if path is None:
            pytest.skip("Chromium is not installed: apt-get install chromium, or playwright install chromium")
        # Chromium's sandbox refuses to start as root.
        root = hasattr(os, "geteuid") and os.geteuid() == 0
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"] if root else [])
        loop = events._get_running_loop()
        events._set_running_loop(None)
        yield Chromium(browser, loop)
        events._set_running_loop(loop)
        browser.close()


@pytest.fixture
def browse(chromium: Chromium) -> Iterator[Browse]:
    """A function that opens a page of ours; see `watched`."""
    with watched(chromium) as open_page:
        yield open_page


@contextmanager
def watched(chromium: Chromium) -> Iterator[Browse]:
    """A function that opens a page, and at the end AssertionError with what the opened pages did wrong."""
    problems: list[str] = []
    closing: list[Callable[[], None]] = []

    def open_page(file: Path | str, look: Look = LOOKS[0], *, fragment: str = "") -> Page:
        context = chromium.browser.new_context(
            viewport={"width": look.width, "height": 844 if look.phone else 900},
            color_scheme="dark" if look.dark else "light",
            reduced_motion="reduce",
            has_touch=look.phone,
            is_mobile=look.phone,
            offline=isinstance(file, Path),
        )
        closing.append(context.close)
        page = context.new_page()
        page.set_default_timeout(10_000)
        address = file.resolve().as_uri() if isinstance(file, Path) else file
        server = None if isinstance(file, Path) else urljoin(file, "/")

        def asked(url: str) -> None:
            own = url.partition("#")[0] == address if server is None else url.startswith(server)
            if not own and not url.startswith(("data:", "blob:")):
                problems.append(f"a request for {url}")

        page.on("request", lambda request: asked(request.url))
        page.on("websocket", lambda socket: asked(socket.url))
        page.on("pageerror", lambda error: problems.append(f"an exception: {error}"))
        # A request that the page's policy forbids is none of those above, but an error in the console.
        page.on("console", lambda line: problems.append(f"{line.type}: {line.text}") if line.type == "error" else None)
        page.goto(f"{address}#{fragment}" if fragment else address)
        return page

    events._set_running_loop(chromium.loop)
    try:
        yield open_page
    finally:
        for close in closing:
            close()
        events._set_running_loop(None)
    assert not problems, "\n".join(problems)


def assert_readable(page: Page) -> None:
    """Nothing is wider than the window, and axe has no complaint: of contrast, labels, roles, order of headings."""
    from axe_playwright_python.sync_playwright import Axe

    wide = page.evaluate(
        """() => {
          const width = document.documentElement.clientWidth;
          if (document.documentElement.scrollWidth <= width) return [];
          const scrolls = (e) => e && (getComputedStyle(e).overflowX !== "visible" || scrolls(e.parentElement));
          return [...document.querySelectorAll("body *")]
            .filter((e) => e.getBoundingClientRect().right > width + 0.5 && !scrolls(e.parentElement))
            .map((e) => `${e.tagName.toLowerCase()}.${e.getAttribute("class") || ""}`).slice(0, 5);
        }"""
    )
    assert not wide, f"wider than the window: {wide}"
    found = Axe().run(page)
    assert not found.violations_count, found.generate_report()
