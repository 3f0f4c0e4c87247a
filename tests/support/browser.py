"""The layout of a page in a headless browser without network, at a given width."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--virtual-time-budget=3000",
    "--enable-logging=stderr",
    "--host-resolver-rules=MAP * ~NOTFOUND",
)
_MEASURE = """<script>addEventListener("load", () => {
  const seen = {
    images: [...document.images].map(image => image.naturalWidth),
    width: innerWidth,
    needed: document.documentElement.scrollWidth,
    scrolled: [...document.querySelectorAll(".scroll")].filter(box => !box.closest("details"))
      .map(box => [box.scrollWidth, box.clientWidth]),
  };
  parent.postMessage(JSON.stringify(seen), "*");
});</script>"""
_FRAME = """<!DOCTYPE html><title>frame</title><pre id="seen"></pre><script>
addEventListener("message", event => { document.getElementById("seen").textContent = event.data; });
</script><iframe src="{name}" style="width: {width}px; height: 9000px; border: 0"></iframe>"""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Sizes of a page in CSS pixels, and the messages of its console."""

    width: int
    needed: int
    """Width of everything on the page."""
    images: tuple[int, ...]
    """Widths of the pictures."""
    scrolled: tuple[tuple[int, int], ...]
    """Needed and visible width of each table that is not folded."""
    messages: tuple[str, ...]


def layout(page: Path, width: int, folder: Path) -> Layout:
    """Return the layout of a page in a frame of a width; `folder` is for copies."""
    (folder / "measured.html").write_text(page.read_text().replace("</head>", _MEASURE + "</head>"))
    frame = folder / "frame.html"
    frame.write_text(_FRAME.replace("{name}", "measured.html").replace("{width}", str(width)))
    command = [BROWSER, *FLAGS, f"--user-data-dir={folder / 'profile'}", "--dump-dom"]
    done = subprocess.run(
        [*command, "--window-size=1400,1000", frame.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    match = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)
    assert match is not None
    seen = json.loads(match[1])
    return Layout(
        width=seen["width"],
        needed=seen["needed"],
        images=tuple(seen["images"]),
        scrolled=tuple((needed, room) for needed, room in seen["scrolled"]),
        messages=tuple(line for line in done.stderr.splitlines() if "CONSOLE" in line),
    )


def assert_fits(page: Path, width: int, folder: Path, *, images: int) -> None:
    """Assert that a page loads its pictures and fits a width; tables fit a wide one."""
    seen = layout(page, width, folder)
    assert seen.messages == ()
    assert seen.width == width
    assert seen.needed <= width
    assert len(seen.images) == images
    assert all(natural > 100 for natural in seen.images)
    assert width < 1000 or all(needed <= room for needed, room in seen.scrolled), seen.scrolled
