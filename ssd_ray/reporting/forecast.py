"""The page of a forecast, its terminal summary, and its rows of answers.

The page computes nothing. It opens without a network and holds no script.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from ssd_ray.reporting.forecast_findings import (
    decoded_at,
    findings,
    interval,
    limits,
    own_cell,
    setting,
)
from ssd_ray.reporting.numbers.forecast import (
    AnswerRow,
    Choice,
    ForecastDocument,
    HealthAt,
    is_at,
    own_cells,
)
from ssd_ray.reporting.words import NBSP, decimals, percent

if TYPE_CHECKING:
    from ssd_ray.analysis.forecast import Tally
    from ssd_ray.analysis.forward import Context
    from ssd_ray.analysis.outlook_figures import TrainingCell


def answer_rows(
    tally: Tally,
    contexts: Sequence[Context],
    accepted: Sequence[bool] | None,
    choices: tuple[Choice, Choice, Choice],
) -> tuple[AnswerRow, ...]:
    """Return each answer with its exact log-likelihoods.

    `choices` are the decoding of the samples, of the student, and of the base.
    """
    train, evaluate, decoded = choices
    # The grid holds each setting once, so the first match is the only one.
    place = next(n for n, each in enumerate(tally.grid.training) if is_at(each, train))
    number = tally.grid.temperatures.index(evaluate.temperature)
    student = tally.student[:, place, number]
    base = tally.base[
        :, next(n for n, each in enumerate(tally.grid.decodings) if is_at(each, decoded))
    ]
    return tuple(
        AnswerRow(
            problem_id=context.problem_id,
            sample_index=context.sample_index,
            tokens=context.num_positions,
            accepted=None if accepted is None else accepted[row],
            log_base=float(tally.log_base[row]),
            log_student=None if student[row, 1] else float(student[row, 0]),
            log_decoded=None if base[row, 1] else float(base[row, 0]),
        )
        for row, context in enumerate(contexts)
    )


def forecast_page(document: ForecastDocument) -> str:
    """Return forecast.html."""
    # Imported here: the summary of a finished forecast draws nothing.
    from ssd_ray.reporting.plots.forecast_plots import forecast_pictures
    from ssd_ray.reporting.templates.environment import environment

    template = environment().get_template("forecast.html.j2")
    return template.render(
        forecast=document,
        findings=list(findings(document)),
        limits=list(limits(document)),
        cells=own_cells(document.outlook, document.train),
        others=_others(document),
        own=own_cell(document),
        student=decoded_at(own_cell(document).student, document.evaluate),
        baseline=decoded_at(document.outlook.base, document.baseline),
        best=decoded_at(document.outlook.base, document.conclusion.best_base),
        pictures=forecast_pictures(document),
        setting=setting,
        interval=interval,
        crossed=crossed,
    )


def _others(document: ForecastDocument) -> list[TrainingCell]:
    """Return the settings with another truncation than the recipe's."""
    own = own_cells(document.outlook, document.train)
    return [cell for cell in document.outlook.training if cell not in own]


def terminal(document: ForecastDocument) -> Iterator[RenderableType]:
    """Yield the parts of a short summary."""
    for finding in findings(document):
        style = "yellow" if finding.warns else "bold"
        yield Text.assemble((f"{finding.where}: ", "dim"), (finding.what, style))
        yield Text(f"  {finding.note}", "dim")
    yield _table(document)


def _table(document: ForecastDocument) -> Table:
    table = Table(
        title=f"Training settings with {setting(document.train).partition(', ')[2]}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    names = ("T_train", "one token", "loss at start", "floor", "KL(q‖p0)", "crossing", "unhealthy")
    for name in names:
        table.add_column(name, justify="right")
    by_temperature = {each.temperature: each for each in document.health}
    for cell in own_cells(document.outlook, document.train):
        table.add_row(
            f"{cell.temperature:g}",
            percent(cell.one.value),
            f"{cell.start:.3f}",
            f"{cell.floor:.3f}",
            f"{cell.gap.value:.3f}",
            crossed(cell.crossing),
            _unhealthy(by_temperature.get(cell.temperature)),
        )
    return table


def crossed(temperature: float | None) -> str:
    """Format a crossing: `T 1.12`, `never` or `always`."""
    if temperature is None:
        return "never"
    return "always" if temperature == 0 else f"T{NBSP}{temperature:.2f}"


def _unhealthy(health: HealthAt | None) -> str:
    return "" if health is None else percent(health.share, decimals(health.answers))
