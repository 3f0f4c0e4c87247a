"""Numbers of a probe: what training changed, where, and what decoding could have done.

Reads the tables of a probe; `ProbeNumbers` is the contents of probe.json.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ssd_ray.analysis import nearest_decoding, signals
from ssd_ray.analysis.measures import RANKS, Settings
from ssd_ray.analysis.nearest_decoding import Heads
from ssd_ray.analysis.operator import Setting
from ssd_ray.artifacts.shards import read_table
from ssd_ray.reporting.numbers.probe_groups import TYPES, Curve, Group, Sums, Views
from ssd_ray.statistics.means import (
    MIN_PROBLEMS,
    jackknife_interval,
    ratio_interval,
    ratio_intervals,
)
from ssd_ray.statistics.metrics import Interval, Values

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Signals:
    """Signals of progress of a student; None where theory leaves one undefined."""

    domain: str
    """Name of a domain, or `all`."""
    problems: int
    positions: int
    gap_closed: Interval | None
    temperature_reached: Interval | None
    tail_removed: Interval | None
    lock_sharpening: Interval | None
    """Rise of p(S) at positions with one token in S."""
    fork_spreading: Interval | None
    """Rise of H(p on S) at positions with three or more tokens in S, in nats."""


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """The decoding of the base that is nearest to the decoded student."""

    setting: Setting
    change: Interval
    """Distance of the student to the base, both decoded as the student; Jensen-Shannon, nats."""
    distance: Interval
    """Distance of the student to the nearest decoding of the base."""
    explained: Interval | None
    """1 - distance / change; None without a change."""
    tokens_changed: Interval
    """Total variation of student and base, both decoded as the student: the least share of tokens
    drawn differently."""
    tokens_left: Interval
    """The same between the student and the nearest decoding of the base."""
    tokens_explained: Interval | None
    """1 - tokens_left / tokens_changed."""
    positions: int


@dataclass(frozen=True, kw_only=True)
class Student:
    """Results on one model in comparison with the base."""

    name: str
    step: int | None
    """Step of the training, for a curve."""
    signals: tuple[Signals, ...]
    """All positions first, then each domain."""
    decoding: Decoding


@dataclass(frozen=True, kw_only=True)
class RankCurve:
    """Mean probability of the most likely tokens by rank (Fig. 5)."""

    type: str
    model: str
    probabilities: tuple[float, ...]
    intervals: Curve | None
    """The same with intervals; None with fewer than two problems."""
    differences: Curve | None
    """Model minus base at the same positions; None for the base too."""
    positions: int


@dataclass(frozen=True, kw_only=True)
class ProbeNumbers:
    """The contents of probe.json."""

    base: str
    models: tuple[str, ...]
    settings: Settings
    confidence: float
    ranks: tuple[int, ...]
    domains: tuple[str, ...]
    views: Views
    students: tuple[Student, ...]
    rank_curves: tuple[RankCurve, ...]
    kind_types: dict[str, tuple[float, ...]]
    """Share of each of `TYPES` within each kind of token."""


def numbers(
    out: Path, models: Sequence[str], steps: Sequence[int | None], settings: Settings
) -> ProbeNumbers:
    """Compute all numbers from the tables of a probe.

    Args:
        out: directory with the tables.
        models: names of the models, the base first.
        steps: step of each model in a training, or None.
        settings: decodings of the probe.

    Raises:
        UserError: a table is damaged, or there are fewer than two problems.
    """
    answers = read_table(out / "answers.parquet")
    heads = read_table(out / "heads.parquet")
    # Positions of the answers shown would weigh more than others.
    sampled = _Table(heads.filter(heads.column("is_sampled")))
    domains = tuple(sorted(set(answers.column("domain").to_pylist())))
    everything = Sums(out / "positions.parquet", models)
    by_domain = {
        domain: Sums(out / "positions.parquet", models, domain)
        for domain in domains
        if len(domains) > 1
    }
    table = _Table(answers)
    types = {
        domain: {name: _of_type(sums, name) for name in TYPES}
        for domain, sums in {None: everything, **by_domain}.items()
    }
    students = []
    for model, step in list(zip(models, steps, strict=True))[1:]:
        rows = [_signals(table, model, domain, groups) for domain, groups in types.items()]
        students.append(
            Student(
                name=model,
                step=step,
                signals=tuple(rows),
                decoding=_decoding(sampled, models[0], model, settings.evaluation),
            )
        )
    return ProbeNumbers(
        base=models[0],
        models=tuple(models),
        settings=settings,
        confidence=CONFIDENCE,
        ranks=RANKS,
        domains=domains,
        views=everything.views(CONFIDENCE),
        students=tuple(students),
        rank_curves=tuple(_rank_curves(sampled, models)),
        kind_types=everything.kind_types(),
    )


class _Table:
    """A table in memory, with columns as arrays."""

    def __init__(self, table: Any) -> None:
        self.table = table
        self.model = np.array(table.column("model").to_pylist())
        self.domain = np.array(table.column("domain").to_pylist())
        self.problem = np.array(table.column("problem_id").to_pylist())

    def rows(self, model: str, domain: str | None = None) -> NDArray[np.int64]:
        """Return the rows of a model, of one domain or of all."""
        chosen = self.model == model
        if domain is not None:
            chosen = chosen & (self.domain == domain)
        return np.flatnonzero(chosen)

    def values(self, name: str, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return a column, [rows] or [rows, width]."""
        import pyarrow as pa

        column = self.table.column(name).combine_chunks()
        if pa.types.is_fixed_size_list(column.type):
            flat = column.flatten().to_numpy().reshape(len(column), -1)
        else:
            flat = column.to_numpy()
        values: NDArray[np.float64] = flat[rows].astype(np.float64)
        return values

    def by_problem(self, values: Values, rows: NDArray[np.int64]) -> Values:
        """Return the sums of [rows, width] over the rows of each problem, [problems, width]."""
        _, places = np.unique(self.problem[rows], return_inverse=True)
        sums = np.zeros((places.max() + 1, values.shape[1]))
        np.add.at(sums, places, values)
        return sums


def _signals(
    table: _Table, model: str, domain: str | None, groups: Mapping[str, Group | None]
) -> Signals:
    rows = table.rows(model, domain)
    progress = table.by_problem(table.values("progress", rows), rows)
    return Signals(
        domain=domain or "all",
        problems=len(progress),
        positions=int(table.values("positions", rows).sum()),
        gap_closed=_jackknife(progress, "gap_closed"),
        temperature_reached=_jackknife(progress, "temperature_reached"),
        tail_removed=_jackknife(progress, "tail_removed"),
        lock_sharpening=_difference(groups["lock"], model, "kept_mass"),
        fork_spreading=_difference(groups["fork"], model, "support_entropy"),
    )


def _jackknife(sums: Values, name: str) -> Interval | None:
    """Return a signal of progress, by its name, with its interval."""

    def signal(total: Values) -> float | None:
        value: float | None = getattr(signals.progress(torch.from_numpy(total)), name)
        return value

    return jackknife_interval(
        signal,
        sums,
        confidence=CONFIDENCE,
        weights=signals.weights(torch.from_numpy(sums))[name].numpy(),
    )


def _of_type(sums: Sums, name: str) -> Group | None:
    place = next(
        place for place, (view, _, own) in enumerate(sums.names) if (view, own) == ("type", name)
    )
    return sums.group(place, CONFIDENCE)


def _difference(group: Group | None, model: str, measure: str) -> Interval | None:
    return None if group is None else group.models[model].differences.get(measure)


def _decoding(heads: _Table, base: str, student: str, evaluation: Setting) -> Decoding:
    rows = heads.rows(base)
    result = nearest_decoding.nearest(
        _heads(heads, rows), _heads(heads, heads.rows(student)), evaluation
    )
    columns = (result.distances, result.changes, result.variations, result.variations_of_change)
    sums = heads.by_problem(np.stack([*columns, np.ones(len(rows))], axis=1), rows)
    distances, changes, left, changed, sizes = sums.T
    return Decoding(
        setting=result.setting,
        change=ratio_interval(changes, sizes, confidence=CONFIDENCE),
        distance=ratio_interval(distances, sizes, confidence=CONFIDENCE),
        explained=_explained(distances, changes),
        tokens_changed=ratio_interval(changed, sizes, confidence=CONFIDENCE),
        tokens_left=ratio_interval(left, sizes, confidence=CONFIDENCE),
        tokens_explained=_explained(left, changed),
        positions=len(rows),
    )


def _explained(left: Values, change: Values) -> Interval | None:
    """Return the share of a change that is gone; None without a change, by problem."""
    # A student equal to the base has no change to explain, in some problems or in all.
    if (change > 0).sum() < MIN_PROBLEMS:
        return None
    return ratio_interval(change - left, change, confidence=CONFIDENCE)


def _heads(table: _Table, rows: NDArray[np.int64]) -> Heads:
    return Heads(
        log_probabilities=table.values("head_log_probabilities", rows),
        base_log_probabilities=table.values("base_log_probabilities", rows),
        tail_log_masses=table.values("tail_log_masses", rows),
    )


def _rank_curves(heads: _Table, models: Sequence[str]) -> list[RankCurve]:
    curves = []
    base = np.exp(heads.values("head_log_probabilities", heads.rows(models[0])))
    for model in models:
        # Positions of all models are in one order, so their rows are pairs.
        rows = heads.rows(model)
        size = heads.values("support_size", rows)
        probabilities = np.exp(heads.values("head_log_probabilities", rows))
        for number, name in enumerate(TYPES, start=1):
            chosen = np.minimum(size, 3) == number
            if not chosen.any():
                continue
            own, pair = probabilities[chosen], (probabilities - base)[chosen]
            curves.append(
                RankCurve(
                    type=name,
                    model=model,
                    probabilities=tuple(own.mean(0).tolist()),
                    intervals=_curve(heads, own, rows[chosen]),
                    differences=(None if model == models[0] else _curve(heads, pair, rows[chosen])),
                    positions=int(chosen.sum()),
                )
            )
    return curves


def _curve(heads: _Table, values: Values, rows: NDArray[np.int64]) -> Curve | None:
    """Return the means of [rows, width] with intervals over problems."""
    sums = heads.by_problem(np.concatenate([values, np.ones((len(rows), 1))], axis=1), rows)
    if len(sums) < MIN_PROBLEMS:
        return None
    return Curve(values=tuple(ratio_intervals(sums[:, :-1], sums[:, -1], confidence=CONFIDENCE)))
