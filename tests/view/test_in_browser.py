"""Pages in Chromium: known rows, accessibility, keyboard, two widths, two themes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from tests.support.browser import BROWSER
from tests.support.synthetic_run import Made, make_run, reported
from tests.view.browser import chromium, served, watched
from tests.view.probed import write_probe

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not BROWSER, reason="no chromium or google-chrome on PATH"),
]
PAGES = {
    "runs": "/",
    "run": "/run?run=first",
    "answers": "/answers?run=first",
    "search": "/answers?run=first&q=print&outcome=wrong_answer&sort=tokens&descending=1",
    "answer": "/answer?run=first&in=generations/ssd&id=builtin/00&n=1",
    "tokens": "/answer?run=first&in=generations/ssd&id=builtin/00&n=2",
    "samples": "/answer?run=first&in=samples&id=train-003&n=0",
    "changes": "/changes?run=first&from=base&to=ssd",
    "report": "/report?run=first",
    "compare": "/compare?run=first&run=second",
    "message": "/answers?run=nothing",
}
AXE = "axe.run(document, {resultTypes: ['violations']}).then(result => result.violations)"
LIST_CONTROLS = """() => {
  window.controls = [...document.querySelectorAll(
    "a[href], button, input, select, textarea, summary, [tabindex='0']"
  )].filter(each => each.checkVisibility() && !each.disabled);
  return window.controls.length;
}"""
LIST_MISSED = """() => window.controls.filter(each =>
  // Of radio buttons, the keyboard reaches the checked one; arrows reach the others.
  each.isConnected && !each.isReached && !(each.type === 'radio' && !each.checked)
).map(each => each.outerHTML.slice(0, 120))"""
COLOR = "getComputedStyle(document.querySelectorAll('.tokens .t')[3]).backgroundColor"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Made]:
    """Two reported runs; the first as its rows."""
    folder = tmp_path_factory.mktemp("browsed")
    made = [make_run(folder / name, seed=seed) for seed, name in enumerate(("first", "second"))]
    for each in made:
        reported(each)
        (each.path / "recipe.yaml").write_text((each.path / "report" / "recipe.yaml").read_text())
    answer = made[0].completions["ssd"][2]
    write_probe(folder / "first-probe", answer, "builtin", list(answer.output_token_ids))
    return folder, made[0]


@pytest.fixture(scope="module")
def base(runs: tuple[Path, Made]) -> Iterator[str]:
    """The address of a view over both runs."""
    with served(runs[0]) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A Chromium."""
    with chromium() as browser:
        yield browser


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1440])
def test_pages_fit_and_are_accessible(base: str, browser: Any, width: int, scheme: str) -> None:
    axe = (resources.files("axe_playwright_python") / "axe.min.js").read_text()
    with watched(browser, base, width, scheme) as seen:
        for name, address in PAGES.items():
            seen.page.goto(base + address)
            needed = seen.page.evaluate("document.documentElement.scrollWidth")
            assert needed <= width, name
            # Through the debugger: the policy of the page refuses added scripts.
            seen.page.evaluate(axe)
            violations = seen.page.evaluate(AXE)
            bad = [
                (each["id"], each["nodes"][0]["html"][:200])
                for each in violations
                if each["impact"] in ("serious", "critical")
            ]
            assert bad == [], name
        faults = [fault for fault in seen.faults if "404" not in fault]
        assert faults == []


def test_the_keyboard_alone_reaches_everything(base: str, browser: Any) -> None:
    with watched(browser, base) as seen:
        for name, address in PAGES.items():
            seen.page.goto(base + address)
            total = seen.page.evaluate(LIST_CONTROLS)
            for _ in range(total + 5):
                seen.page.keyboard.press("Tab")
                seen.page.evaluate("document.activeElement.isReached = true")
            missed = seen.page.evaluate(LIST_MISSED)
            assert missed == [], name
            assert total >= 2, name
        assert [fault for fault in seen.faults if "404" not in fault] == []


def test_a_token_shows_its_panel_by_pointer_and_by_keys(base: str, browser: Any) -> None:
    with watched(browser, base) as seen:
        page = seen.page
        page.goto(base + PAGES["tokens"])
        assert page.is_hidden("#tip")
        page.hover(".tokens .t >> nth=3")
        assert "fork of 20" in page.inner_text("#tip")
        assert "<script>window.hostile=1</script>" in page.inner_text("#tip")
        page.mouse.move(0, 0)
        page.focus(".tokens .t >> nth=0")
        assert "lock" in page.inner_text("#tip")
        page.keyboard.press("ArrowRight")
        assert "two tokens" in page.inner_text("#tip")
        assert page.locator("#tip .top").count() == 12
        plain = page.evaluate(COLOR)
        page.check("#by-change")
        assert page.evaluate(COLOR) != plain
        page.focus(".tokens .t >> nth=1")
        page.keyboard.press("Escape")
        assert page.is_hidden("#tip")
        assert page.evaluate("window.hostile") is None
        assert seen.faults == []


def test_a_bar_of_the_report_leads_to_its_rows(base: str, browser: Any) -> None:
    with watched(browser, base, 375) as seen:
        page = seen.page
        page.goto(base + PAGES["report"])
        bar = page.locator("a[aria-label^='builtin, ssd, wrong answer: ']")
        number = bar.get_attribute("aria-label").split(": ")[1].split()[0]
        bar.click()
        page.wait_for_selector("#count")
        assert page.inner_text("#count strong") == number
        assert seen.faults == []


def test_filters_swap_the_table_and_the_address(
    base: str, browser: Any, runs: tuple[Path, Made]
) -> None:
    rows = runs[1].verdicts["ssd"]
    wrong = sum(row.outcome == "wrong_answer" for row in rows)
    with watched(browser, base) as seen:
        page = seen.page
        page.goto(f"{base}/answers?run=first&arm=ssd")
        assert page.inner_text("#count strong") == str(len(rows))
        page.evaluate("window.kept = 1")
        page.check("input[name=outcome][value=wrong_answer]")
        # Not by an expression: the policy of the page refuses to evaluate it.
        page.wait_for_selector(f"#count strong:text-is('{wrong}')")
        assert "outcome=wrong_answer" in page.url
        # The page itself was not loaded again.
        assert page.evaluate("window.kept") == 1
        link = page.url
        page.goto(f"{base}/")
        page.goto(link)
        assert page.inner_text("#count strong") == str(wrong)
        page.go_back()
        assert seen.faults == []


def test_rows_scroll_to_the_last(base: str, browser: Any, runs: tuple[Path, Made]) -> None:
    with watched(browser, base) as seen:
        page = seen.page
        page.goto(f"{base}/answers?run=first&stage=generations")
        total = sum(len(rows) for rows in runs[1].verdicts.values())
        for _ in range(10):
            page.mouse.wheel(0, 20_000)
            page.wait_for_timeout(100)
        assert page.locator("a.row").count() == total
        texts = page.locator("a.row").all_inner_texts()
        arms = page.locator("tbody td:nth-child(2)").all_inner_texts()
        assert len(set(zip(texts, arms, strict=True))) == total
        assert seen.faults == []


def test_the_keyboard_alone_reads_an_answer(base: str, browser: Any) -> None:
    with watched(browser, base) as seen:
        page = seen.page
        page.goto(f"{base}/answers?run=first&arm=base")
        page.keyboard.press("/")
        assert page.evaluate("document.activeElement.id") == "q"
        page.keyboard.press("Tab")
        page.evaluate("document.activeElement.blur()")
        page.keyboard.press("j")
        first = page.evaluate("document.activeElement.textContent")
        page.keyboard.press("j")
        assert page.evaluate("document.activeElement.textContent") != first
        page.keyboard.press("k")
        assert page.evaluate("document.activeElement.textContent") == first
        page.keyboard.press("Enter")
        page.wait_for_url("**/answer?*")
        one = page.url
        page.keyboard.press("ArrowRight")
        page.wait_for_url(lambda url: url != one)
        page.keyboard.press("ArrowLeft")
        page.wait_for_url(one)
        assert seen.faults == []


def test_two_ticks_open_the_comparison(base: str, browser: Any) -> None:
    with watched(browser, base) as seen:
        page = seen.page
        assert page.is_disabled("#compare-button")
        for name in ("first", "second"):
            page.check(f"input[value={name}]")
        page.click("#compare-button")
        page.wait_for_selector("h1:has-text('first and second')")
        assert seen.faults == []


def test_bars_and_logs_of_a_running_run_move(browser: Any, tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs" / "moving").path
    (run / "logs").mkdir()
    (run / "owner.json").write_text(json.dumps({"outcome": None}))
    log = run / "logs" / "progress.log"
    log.write_text("samples: 3/40 answers, 0:05, 9.7 tok/s\n")
    with served(run.parent) as base, watched(browser, base) as seen:
        page = seen.page
        page.goto(f"{base}/run?run=moving")
        page.wait_for_selector(".task:has-text('3/40 answers')")
        with log.open("a") as handle:
            handle.write("samples: 7/40 answers, 0:09, <b>9</b> tok/s\n")
        page.wait_for_selector(".task:has-text('7/40 answers')")
        assert page.evaluate("document.querySelector('progress').value") == 7
        (run / "logs" / "engine-1.log").write_text("<b>engine</b> ready\n")
        page.click("summary:has-text('engine-1.log')")
        assert "<b>engine</b> ready" in page.inner_text("[data-log='engine-1.log']")
        page.click("summary:has-text('progress.log')")
        assert "7/40 answers, 0:09, <b>9</b>" in page.inner_text("[data-log]")
        (run / "owner.json").write_text(json.dumps({"outcome": {"code": 0}}))
        page.wait_for_selector(".state.stopped")
        assert seen.faults == []


def test_a_difference_leads_to_its_problems(
    base: str, browser: Any, runs: tuple[Path, Made]
) -> None:
    scores = json.loads((runs[1].path / "report" / "scores.json").read_text())
    paired = scores["benchmarks"]["builtin"]["all"]["arms"]["ssd"]["difference"]["pass@1"]
    with watched(browser, base) as seen:
        page = seen.page
        page.goto(f"{base}/report?run=first")
        page.click(f"text='{paired['better']} better'")
        assert page.locator("a.row").count() == paired["better"]
        page.locator("a.row").first.click()
        page.wait_for_selector("h1:has-text('of ssd')")
        assert page.inner_text("main .outcome >> nth=0") == "accepted"
        assert page.inner_text("section[aria-label='Other arms'] .outcome") != "accepted"
        assert seen.faults == []
