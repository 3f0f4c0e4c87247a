"""Contents of sweep.json: cells with intervals, fits over T_eff, luck in the best cell.

Reads and writes sweep.json: equal numbers give equal bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from ssd_ray.artifacts import files
from ssd_ray.errors import UserError
from ssd_ray.recipes.axes import Value
from ssd_ray.reporting.numbers.json_bytes import canonical, plain, rounded_to_ten_digits
from ssd_ray.statistics.differences import Reading
from ssd_ray.statistics.metrics import Interval
from ssd_ray.statistics.peaks import Fit

FORMAT = 1
Kind = Literal["base", "naive", "student"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A model of the sweep: a row of the map."""

    name: str
    kind: Kind
    t_train: float | None
    """None for the base."""
    top_k: int | None
    """Top-k of its samples."""
    top_p: float
    settings: Mapping[str, Value]
    """Other swept fields."""
    step: int | None
    """Exported step; None is the end of the training."""
    added: bool
    """No axis asked for it."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """A decoding of the students."""

    name: str
    temperature: float
    top_k: int | None
    top_p: float


@dataclass(frozen=True, kw_only=True)
class Paired:
    """The difference of a cell to its reference, paired by problem."""

    estimate: float
    low: float
    high: float
    reading: Reading


@dataclass(frozen=True, kw_only=True)
class CellValue:
    """A value of a cell with its interval."""

    cell: str
    row: str
    column: str | None
    """None for the base at a decoding that no student has."""
    t_eff: float
    value: Interval | None
    """None without a score."""
    difference: Paired | None
    """None for the reference itself, and without a score."""


@dataclass(frozen=True, kw_only=True)
class GroupFit:
    """The fit of a group of cells."""

    group: str
    """What its cells share, in words."""
    rows: tuple[str, ...]
    cells: tuple[str, ...]
    fit: Fit | None
    refused: str
    """Reason for the absence of a fit; empty with one."""


@dataclass(frozen=True, kw_only=True)
class Luck:
    """The gain of the best cell over that of a control, and the part of it that is luck."""

    control: str
    best_cell: str
    control_cell: str
    best: float
    """Difference of both best cells, selected on the problems of the test."""
    chosen: Paired
    """Gain with both cells chosen on other problems."""
    luck: float
    """Part of the gain of the best cell that choosing on other problems does not give."""


@dataclass(frozen=True, kw_only=True)
class MetricSweep:
    """One measure on one set of problems, in every cell."""

    metric: str
    problems: int
    """Problems with a value in every cell."""
    cells: tuple[CellValue, ...]
    fits: tuple[GroupFit, ...]
    luck: tuple[Luck, ...]
    """Over the base and over the students at T 1 without truncation; empty for distributions."""


@dataclass(frozen=True, kw_only=True)
class SweepDocument:
    """Contents of sweep.json."""

    format: int
    measure: Literal["answers", "probe"]
    recipe: str
    model: str
    axes: Mapping[str, tuple[Value, ...]]
    shape: str
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    reference: str
    """Cell of the base at the recipe's own decoding."""
    sets: Mapping[str, tuple[MetricSweep, ...]]
    """Measures by benchmark."""
    confidence: float
    answers: int
    """Answers of each cell to a problem."""
    notes: tuple[str, ...] = ()


def sweep_text(document: SweepDocument) -> str:
    """Return the text of sweep.json."""
    return canonical(rounded_to_ten_digits(plain(document))) + "\n"


def read_sweep(path: Path) -> SweepDocument:
    """Read a sweep.json.

    Raises:
        UserError: the file is of another format, or cannot be read.
    """
    try:
        return TypeAdapter(SweepDocument).validate_python(files.read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(key) for key in first["loc"])
        raise UserError(
            f"{path} has no readable {name} ({first['msg'].lower()}): delete {path.parent} and run "
            "`ssd-ray sweep` again"
        ) from error
