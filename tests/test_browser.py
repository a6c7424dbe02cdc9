"""The browser of the tests: what a page must not do is found."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.browser import LOOKS, Browse, Chromium, Look, assert_readable, watched

HEAD = '<!doctype html><html lang="en"><meta name="viewport" content="width=device-width"><title>A page</title>'


def _file(folder: Path, body: str = "") -> Path:
    file = folder / "page.html"
    file.write_text(f"{HEAD}<main><h1>A page</h1>{body}</main></html>", encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("<script>console.error('no')</script>", "error: no"),
        ("<script>throw new Error('no')</script>", "exception: no"),
        ("<img alt='' src='https://example.org/a.png'>", "request for https://example.org/a.png"),
        ("<script>fetch('https://example.org').catch(() => {})</script>", "request for https://example.org"),
        ("<img alt='' src='other.png'>", "request for file:"),
        (
            "<meta http-equiv=Content-Security-Policy content=\"img-src 'none'\"><img alt='' src='a.png'>",
            "Content Security Policy",
        ),
    ],
)
def test_errors_and_requests_are_found(body: str, found: str, chromium: Chromium, tmp_path: Path):
    with pytest.raises(AssertionError, match=found), watched(chromium) as open_page:
        open_page(_file(tmp_path, body)).wait_for_timeout(50)


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("<div class=broad style='width: 2000px'>a</div>", "div.broad"),
        ("<p style='color: #aaa; background: #fff'>pale</p>", "color-contrast"),
        ("<input>", "label"),
    ],
)
def test_what_cannot_be_read_is_found(body: str, found: str, browse: Browse, tmp_path: Path):
    page = browse(_file(tmp_path, body))
    with pytest.raises(AssertionError, match=found):
        assert_readable(page)


@pytest.mark.parametrize("look", LOOKS, ids=str)
def test_a_page_is_shown_as_asked(look: Look, browse: Browse, tmp_path: Path):
    page = browse(_file(tmp_path), look, fragment="a=b")
    assert page.evaluate("[innerWidth, matchMedia('(prefers-color-scheme: dark)').matches, location.hash]") == [
        look.width,
        look.dark,
        "#a=b",
    ]
    assert page.evaluate("navigator.maxTouchPoints > 0") == look.phone


def test_other_tests_may_use_asyncio(chromium: Chromium):
    assert asyncio.run(asyncio.sleep(0, "done")) == "done"
