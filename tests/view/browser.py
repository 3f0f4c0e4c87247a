"""A started view, and pages of Chromium with a record of their faults."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.browser import BROWSER

TOKEN = "a-token-for-tests"


@contextmanager
def served(*directories: Path) -> Iterator[str]:
    """Serve directories; yield the address without the token."""
    command = [sys.executable, "-m", "ssd_ray", "view", *map(str, directories), "--no-browser"]
    process = subprocess.Popen(
        [*command, "--port", "0", "--token", TOKEN],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    try:
        yield process.stdout.readline().split()[-1].partition("/?")[0]
    finally:
        process.terminate()
        process.wait(timeout=20)


@contextmanager
def chromium() -> Iterator[Any]:
    """Yield a headless Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        browser.close()


@dataclass
class Watched:
    """A page, and the faults seen on it."""

    page: Any
    faults: list[str] = field(default_factory=list)


@contextmanager
def watched(browser: Any, base: str, width: int = 1440, scheme: str = "light") -> Iterator[Watched]:
    """Yield a page after it has shown the token; requests to elsewhere are refused faults."""
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, accept_downloads=True
    )
    page = context.new_page()
    seen = Watched(page)

    def route(route: Any) -> None:
        if route.request.url.startswith((base, "blob:", "data:")):
            route.continue_()
        else:
            seen.faults.append(f"request to {route.request.url[:200]}")
            route.abort()

    context.route("**/*", route)
    page.on("console", lambda message: seen.faults.append(f"console: {message.text[:300]}"))
    page.on("pageerror", lambda error: seen.faults.append(f"error: {error}"))
    page.on("dialog", lambda dialog: (seen.faults.append("dialog"), dialog.dismiss()))
    page.goto(f"{base}/?token={TOKEN}")
    yield seen
    context.close()
