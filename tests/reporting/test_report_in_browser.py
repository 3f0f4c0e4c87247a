"""A browser without network renders the report completely, without console messages."""

import re
import subprocess

import matplotlib.image
import pytest

from tests.support.browser import BROWSER, FLAGS, assert_fits
from tests.support.synthetic_run import make_run, recipe, reported

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not BROWSER, reason="no chromium, chromium-browser or google-chrome on PATH"
    ),
]

SWEEP = {
    "sweep": [0.9],
    "controls": ["teacher", "naive"],
    "profiles": ["strict", "lcb-compat"],
    "bootstrap_samples": 200,
}


@pytest.fixture(scope="module", params=["two arms", "a sweep"])
def shown(request, tmp_path_factory):
    """The page of a synthetic run, and how many figures it has."""
    swept = request.param == "a sweep"
    made = make_run(tmp_path_factory.mktemp("run"), recipe(evaluate=SWEEP if swept else {}))
    return reported(made)[0] / "report.html", 13 if swept else 12


@pytest.fixture
def page(shown):
    return shown[0]


@pytest.fixture
def browse(tmp_path):
    """Open a page and return its DOM and the browser's log."""

    def opened(path, *flags):
        profile = tmp_path / f"profile-{len(list(tmp_path.glob('profile-*')))}"
        command = [BROWSER, *FLAGS, f"--user-data-dir={profile}", *flags, path.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True)
        return done.stdout, done.stderr

    return opened


def complaints(log):
    return [line for line in log.splitlines() if "CONSOLE" in line]


def test_a_browser_renders_headline_and_figures_without_errors(shown, browse):
    page, figures = shown
    dom, log = browse(page, "--dump-dom")
    assert complaints(log) == []
    assert re.search(r"<h2>Result</h2>.*ssd − base: [+−]?\d+ points.*<figure>", dom, re.DOTALL)
    assert dom.count("<figure>") == figures
    assert "What this does not show" in dom


def test_console_messages_would_be_noticed(tmp_path, browse):
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<!DOCTYPE html><title>bad</title><script>console.error('heard'); nothing.here</script>"
    )
    assert len(complaints(browse(bad, "--dump-dom")[1])) == 2


@pytest.mark.parametrize("width", [400, 1280])
def test_figures_load_and_nothing_overflows_at(width, shown, tmp_path):
    page, figures = shown
    assert_fits(page, width, tmp_path, images=figures)


def test_a_screenshot_is_not_blank(page, browse, tmp_path):
    shot = tmp_path / "page.png"
    browse(page, f"--screenshot={shot}", "--window-size=1280,2400")
    pixels = matplotlib.image.imread(shot)[:, :, :3]
    assert pixels.shape == (2400, 1280, 3)
    rows_with_ink = (pixels.min(axis=(1, 2)) < 0.6).mean()
    assert rows_with_ink > 0.3
    assert 0.01 < (pixels.min(axis=2) < 0.9).mean() < 0.5
