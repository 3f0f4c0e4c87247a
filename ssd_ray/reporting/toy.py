"""The toy for a reader: tables of the terminal, toy.html and toy.json.

All numbers are those of `ToyFigures`; this module only chooses words. The published figures are
comparable at the default settings alone. Does no I/O.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import RenderableType
from rich.table import Table

from ssd_ray.analysis.toy import ToySettings
from ssd_ray.analysis.toy_figures import Pair, ToyFigures
from ssd_ray.config.section import fields
from ssd_ray.reporting.numbers.json_bytes import canonical, plain, rounded_to_ten_digits
from ssd_ray.reporting.plots import toy_plots
from ssd_ray.reporting.templates.environment import environment
from ssd_ray.reporting.toy_tables import decoding_text, tables
from ssd_ray.reporting.words import percent, points

_TIE = 5e-4


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One finding in words."""

    where: str
    what: str
    note: str
    gain: float


def json_text(figures: ToyFigures) -> str:
    """Return toy.json, with floats at ten significant digits."""
    return canonical(rounded_to_ten_digits(plain(figures))) + "\n"


def terminal(figures: ToyFigures) -> Iterator[RenderableType]:
    """Yield tables, then the findings as sentences."""
    for each in tables(figures):
        table = Table(title=each.title, title_justify="left")
        for place, heading in enumerate(each.headings):
            table.add_column(heading, justify="right" if place else "left")
        for row in each.rows:
            table.add_row(*row)
        yield table
    for finding in findings(figures):
        yield f"{finding.where}: {finding.what}. {finding.note}"


def page(figures: ToyFigures) -> str:
    """Return toy.html."""
    settings = figures.settings
    template = environment().get_template("toy.html.j2")
    return template.render(
        settings=settings,
        is_paper=settings == ToySettings(),
        findings=list(findings(figures)),
        tables={table.name: table for table in tables(figures)},
        states=list(toy_plots.state_charts(figures)),
        temperatures=[toy_plots.fixed_chart(figures), toy_plots.tuned_chart(figures)],
        maps=list(toy_plots.maps(figures)),
        bound=figures.bound,
        changed=[
            (name, json.dumps(value), documentation)
            for name, value, documentation in fields(settings)
        ],
    )


def findings(figures: ToyFigures) -> Iterator[Finding]:
    """Yield the findings in words, the paper's first."""
    frontier, grid = figures.frontier, figures.settings.grid
    fixed, tuned, all_tuned = (
        frontier.fixed_top_p,
        frontier.tuned_top_p,
        frontier.tuned_top_k_too,
    )
    yield Finding(
        where=f"Top-p fixed at {grid.top_p:g}, only the temperature tuned",
        what=_verdict(fixed),
        note=f"{_values(fixed, 2)}. The paper compares in this way.",
        gain=fixed.gain,
    )
    yield Finding(
        where=f"Top-p tuned too, T up to {grid.highest:g}, no top-k",
        what=_verdict(tuned),
        note=f"{_values(tuned)}. The paper does not compare in this way.{_decoding_does(tuned)}",
        gain=tuned.gain,
    )
    if grid.lowest <= 1 < grid.highest:
        yield Finding(
            where="Top-p tuned too, T up to 1",
            what=_verdict(frontier.tuned_top_p_up_to_one),
            note=f"{_values(frontier.tuned_top_p_up_to_one)}.",
            gain=frontier.tuned_top_p_up_to_one.gain,
        )
    yield Finding(
        where=f"Top-p and top-k tuned too, T up to {grid.highest:g}",
        what=_verdict(all_tuned),
        note=(
            f"{_values(all_tuned)}. No decoding of the base passes "
            f"{percent(figures.bound.success)}."
        ),
        gain=all_tuned.gain,
    )


def _verdict(pair: Pair) -> str:
    if abs(pair.gain) < _TIE:
        return "the student does as well as the base"
    if pair.gain > 0:
        return f"the student wins by {points(pair.gain, signed=False)} points"
    return f"the student does not win: {points(-pair.gain, signed=False)} points behind the base"


def _decoding_does(pair: Pair) -> str:
    """Return the reading of a comparison that the student does not win."""
    return "" if pair.gain >= _TIE else " A better decoding of the base reaches as much untrained."


def _values(pair: Pair, digits: int = 1) -> str:
    return (
        f"{percent(pair.base.success, digits)} base ({decoding_text(pair.base)}) against "
        f"{percent(pair.student.success, digits)} student ({decoding_text(pair.student)})"
    )
