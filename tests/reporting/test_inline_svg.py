"""Inline charts: names next to one another, and numbers that exist."""

from __future__ import annotations

import re

import pytest

from ssd_ray.reporting.plots.inline_svg import Line, Words, lines


def drawn(xs: list[float], y: str = "y", title: str = "") -> str:
    words = Words(title=title, x="x axis", y=y, alt="", caption="")
    return lines([Line(label="student", xs=xs, ys=[1.0] * len(xs), color=1)], words).svg


@pytest.mark.parametrize("last", range(1, 13))
def test_rounds_have_no_number_between_them(last: int) -> None:
    svg = drawn([float(number) for number in range(last + 1)])
    shown = re.findall(r'text-anchor="middle">([^<]*)<', svg)
    assert shown[-1] == "x axis"
    assert {float(text) for text in shown[:-1]} <= set(map(float, range(last + 1)))
    assert {"0", str(last)} <= set(shown) or last > 6


def test_numbers_between_are_shown_where_they_exist() -> None:
    assert ">0.4<" in drawn([0.0, 0.5, 1.0])


@pytest.mark.parametrize("title", ["", "a title"])
@pytest.mark.parametrize("y", ["y", "entropy at forks (nats)", "kl to the first base (nats)"])
def test_the_legend_comes_after_the_name_of_the_axis(y: str, title: str) -> None:
    svg = drawn([0.0, 1.0], y=y, title=title)
    (name,) = re.findall(rf'<text x="([\d.]+)" y="14.0" [^>]*>{re.escape(y)}<', svg)
    first = title or "student"
    (place,) = re.findall(rf'<text x="([\d.]+)" y="14.0" [^>]*>{first}<', svg)
    # Letters of the page are at most seven units wide in the mean.
    assert float(place) >= float(name) + 7 * len(y)
