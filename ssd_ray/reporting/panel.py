"""The panel for a reader: panel.json, panel.html and the table of the terminal. Does no I/O."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table

from ssd_ray.reporting.numbers.json_bytes import canonical, plain, rounded_to_ten_digits
from ssd_ray.reporting.templates.environment import environment
from ssd_ray.reporting.words import counted, decimals, is_few, number, percent, points, tally
from ssd_ray.statistics.differences import Difference
from ssd_ray.statistics.metrics import Interval
from ssd_ray.statistics.regression import Regression

PAGE = "panel.html"
HEADINGS = (
    "capability",
    "base: right, wrong, wrong format",
    "ssd: right, wrong, wrong format",
    "change",
    "tolerance",
    "verdict",
)


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Answers of one arm or model, each in one class."""

    right: int
    wrong: int
    wrong_format: int
    """No program, no number, code instead of a number, a broken rule of an instruction, or no label
    as the likeliest token.
    """
    ungraded: int
    label_mass: float | None = None
    """Mean probability of all labels, for choices."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One capability of base and student."""

    name: str
    kind: str
    source: str
    items: int
    """Problems, questions or texts."""
    student: Counts | None
    base: Counts | None
    difference: Difference | None
    """Share solved or in the right format, student minus base; None for a divergence."""
    divergence: Interval | None
    """Nats a token; None for shares."""
    regression: Regression

    @property
    def loss(self) -> float:
        """The estimate of the loss: a share, or nats a token."""
        if self.difference is not None:
            return -self.difference.estimate
        assert self.divergence is not None
        return self.divergence.estimate


@dataclass(frozen=True, kw_only=True)
class Panel:
    """All capabilities of a run."""

    recipe: str
    model: str
    confidence: float
    capabilities: tuple[Measured, ...]


def json_text(result: Panel) -> str:
    """Return panel.json."""
    return canonical(rounded_to_ten_digits(plain(result))) + "\n"


def panel_page(result: Panel) -> str:
    """Return panel.html."""
    template = environment().get_template("panel.html.j2")
    return template.render(
        result=result, headings=HEADINGS, rows=list(rows(result)), sentences=list(sentences(result))
    )


def terminal(result: Panel) -> RenderableType:
    """Return the table of the terminal, then a sentence for each capability."""
    table = Table(title=f"{result.recipe}: panel", title_justify="left")
    for place, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="right" if place else "left", overflow="fold")
    for row in rows(result):
        table.add_row(*row)
    return Group(table, *(text for _, text in sentences(result)))


def rows(result: Panel) -> Iterator[list[str]]:
    """Yield the cells of each capability."""
    for each in result.capabilities:
        yield [
            each.name,
            _counts(each.base),
            _counts(each.student),
            _change(each),
            _amount(each, each.regression.tolerance),
            each.regression.verdict,
        ]


def sentences(result: Panel) -> Iterator[tuple[str, str]]:
    """Yield the verdict of each capability and its sentence."""
    for each in result.capabilities:
        yield each.regression.verdict, f"{each.name}: {_sentence(each)}"


def _sentence(each: Measured) -> str:
    verdict, paired = each.regression, each.difference
    bound = _amount(each, verdict.largest_loss)
    items = counted(each.items, "item")
    if paired is not None and is_few(paired.problems):
        return f"too few problems to tell ({tally(paired)})"
    if verdict.verdict == "no regression":
        return f"no regression larger than {bound} on {items}"
    if verdict.verdict == "regressed":
        return f"regressed by {_amount(each, each.loss)}, at most {bound}, on {items}"
    return f"this panel cannot tell on {items}: the loss may reach {bound}"


def _change(each: Measured) -> str:
    if each.difference is not None:
        paired = each.difference
        if is_few(paired.problems):
            return tally(paired)
        digits = decimals(paired.problems)
        low, high = points(paired.low, digits), points(paired.high, digits)
        return f"{points(paired.estimate, digits)} ({low} to {high})"
    assert each.divergence is not None
    interval = each.divergence
    low, high = number(interval.low, 3), number(interval.high, 3)
    return f"{number(interval.estimate, 3)} ({low} to {high})"


def _amount(each: Measured, value: float) -> str:
    if each.difference is None:
        return f"{number(value, 3)} nats a token"
    return f"{points(value, decimals(each.items), signed=False)} points"


def _counts(counts: Counts | None) -> str:
    if counts is None:
        return "–"
    total = counts.right + counts.wrong + counts.wrong_format
    text = f"{counts.right}, {counts.wrong}, {counts.wrong_format} of {total}"
    if counts.ungraded:
        text += f", {counts.ungraded} not graded"
    if counts.label_mass is not None:
        text += f"; labels {percent(counts.label_mass)}"
    return text
