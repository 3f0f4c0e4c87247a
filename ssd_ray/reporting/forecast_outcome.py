"""The forecast of a run next to its outcome, for the report.

A forecast in the run directory is shown if it is about the samples of the run: the same model and
the same decoding. Reads forecast.json; writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ssd_ray.config import Recipe
from ssd_ray.reporting.forecast_findings import own_cell, setting
from ssd_ray.reporting.numbers.forecast import WITHIN_RUN, ForecastDocument, is_at, read_forecast
from ssd_ray.reporting.numbers.scores import Scores
from ssd_ray.reporting.words import NOT_RECORDED, decimals, percent, rounded


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One number of the forecast and of the run."""

    name: str
    forecast: str
    outcome: str


@dataclass(frozen=True, kw_only=True)
class ForecastOutcome:
    """The section of the report on its forecast."""

    setting: str
    """Decoding of the samples in the forecast."""
    rows: tuple[Compared, ...]
    """Empty if the forecast is about other samples."""


def forecast_outcome(run: Path, recipe: Recipe, numbers: Scores) -> ForecastOutcome | None:
    """Return the forecast of a run next to its outcome; None without a forecast.

    Raises:
        UserError: forecast.json cannot be read.
    """
    path = run / WITHIN_RUN
    if not path.exists():
        return None
    document = read_forecast(path)
    is_own = document.model == recipe.model.source and is_at(recipe.sample, document.train)
    return ForecastOutcome(
        setting=setting(document.train), rows=tuple(_rows(document, numbers)) if is_own else ()
    )


def _rows(document: ForecastDocument, numbers: Scores) -> Iterator[Compared]:
    cell = own_cell(document)
    held = numbers.training.held_out
    if held is not None:
        starts, floors = held.cross_entropy, held.floor
        yield _compared("Loss at the start (nats a token)", cell.start, starts[0])
        yield _compared("Floor of the loss", cell.floor, floors[0])
        gap = None if starts[0] is None or floors[0] is None else starts[0] - floors[0]
        yield _compared("KL(q‖p0): the way to the ideal student", cell.gap.value, gap)
        yield _compared("Loss at the end (ideal: the floor)", cell.floor, starts[-1])
        if held.gap_closed is not None:
            closed = held.gap_closed[-1]
            yield Compared(
                name="Gap closed (ideal: all of it)",
                forecast=percent(1.0, 0),
                outcome=percent(closed, 0),
            )
    drawn = next(
        (each for each in document.health if each.temperature == document.train.temperature), None
    )
    health = numbers.training.dataset.health
    if drawn is not None:
        for name in ("no_code", "loop", "cut_off"):
            yield Compared(
                name=f"Samples: {name.replace('_', ' ')}",
                forecast=percent(getattr(drawn, name) / drawn.answers, decimals(drawn.answers)),
                outcome=percent(health.classes[name].rows / health.rows, decimals(health.rows)),
            )


def _compared(name: str, forecast: float, outcome: float | None) -> Compared:
    reached = NOT_RECORDED if outcome is None else rounded(outcome, 3)
    return Compared(name=name, forecast=rounded(forecast, 3), outcome=reached)
