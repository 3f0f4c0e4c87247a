"""Contents of forecast.json, and the conclusions from them.

- Numbers of settings and decodings come from `analysis.outlook`.
- A T_train is healthy if its samples are hardly worse than the healthiest ones of the forecast.
- Reads and writes forecast.json: equal numbers give equal bytes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import TypeAdapter, ValidationError

from ssd_ray.analysis.outlook_figures import Decoded, Outlook, References, TrainingCell
from ssd_ray.artifacts import files
from ssd_ray.errors import UserError
from ssd_ray.reporting.numbers.json_bytes import canonical, plain, rounded_to_ten_digits

if TYPE_CHECKING:
    from ssd_ray.analysis.operator import DecodingLike

FORMAT = 1
WITHIN_RUN = Path("forecast") / "forecast" / "forecast.json"
"""Place of the forecast of a run in its directory."""
NOTHING_TO_GAIN = 0.97
"""Share of positions with one token from which a setting changes nothing: a line of this project,
not a finding."""
_Z = 1.96


@dataclass(frozen=True, kw_only=True)
class HealthAt:
    """Health of real samples at one T_train, with the truncation of the recipe."""

    temperature: float
    answers: int
    tokens: int
    no_code: int
    loop: int
    cut_off: int
    unhealthy: int
    """Answers in any of the three classes."""

    @property
    def share(self) -> float:
        """Share of unhealthy answers."""
        return self.unhealthy / self.answers


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The training of the recipe, by the planner."""

    device: str
    workers: int
    hours: float | None
    """None on a CPU, or if the training does not fit."""
    usd: float | None
    refusal: str
    """Reason why it does not fit; empty if it does."""
    smallest: int | None
    """Workers of the smallest cluster that fits."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A decoding of the recipe."""

    temperature: float
    top_k: int | None
    top_p: float


@dataclass(frozen=True, kw_only=True)
class AnswerRow:
    """One answer under the recipe's own settings; None where a token does not survive."""

    problem_id: str
    sample_index: int
    tokens: int
    accepted: bool | None
    """None without tests."""
    log_base: float
    """Log-likelihood under the base at T 1, from which it was drawn."""
    log_student: float | None
    """Under the ideal student of the recipe, at the recipe's T_eval."""
    log_decoded: float | None
    """Under the base at its best decoding."""


@dataclass(frozen=True, kw_only=True)
class Conclusion:
    """Conclusions of a forecast, drawn by `conclude`."""

    nothing_to_gain: bool
    """At every healthy T_train, nearly all positions keep one token."""
    healthy: tuple[float, ...]
    """T_train with healthy samples."""
    suggested: float | None
    """T_train with the largest KL(q || p0); None if nothing is to gain.

    Of the healthy ones, and of those with a student more diverse than the base at some T_eval.
    """
    matched: float | None
    """T_eval at which its student is as diverse as the base at its own decoding."""
    crossing: float | None
    """T_eval above which its student is less diverse than the base; None if in the grid never.

    0 if no student is more diverse than the base while as precise as the base's own decoding.
    """
    best_base: Choice
    """Best decoding of the base: by predicted success, else that of the recipe's baseline."""
    ranked: bool
    """Enough answers count to rank decodings by predicted success."""


@dataclass(frozen=True, kw_only=True)
class ForecastDocument:
    """Contents of forecast.json."""

    format: int
    recipe: str
    model: str
    train: Choice
    """Decoding of the recipe's samples."""
    evaluate: Choice
    """Decoding of the recipe's student."""
    baseline: Choice
    """Decoding of the recipe's base."""
    outlook: Outlook
    health: tuple[HealthAt, ...]
    cost: Cost | None
    no_cost: str
    """Reason for `cost` None."""
    conclusion: Conclusion
    answers: tuple[AnswerRow, ...]
    references: References | None = None
    """None if the prompts have no reference solutions."""


def is_at(cell: DecodingLike, choice: Choice) -> bool:
    """Return True if a cell has the numbers of a choice."""
    return (cell.temperature, cell.top_k, cell.top_p) == (
        choice.temperature,
        choice.top_k,
        choice.top_p,
    )


def own_cells(outlook: Outlook, train: Choice) -> list[TrainingCell]:
    """Return the settings with the truncation of the recipe, by rising T_train."""
    cells = [
        cell for cell in outlook.training if (cell.top_k, cell.top_p) == (train.top_k, train.top_p)
    ]
    return sorted(cells, key=lambda cell: cell.temperature)


def best_base(outlook: Outlook, baseline: Choice) -> tuple[Choice, bool]:
    """Return the best decoding of the base, and True if it is so by predicted success."""
    ranked = [
        (each.prediction.success.value, each)
        for each in outlook.base
        if each.prediction is not None and each.prediction.is_ranked
    ]
    # Without an accepted answer every prediction is 0, and an order of zeros is none.
    if len(ranked) < 2 or not outlook.accepted:
        return baseline, False
    best = max(ranked, key=lambda pair: pair[0])[1]
    return Choice(temperature=best.temperature, top_k=best.top_k, top_p=best.top_p), True


def conclude(
    outlook: Outlook, health: Sequence[HealthAt], train: Choice, baseline: Choice
) -> Conclusion:
    """Draw the conclusions of a forecast."""
    healthy = healthy_temperatures(health)
    cells = [cell for cell in own_cells(outlook, train) if cell.temperature in healthy]
    # Unhealthy settings are no way out: their samples would not be trained on.
    nothing = all(cell.one.value >= NOTHING_TO_GAIN for cell in cells)
    # A student below the base at every T_eval is only sharper, and so is the base at a lower T.
    entropy = next(each.entropy for each in outlook.base if is_at(each, baseline))
    spreading = [cell for cell in cells if _spreads(cell, entropy)]
    best, ranked = best_base(outlook, baseline)
    shown = Conclusion(
        nothing_to_gain=nothing,
        healthy=healthy,
        suggested=None,
        matched=None,
        crossing=None,
        best_base=best,
        ranked=ranked,
    )
    if nothing:
        return shown
    suggested = max(spreading or cells, key=lambda cell: cell.gap.value)
    return replace(
        shown,
        suggested=suggested.temperature,
        matched=_reached(suggested.student, entropy),
        crossing=suggested.crossing if spreading else 0.0,
    )


def healthy_temperatures(health: Sequence[HealthAt]) -> tuple[float, ...]:
    """Return the T_train whose share of unhealthy samples is within noise of the lowest one."""
    best = min(health, key=lambda each: each.share)

    # Answers at different T_train are independent draws, so their shares have a pooled error.
    def is_near(other: HealthAt) -> bool:
        rows = best.answers + other.answers
        pooled = (best.unhealthy + other.unhealthy) / rows
        error = math.sqrt(pooled * (1 - pooled) * (1 / best.answers + 1 / other.answers))
        return other.share - best.share <= _Z * error

    return tuple(each.temperature for each in health if is_near(each))


def _spreads(cell: TrainingCell, entropy: float) -> bool:
    """Return True if the student is above the base at a T_eval with at least this entropy."""
    if cell.crossing is None:
        return True
    start = _reached(cell.student, entropy) or cell.student[0].temperature
    # A value of the grid, not an interpolated one: near T 0 both entropies vanish together.
    return any(start < each.temperature <= cell.crossing for each in cell.student)


def _reached(student: Sequence[Decoded], entropy: float) -> float | None:
    """Return the lowest T_eval at which the student's entropy reaches a value."""
    if student[0].entropy >= entropy:
        return None
    for low, high in itertools.pairwise(student):
        if low.entropy < entropy <= high.entropy:
            share = (entropy - low.entropy) / (high.entropy - low.entropy)
            return low.temperature + share * (high.temperature - low.temperature)
    return None


def forecast_text(document: ForecastDocument) -> str:
    """Return the text of forecast.json."""
    return canonical(rounded_to_ten_digits(plain(document))) + "\n"


def read_forecast(path: Path) -> ForecastDocument:
    """Read a forecast.json.

    Raises:
        UserError: the file is of another format, or cannot be read.
    """
    try:
        return TypeAdapter(ForecastDocument).validate_python(files.read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(key) for key in first["loc"])
        raise UserError(
            f"{path} has no readable {name} ({first['msg'].lower()}): delete {path.parent} and run "
            "`ssd-ray forecast` again"
        ) from error
