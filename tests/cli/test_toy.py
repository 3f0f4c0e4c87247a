"""`ssd-ray toy`: the files, the words, mistakes, and nothing heavy on the way."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssd_ray.analysis.toy import ToySettings
from ssd_ray.analysis.toy_study import study
from ssd_ray.reporting import toy as reporting
from tests.support.browser import BROWSER, assert_fits
from tests.support.commands import exit_status


def _toy(*arguments: str | Path) -> int:
    return exit_status("toy", *arguments)


def test_the_words_say_that_tuned_decoding_closes_the_gap(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _toy("--out", tmp_path) == 0
    text = " ".join(capsys.readouterr().out.replace("\u00a0", " ").split())
    assert "Top-p fixed at 0.8, only the temperature tuned" in text
    assert "the student wins by 5.4 points" in text
    assert "the student does not win: 0.4 points behind the base" in text
    assert re.search(r"21\.6 % base .* against 21\.2 % student", text)
    page = (tmp_path / "toy.html").read_text().replace("\u00a0", " ")
    assert "The student wins by 5.4 points" in page
    assert "21.6 % base" in page


def test_toy_json_has_what_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _toy("--json", "--out", tmp_path) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "toy.json").read_text())
    assert printed["bound"]["success"] == pytest.approx(1 / 3)
    assert len(printed["rounds"]) == 5


def test_set_changes_every_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = {
        "vocabulary": "12",
        "locks": "1",
        "rounds": "2",
        "lock.head": "[0.8, 0.1]",
        "fork.tail_ratio": "0.9",
        "samples.temperature": "1.6",
        "samples.top_k": "6",
        "grid.top_p": "0.9",
        "grid.highest": "2.5",
    }
    options = [text for name, value in changes.items() for text in ("--set", f"{name}={value}")]
    assert _toy("--json", "--out", tmp_path, *options) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["states"]["lock"]["probabilities"][:2] == pytest.approx([0.8, 0.1])
    assert len(printed["states"]["root"]["probabilities"]) == 12
    assert printed["curves"]["temperatures"][-1] == 2.5
    assert len(printed["rounds"]) == 2
    assert "not the paper's" in (tmp_path / "toy.html").read_text()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("locks=-1", "--set locks=-1: use a number greater than or equal to 0"),
        ("lock=3", "is not NAME=VALUE with one of"),
        ("lock.heads=[1]", "did you mean lock.head=VALUE?"),
        ("lock.head=[0.9, 0.3]", "lock.head=[0.9, 0.3]: use positive numbers with a sum up to 1"),
        ("lock.head=0.9, 0.1", "lock.head='0.9, 0.1': use a list in brackets, such as [a, b]"),
        ("lock.head=[.nan]", "lock.head.0=nan: use a finite number"),
        ("root.head=[0.5, x]", "root.head.1='x': use a valid number"),
        (
            "samples.temperature=0",
            "samples.temperature=0: use a number greater than or equal to 0.001",
        ),
        ("samples.top_p=1.5", "samples.top_p=1.5: use a number less than or equal to 1"),
        ("vocabulary=3", "vocabulary=3: shorten the head or raise vocabulary"),
        ("grid.step=1e-6", "use a larger step"),
        ("grid.step=4", "step 4 passes from lowest 0.1 beyond highest 4: use a smaller step"),
        ("grid.highest=0.05", "not above lowest 0.1: raise highest or reduce lowest"),
        ("locks", "is not NAME=VALUE"),
        ("locks=[", "is not a YAML value"),
    ],
)
def test_a_bad_number_is_one_sentence(
    change: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _toy("--out", tmp_path, "--set", change) == 2
    message = capsys.readouterr().err
    assert reason in message
    assert message.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@st.composite
def _states(draw: st.DrawFn, vocabulary: int) -> dict[str, object]:
    size = draw(st.integers(1, vocabulary))
    weights = draw(st.lists(st.floats(1e-6, 1.0), min_size=size, max_size=size))
    mass = draw(st.one_of(st.just(1.0), st.floats(1e-6, 1.0)))
    # A little less than the mass: rounding must not take the sum above 1.
    head = [mass * weight / sum(weights) * (1 - 1e-9) for weight in weights]
    return {"head": head, "tail_ratio": draw(st.floats(1e-6, 1.0))}


@st.composite
def _settings(draw: st.DrawFn) -> ToySettings:
    """Return extreme settings that are allowed, with a coarse grid."""
    vocabulary = draw(st.integers(2, 24))
    lowest = draw(st.sampled_from([1e-3, 0.1, 1.5, 50.0]))
    highest = lowest + draw(st.sampled_from([1e-3, 1.0, 900.0]))
    return ToySettings(
        vocabulary=vocabulary,
        locks=draw(st.sampled_from([0, 1, 3, 1000])),
        rounds=draw(st.sampled_from([1, 2, 50])),
        **{name: draw(_states(vocabulary)) for name in ("lock", "fork", "root")},
        samples={
            "temperature": draw(st.sampled_from([1e-3, 0.9, 1.0, 1e3])),
            "top_k": draw(st.sampled_from([None, 1, 5, 10**6])),
            "top_p": draw(st.sampled_from([1e-9, 0.85, 1.0])),
        },
        grid={
            "lowest": lowest,
            "highest": highest,
            "step": (highest - lowest) / draw(st.integers(1, 9)),
            "top_p": draw(st.sampled_from([1e-9, 0.8, 1.0])),
        },
    )


def _numbers(document: object) -> Iterator[float]:
    if isinstance(document, dict):
        document = list(document.values())
    if isinstance(document, list):
        for each in document:
            yield from _numbers(each)
    elif isinstance(document, float):
        yield document


@settings(max_examples=60)
@given(_settings())
@pytest.mark.slow
def test_any_allowed_settings_give_finite_figures_and_a_page(chosen: ToySettings) -> None:
    with np.errstate(all="raise", under="ignore"):
        figures = study(chosen)
    document = json.loads(reporting.json_text(figures))
    del document["settings"]
    assert all(math.isfinite(number) for number in _numbers(document))
    assert all(0 <= value <= 1 + 1e-9 for value in document["curves"]["base"])
    page = reporting.page(figures)
    assert not re.search(r"\b(nan|inf)\b", page)
    assert list(reporting.terminal(figures))


def test_the_toy_loads_neither_torch_nor_matplotlib(tmp_path: Path) -> None:
    # Their imports alone take longer than the command.
    code = (
        "import sys\nfrom ssd_ray.cli.app import app\n"
        f"app(['toy', '--out', {str(tmp_path)!r}], standalone_mode=False)\n"
        "print([name for name in ('torch', 'matplotlib', 'scipy', 'ray') if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    "changes",
    [
        ["grid.step=3.9"],
        ["grid.step=0.4"],
        ["grid.lowest=2"],
        ["grid.highest=0.2"],
        ["samples.top_k=1"],
        ["lock.head=[1.0]", "vocabulary=4"],
    ],
)
def test_settings_at_their_borders_give_a_page(changes: list[str], tmp_path: Path) -> None:
    options = [text for change in changes for text in ("--set", change)]
    assert _toy("--out", tmp_path, *options) == 0
    assert (tmp_path / "toy.html").read_text().count("<svg") == 7


def test_no_sentence_is_about_temperatures_outside_of_the_grid(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _toy("--out", tmp_path, "--set", "grid.lowest=2") == 0
    assert "up to 1" not in capsys.readouterr().out


def test_the_tables_agree_about_the_same_decoding(tmp_path: Path) -> None:
    assert _toy("--out", tmp_path) == 0
    figures = json.loads((tmp_path / "toy.json").read_text())
    best = figures["frontier"]["fixed_top_p"]
    locks = {row["value"]: row["at_fixed_top_p"] for row in figures["locks"]}
    top_ps = {row["value"]: row["at_fixed_top_p"] for row in figures["robustness"]}
    assert locks[figures["settings"]["locks"]] == best
    assert top_ps[figures["settings"]["grid"]["top_p"]] == best


class _Charts(HTMLParser):
    """The points of the lines, and the texts of the charts."""

    def __init__(self) -> None:
        super().__init__()
        self.labels: list[str] = []
        self.points: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "svg":
            self.labels.append(values["aria-label"] or "")
        if tag == "polyline":
            self.points.append(values["points"] or "")


def test_charts_stay_in_their_frames_and_have_words(tmp_path: Path) -> None:
    assert _toy("--out", tmp_path) == 0
    charts = _Charts()
    charts.feed((tmp_path / "toy.html").read_text())
    assert len(charts.labels) == 7
    assert all(charts.labels)
    places = [
        tuple(map(float, point.split(","))) for line in charts.points for point in line.split()
    ]
    assert len(places) == 4 * 391
    assert all(0 <= x <= 520 and 0 <= y <= 300 for x, y in places)


@pytest.mark.slow
@pytest.mark.skipif(not BROWSER, reason="no chromium or google-chrome on PATH")
def test_a_browser_shows_the_page_without_complaints(tmp_path: Path) -> None:
    assert _toy("--out", tmp_path) == 0
    command = [
        str(BROWSER),
        *("--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"),
        f"--user-data-dir={tmp_path / 'profile'}",
        "--dump-dom",
        (tmp_path / "toy.html").as_uri(),
    ]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in shown.stderr
    assert shown.stdout.count("<svg") == 7


@pytest.mark.slow
@pytest.mark.skipif(not BROWSER, reason="no chromium or google-chrome on PATH")
@pytest.mark.parametrize("width", [400, 1280])
def test_nothing_overflows_at(width: int, tmp_path: Path) -> None:
    assert _toy("--out", tmp_path) == 0
    assert_fits(tmp_path / "toy.html", width, tmp_path, images=0)
