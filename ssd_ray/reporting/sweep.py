"""The page of a sweep and its terminal summary.

The page computes nothing. It opens without a network and holds no script.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from ssd_ray.reporting.numbers.sweep_document import CellValue, MetricSweep, Row, SweepDocument
from ssd_ray.reporting.sweep_findings import findings
from ssd_ray.reporting.words import NBSP, percent, points
from ssd_ray.statistics.metrics import Interval


@dataclass(frozen=True, kw_only=True)
class MapCell:
    """A cell of the map, as text and color."""

    value: str
    range: str
    """Interval of the difference to the reference."""
    reading: str
    shade: float
    """Strength of the color, 0 to 1."""
    above: bool
    """The difference is positive."""
    title: str


@dataclass(frozen=True, kw_only=True)
class MapRow:
    """A model with its cells, in the order of the columns."""

    row: Row
    name: str
    note: str
    cells: tuple[MapCell | None, ...]


def sweep_page(document: SweepDocument) -> str:
    """Return sweep.html."""
    from ssd_ray.reporting.plots.sweep_charts import fit_charts
    from ssd_ray.reporting.templates.environment import environment

    template = environment().get_template("sweep.html.j2")
    return template.render(
        sweep=document,
        findings=list(findings(document)),
        maps={
            benchmark: [(measure, list(map_rows(document, measure))) for measure in measures]
            for benchmark, measures in document.sets.items()
        },
        charts={
            benchmark: [list(fit_charts(document, measure)) for measure in measures]
            for benchmark, measures in document.sets.items()
        },
        reference=reference_value,
        shared=shared_columns(document),
    )


def shared_columns(document: SweepDocument) -> tuple[str, list[str]]:
    """Return the truncation that all columns share, and the short name of each column."""
    cuts = {(column.top_k, column.top_p) for column in document.columns}
    if len(cuts) > 1:
        return "", [column.name.replace("_", " ") for column in document.columns]
    column = document.columns[0]
    return (
        _cut(column.top_k, column.top_p),
        [f"T{NBSP}{column.temperature:g}" for column in document.columns],
    )


def map_rows(document: SweepDocument, measure: MetricSweep) -> Iterator[MapRow]:
    """Yield the rows of a map: the base, the controls, then the students."""
    kinds = ("base", "naive", "student")
    gaps = [abs(cell.difference.estimate) for cell in measure.cells if cell.difference is not None]
    # One scale for all cells: equal differences have equal colors.
    largest = max(gaps, default=0.0) or 1.0
    for row in sorted(document.rows, key=lambda row: kinds.index(row.kind)):
        cells = {cell.column: cell for cell in measure.cells if cell.row == row.name}
        # Some measures have no value of the base.
        if not cells:
            continue
        yield MapRow(
            row=row,
            name=_row_name(row),
            note=_row_note(row, document.measure),
            cells=tuple(
                _map_cell(measure, cells[column.name], largest) if column.name in cells else None
                for column in document.columns
            ),
        )


def _row_name(row: Row) -> str:
    if row.t_train is None:
        return "base"
    parts = [f"T_train{NBSP}{row.t_train:g}"]
    parts += [f"{name.partition('.')[2]} {value}" for name, value in row.settings.items()]
    parts += [] if row.step is None else [f"step {row.step}"]
    return ", ".join(parts)


def _row_note(row: Row, measure: str) -> str:
    if row.t_train is None:
        return "its own truncation" if measure == "answers" else "decoded like the students"
    added = ", added" if row.added else ""
    return f"{_cut(row.top_k, row.top_p)}{added}"


def _cut(top_k: int | None, top_p: float) -> str:
    parts = [] if top_k is None else [f"top-k {top_k}"]
    parts += [] if top_p == 1 else [f"top-p {top_p:g}"]
    return ", ".join(parts) or "no truncation"


def _map_cell(measure: MetricSweep, cell: CellValue, largest: float) -> MapCell:
    gap = cell.difference
    return MapCell(
        value=shown(measure, cell.value),
        range="reference" if gap is None else _gap(measure, gap.low, gap.high),
        reading="" if gap is None else gap.reading,
        shade=0.0 if gap is None else round(min(1.0, abs(gap.estimate) / largest), 2),
        above=gap is not None and gap.estimate > 0,
        title=f"{cell.cell}: T_eff {cell.t_eff:g}",
    )


def _is_share(measure: MetricSweep) -> bool:
    return measure.metric.startswith("pass@")


def shown(measure: MetricSweep, value: Interval | None) -> str:
    """Format a value of a measure."""
    if value is None:
        return "no score"
    return percent(value.estimate) if _is_share(measure) else f"{value.estimate:.3f}"


def _gap(measure: MetricSweep, low: float, high: float) -> str:
    if _is_share(measure):
        return f"{points(low)} to {points(high)}"
    return f"{low:+.3f} to {high:+.3f}".replace("-", "−")


def reference_value(document: SweepDocument, measure: MetricSweep) -> str:
    """Return the value of the reference with its interval."""
    value = next(cell.value for cell in measure.cells if cell.cell == document.reference)
    if value is None:
        return "no score"
    low, high = (
        percent(end) if _is_share(measure) else f"{end:.3f}" for end in (value.low, value.high)
    )
    return f"{shown(measure, value)} ({low} to {high})"


def terminal(document: SweepDocument) -> Iterator[RenderableType]:
    """Yield the parts of a short summary."""
    for finding in findings(document):
        style = "yellow" if finding.warns else "bold"
        yield Text.assemble((f"{finding.where}: ", "dim"), (finding.what, style))
        yield Text(f"  {finding.note}", "dim")
    for benchmark, measures in document.sets.items():
        yield _table(document, benchmark, measures[0])


def _table(document: SweepDocument, benchmark: str, measure: MetricSweep) -> Table:
    cut, names = shared_columns(document)
    table = Table(
        title=f"{benchmark}: {measure.metric}{f', {cut}' if cut else ''}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    # Intervals are on the page: they would make the table too wide for a terminal.
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right")
    for row in map_rows(document, measure):
        cells = ["" if cell is None else cell.value for cell in row.cells]
        table.add_row(f"{row.name} ({row.note})", *cells)
    return table
