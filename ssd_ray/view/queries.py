"""Questions of the pages to an index: counts, facets, pages of rows, neighbors, one row.

    Filters ─condition→ SQL ─→ counts, facets, a page of rows, neighbors

Values reach DuckDB as parameters, and columns come from the tables here. So no text of a link
is part of a statement. Does no I/O of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ssd_ray.errors import UserError
from ssd_ray.view.filters import CLASSES, FACETS, Filters
from ssd_ray.view.index import Index
from ssd_ray.view.parquet import Value

PAGE_ROWS = 50
_COLUMNS = (
    "position, place, stage, arm, prompt_id, sample_index, benchmark, difficulty, finish, tokens, "
    "outcome, num_passed, num_tests, time_s, peak_bytes, health, verdict"
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """An answer in the table."""

    position: int
    place: int
    stage: str
    arm: str
    prompt_id: str
    sample_index: int
    benchmark: str
    difficulty: str
    finish: str
    tokens: int
    outcome: str
    num_passed: int
    num_tests: int
    time_s: float
    peak_bytes: int
    health: int | None
    """Classes of health as bits, None before they are computed."""
    verdict: int | None
    """Position of the verdict, None without one."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes of health."""
        return tuple(name for bit, name in enumerate(CLASSES) if (self.health or 0) >> bit & 1)


@dataclass(frozen=True, kw_only=True)
class Count:
    """Answers under the filters."""

    rows: int
    graded: int
    """Rows with a verdict other than an error of the machine."""
    accepted: int


@dataclass(frozen=True, kw_only=True)
class FacetValue:
    """A value of a filter, with the rows that it leaves under the other filters."""

    value: str
    rows: int
    is_set: bool


@dataclass(frozen=True, kw_only=True)
class Page:
    """Some rows in order, and the key after which the next page begins."""

    rows: tuple[Row, ...]
    after: str
    """"" on the last page."""


class Condition:
    """A condition in SQL with its parameters."""

    def __init__(self) -> None:
        self.parts: list[str] = ["true"]
        self.values: list[Value] = []

    def add(self, part: str, *values: Value) -> None:
        """Add a part with its values; all parts have to hold."""
        self.parts.append(part)
        self.values += values

    @property
    def sql(self) -> str:
        """The condition, with a mark for each value."""
        return " AND ".join(self.parts)


def condition(index: Index, filters: Filters) -> Condition:
    """Return the condition of filters on the table of answers."""
    chosen = Condition()
    for name in FACETS:
        values = getattr(filters, name)
        if name == "health":
            _add_health(chosen, values)
        elif values:
            chosen.add(f"{name} IN ({', '.join('?' * len(values))})", *values)
    if filters.problem:
        chosen.add("prompt_id = ?", filters.problem)
    if filters.least is not None:
        chosen.add("tokens >= ?", filters.least)
    if filters.most is not None:
        chosen.add("tokens <= ?", filters.most)
    if filters.q:
        chosen.add(f"position IN (SELECT position FROM {index.search(filters.q)})")
    return chosen


def _add_health(chosen: Condition, classes: Sequence[str]) -> None:
    bits = sum(1 << CLASSES.index(name) for name in classes if name in CLASSES)
    parts = [f"(health & {bits}) <> 0"] if bits else []
    if "none" in classes:
        parts.append("health = 0")
    if classes:
        chosen.add(f"({' OR '.join(parts) or 'false'})")


def count(index: Index, filters: Filters) -> Count:
    """Count the answers under filters."""
    chosen = condition(index, filters)
    with index.cursor() as cursor:
        (row,) = cursor.execute(
            f"""SELECT count(*),
              count(*) FILTER (outcome NOT IN ('not graded', 'infrastructure_error')),
              count(*) FILTER (outcome = 'accepted') FROM answers WHERE {chosen.sql}""",
            chosen.values,
        ).fetchall()
    return Count(rows=row[0], graded=row[1], accepted=row[2])


def facets(index: Index, filters: Filters) -> dict[str, list[FacetValue]]:
    """Count the rows of each value of each filter, under the other filters."""
    return {name: _facet(index, filters, name) for name in FACETS if name != "health"} | {
        "health": _health_facet(index, filters) if index.has_health else []
    }


def _facet(index: Index, filters: Filters, name: str) -> list[FacetValue]:
    ticked = getattr(filters, name)
    chosen = condition(index, filters.without(name))
    with index.cursor() as cursor:
        rows = cursor.execute(
            f"SELECT {name}, count(*) FROM answers WHERE {chosen.sql} "
            "GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 60",
            chosen.values,
        ).fetchall()
    counts = {str(value): number for value, number in rows}
    # A chosen value without rows stays, so that it can be taken off.
    counts |= {value: 0 for value in ticked if value not in counts}
    return [
        FacetValue(value=value, rows=number, is_set=value in ticked)
        for value, number in counts.items()
    ]


def _health_facet(index: Index, filters: Filters) -> list[FacetValue]:
    chosen = condition(index, filters.without("health"))
    sums = ", ".join(f"count(*) FILTER ((health & {1 << bit}) <> 0)" for bit in range(len(CLASSES)))
    with index.cursor() as cursor:
        (row,) = cursor.execute(
            f"SELECT {sums}, count(*) FILTER (health = 0) FROM answers WHERE {chosen.sql}",
            chosen.values,
        ).fetchall()
    return [
        FacetValue(value=name, rows=number, is_set=name in filters.health)
        for name, number in zip((*CLASSES, "none"), row, strict=True)
        if number or name in filters.health
    ]


def page(index: Index, filters: Filters, after: str = "", rows: int = PAGE_ROWS) -> Page:
    """Return the rows after a key.

    Raises:
        UserError: the key is none of this table.
    """
    # One row more than shown shows if there is a next page, without a count.
    selected = _select(index, filters, after, rows + 1)
    kept = selected[:rows]
    last = key(kept[-1], filters) if len(selected) > rows else ""
    return Page(rows=tuple(kept), after=last)


def key(row: Row, filters: Filters) -> str:
    """Return the key of a row under a sort: its value there, and its position."""
    value = getattr(row, filters.sort) if filters.sort != "position" else ""
    return f"{row.position}:{value!r}" if isinstance(value, float) else f"{row.position}:{value}"


def neighbor(index: Index, filters: Filters, row: Row, *, forward: bool) -> Row | None:
    """Return the row before or after another one under filters, None at the ends."""
    # The row before is the row after in the opposite order.
    turned = filters if forward else dataclasses.replace(filters, descending=not filters.descending)
    rows = _select(index, turned, key(row, filters), 1)
    return rows[0] if rows else None


def _select(index: Index, filters: Filters, after: str, rows: int) -> list[Row]:
    chosen = condition(index, filters)
    sort = filters.sort
    relation, direction = ("<", "DESC") if filters.descending else (">", "ASC")
    if after:
        position, value = _parsed(after, sort)
        if sort == "position":
            chosen.add(f"position {relation} ?", position)
        else:
            chosen.add(
                f"({sort} {relation} ? OR ({sort} = ? AND position {relation} ?))",
                value,
                value,
                position,
            )
    order = f"position {direction}"
    if sort != "position":
        order = f"{sort} {direction}, {order}"
    with index.cursor() as cursor:
        return _rows(
            cursor.execute(
                f"SELECT {_COLUMNS} FROM answers WHERE {chosen.sql} ORDER BY {order} LIMIT ?",
                [*chosen.values, rows],
            ).fetchall()
        )


def _parsed(after: str, sort: str) -> tuple[int, Value]:
    position, _, value = after.partition(":")
    try:
        if sort in ("position", "prompt_id"):
            return int(position), value
        return int(position), float(value) if sort == "time_s" else int(value)
    except ValueError:
        raise UserError("this link has a damaged key: open the table again") from None


def _rows(records: Sequence[Sequence[Value]]) -> list[Row]:
    names = [field.name for field in dataclasses.fields(Row)]
    return [Row(**dict(zip(names, record, strict=True))) for record in records]


def one(index: Index, source: str, prompt_id: str, sample_index: int) -> Row:
    """Return the row of an answer by its names.

    Raises:
        UserError: the run has no such answer.
    """
    places = [number for number, each in enumerate(index.sources) if each.name == source]
    with index.cursor() as cursor:
        records = cursor.execute(
            f"SELECT {_COLUMNS} FROM answers "
            "WHERE place = ? AND prompt_id = ? AND sample_index = ? LIMIT 1",
            [places[0] if places else -1, prompt_id, sample_index],
        ).fetchall()
    if not records:
        raise UserError(
            f"{index.run.name} has no answer {sample_index} to {prompt_id} in {source}: "
            "it was deleted or drawn again; go back to the table"
        )
    return _rows(records)[0]


def of_problem(index: Index, row: Row) -> list[Row]:
    """Return the answers of all arms of a stage to the problem of a row."""
    with index.cursor() as cursor:
        return _rows(
            cursor.execute(
                f"SELECT {_COLUMNS} FROM answers WHERE prompt_id = ? AND stage = ? "
                "ORDER BY place, sample_index LIMIT 2000",
                [row.prompt_id, row.stage],
            ).fetchall()
        )


def first_answers(index: Index, arm: str) -> Mapping[tuple[str, bool], int]:
    """Return the first graded answer of an arm to each problem, accepted or not."""
    with index.cursor() as cursor:
        records = cursor.execute(
            """SELECT prompt_id, outcome = 'accepted', min(sample_index) FROM answers
            WHERE stage <> 'samples' AND arm = ?
              AND outcome NOT IN ('not graded', 'infrastructure_error')
            GROUP BY 1, 2""",
            [arm],
        ).fetchall()
    return {(record[0], record[1]): record[2] for record in records}


def solved(index: Index, arm: str) -> Mapping[str, tuple[str, str, int, int]]:
    """Return benchmark, difficulty, graded and accepted answers of an arm by problem."""
    with index.cursor() as cursor:
        records = cursor.execute(
            """SELECT prompt_id, any_value(benchmark), any_value(difficulty),
              count(*) FILTER (outcome NOT IN ('not graded', 'infrastructure_error')),
              count(*) FILTER (outcome = 'accepted')
            FROM answers WHERE stage <> 'samples' AND arm = ? GROUP BY prompt_id ORDER BY 1""",
            [arm],
        ).fetchall()
    return {record[0]: (record[1], record[2], record[3], record[4]) for record in records}
