"""Hostile answers run no script, send no request, and leave the page usable."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlencode

import pytest

from tests.support.browser import BROWSER
from tests.view.browser import chromium, served, watched
from tests.view.hostile_run import ARM, write_hostile_run
from tests.view.hostile_texts import TEXTS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not BROWSER, reason="no chromium or google-chrome on PATH"),
]


def test_hostile_answers_stay_text(tmp_path: Path) -> None:
    assert len(TEXTS) >= 30
    run = tmp_path / "runs" / "<script>window.hostile=1<!--"
    write_hostile_run(run, TEXTS)
    with served(tmp_path / "runs") as base, chromium() as browser, watched(browser, base) as seen:
        page = seen.page
        page.click("main tbody a")
        page.click("nav a:has-text('Answers')")
        # Those of the other arm are the same, and are next to each as a difference.
        page.goto(f"{page.url}&{urlencode({'arm': ARM})}")
        assert page.locator("a.row").count() == len(TEXTS)
        page.locator("a.row").first.click()
        visited = 0
        while True:
            page.wait_for_selector("h1")
            assert page.evaluate("window.hostile") is None
            assert page.locator("section[aria-label=Answer]").is_visible()
            # No payload became an element: these are in no template.
            made = "iframe, object, embed, img, svg, style, base, form, video, math, [onerror]"
            assert page.locator(f"main :is({made})").count() == 0
            visited += 1
            following = page.locator("a[rel=next]")
            if not following.count():
                break
            page.keyboard.press("ArrowRight")
            page.wait_for_url(lambda url, at=page.url: url != at)
        assert visited == len(TEXTS)
        assert seen.faults == []
        page.goto(page.url.partition("/answer?")[0] + "/")
        page.wait_for_selector("h1")
        assert page.evaluate("window.hostile") is None
        assert ARM in page.inner_text("main")
        assert seen.faults == []
