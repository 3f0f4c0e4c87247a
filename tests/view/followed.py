"""A run followed in Chromium from before its start to its end, as records for a test."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.view.browser import chromium, served, watched

_LONGEST_S = 570.0
_READ = """() => ({
  state: document.querySelector("main .state")?.textContent ?? "absent",
  bars: [...document.querySelectorAll(".live .task")].map(
    task => [task.firstChild.textContent, task.lastChild.textContent]
  ),
  logs: [...document.querySelectorAll("[data-log]")].map(log => [log.dataset.log, log.textContent]),
})"""


@dataclass
class Followed:
    """What a page showed over time."""

    first_page: str = ""
    states: list[str] = field(default_factory=list)
    """States in their order, each once in a row."""
    bars: dict[str, set[str]] = field(default_factory=dict)
    """Texts of the bar of each stage."""
    logs: dict[str, set[str]] = field(default_factory=dict)
    """Ends of each log."""
    faults: list[str] = field(default_factory=list)


@contextmanager
def followed(directory: Path) -> Iterator[Followed]:
    """Follow the only run below a directory while the block starts it and waits for its end."""
    seen = Followed()
    stop = threading.Event()
    # Playwright belongs to one thread, and that of the test waits for the run.
    with ThreadPoolExecutor(1) as threads:
        watching = threads.submit(_follow, directory, seen, stop)
        try:
            yield seen
        finally:
            stop.set()
        watching.result()


def _follow(directory: Path, seen: Followed, stop: threading.Event) -> None:
    with served(directory) as base, chromium() as browser, watched(browser, base) as page:
        seen.first_page = page.page.inner_text("main")
        _watch(page.page, seen, stop)
        seen.faults += page.faults


def _watch(page: Any, seen: Followed, stop: threading.Event) -> None:
    deadline = time.monotonic() + _LONGEST_S
    while not page.locator("a[href^='/run?']").count():
        if time.monotonic() > deadline or stop.is_set():
            return
        page.wait_for_timeout(200)
    page.click("a[href^='/run?'] >> nth=0")
    # Once more after the end of the run, for its last state.
    is_last = False
    while time.monotonic() < deadline:
        _record(page.evaluate(_READ), seen)
        if is_last:
            return
        if stop.is_set():
            is_last = True
            page.wait_for_timeout(3000)
        page.wait_for_timeout(300)


def _record(shown: dict[str, Any], seen: Followed) -> None:
    if seen.states[-1:] != [shown["state"]]:
        seen.states.append(shown["state"])
    for stage, text in shown["bars"]:
        seen.bars.setdefault(stage, set()).add(text)
    for name, text in shown["logs"]:
        seen.logs.setdefault(name, set()).add(text)
