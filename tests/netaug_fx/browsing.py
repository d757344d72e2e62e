"""Looks at pages: what they hold and would fetch, and what a real browser makes of them."""

from __future__ import annotations

import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


class Page(HTMLParser):
    """Collects ids, and everything a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id":
                self.ids.append(str(value))
            if name in ("src", "srcset", "href", "xlink:href", "data", "action") and tag != "a":
                self.fetched.append(str(value))


def parse(text: str) -> Page:
    page = Page()
    page.feed(text)
    return page


def open_in_browser(page: Path, scratch: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        pytest.skip("no Chromium on PATH; on Debian: apt-get install chromium")
    flags = [
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--window-size=1200,2400", f"--user-data-dir={scratch}", "--enable-logging=stderr",
    ]  # fmt: skip
    return subprocess.run(
        [browser, *flags, *arguments, page.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
