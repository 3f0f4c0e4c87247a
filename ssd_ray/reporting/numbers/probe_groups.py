"""Means of a probe's measures over groups of positions, with intervals over problems.

- A group is a type of position, a kind of token, a tenth of the base's entropy, or a bin of the
  mass of its 20 most likely tokens (Fig. 6d). All of them depend on the base alone.
- Positions are read row group by row group. Sums by problem are all that stays in memory.

Reads `positions.parquet`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssd_ray.analysis.token_kinds import KINDS
from ssd_ray.artifacts.shards import row_group_tables
from ssd_ray.statistics.means import MIN_PROBLEMS, ratio_interval, ratio_intervals
from ssd_ray.statistics.metrics import Interval, Values

TYPES = ("lock", "two", "fork")
"""Positions with one token in S, with two, and with three or more."""
TOP_MASS_EDGES = (0.95, 0.98, 0.99, 0.995, 0.999)
ENTROPY_BINS = 10
SCALARS = (
    "kept_mass",
    "support_entropy",
    "entropy",
    "entropy_gate",
    "entropy_head",
    "entropy_tail",
    "support_compression",
    "reshaping",
    "alignment",
    "constant",
    "cross_entropy",
    "log_probability",
)
LISTS = ("survivors", "truncated_entropy", "rank_mass")
_BASE = ("support_size", "token_kind", "top_mass", "entropy", "problem_id", "domain", "model")


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Means with intervals, one for each of some temperatures or ranks."""

    values: tuple[Interval, ...]


@dataclass(frozen=True, kw_only=True)
class ModelMeans:
    """Means of one model over a group; differences to the base with intervals."""

    means: dict[str, float]
    """By name of `SCALARS`."""
    curves: dict[str, tuple[float, ...]]
    """By name of `LISTS`."""
    differences: dict[str, Interval]
    """Model minus base, by name of `SCALARS`; empty for the base."""
    curve_differences: dict[str, Curve]
    """Model minus base, by name of `LISTS`; empty for the base."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Positions of one group."""

    name: str
    positions: int
    share: Interval
    """Share of all positions."""
    problems: int
    models: dict[str, ModelMeans]


@dataclass(frozen=True, kw_only=True)
class Views:
    """Groups of the same positions by four criteria, and all positions as one group."""

    everything: Group
    types: tuple[Group, ...]
    kinds: tuple[Group, ...]
    entropies: tuple[Group, ...]
    top_masses: tuple[Group, ...]


class Sums:
    """Sums of all measures by model, problem and group."""

    def __init__(self, path: Path, models: Sequence[str], domain: str | None = None) -> None:
        """Read the positions of one domain, or of all."""
        self.models = tuple(models)
        self._domain = domain
        self._problems: dict[str, int] = {}
        edges = _entropy_edges(path, models[0], domain)
        self.names = _names(edges)
        self._edges = edges
        self._parts: list[NDArray[np.float64]] = []
        self._sizes: NDArray[np.float64] = np.zeros((0, len(self.names)))
        self._sums: NDArray[np.float64] = np.zeros((len(models), 0, len(self.names), 0))
        self.widths: dict[str, int] = {}
        for table in row_group_tables(path, (*_BASE, *SCALARS, *LISTS)):
            self._add(table)

    def _add(self, table: Any) -> None:
        rows = {model: _rows(table, model, self._domain) for model in self.models}
        base = rows[self.models[0]]
        if not len(base):
            return
        # Groups follow from the base alone, so that models are compared on the same positions.
        groups = self._memberships(table, base)
        problems = self._problem_numbers(table, base)
        values = np.stack([self._values(table, rows[model]) for model in self.models])
        self._grow(values.shape[2])
        # `add.at` adds repeated problems one by one; `+=` would count each once.
        for place, group in groups:
            np.add.at(self._sizes, (problems[place], group), 1.0)
            for number in range(len(self.models)):
                np.add.at(self._sums[number], (problems[place], group), values[number][place])

    def _memberships(self, table: Any, base: Any) -> list[tuple[Any, int]]:
        """Return the places of each group's positions."""
        size = _column(table, "support_size", base)
        mass = _column(table, "top_mass", base)
        entropy = _column(table, "entropy", base)
        kind = np.array(table.column("token_kind").take(base).to_pylist())
        numbers = {
            "all": np.zeros(len(size), np.int64),
            "type": np.minimum(size, 3).astype(np.int64) - 1,
            "kind": np.array([KINDS.index(each) for each in kind]),
            "entropy": np.searchsorted(self._edges, entropy, side="right"),
            "top_mass": np.searchsorted(TOP_MASS_EDGES, mass, side="right"),
        }
        numbers["kind_type"] = numbers["kind"] * len(TYPES) + numbers["type"]
        return [
            (np.flatnonzero(numbers[view] == index), place)
            for place, (view, index, _) in enumerate(self.names)
        ]

    def _problem_numbers(self, table: Any, base: Any) -> NDArray[np.int64]:
        names = table.column("problem_id").take(base).to_pylist()
        return np.array([self._problems.setdefault(name, len(self._problems)) for name in names])

    def _values(self, table: Any, rows: Any) -> NDArray[np.float64]:
        columns = [_column(table, name, rows)[:, None] for name in SCALARS]
        for name in LISTS:
            values = _lists(table, name, rows)
            self.widths[name] = values.shape[1]
            columns.append(values)
        return np.concatenate(columns, axis=1)

    def _grow(self, width: int) -> None:
        """Make room for the problems known by now."""
        problems = len(self._problems)
        old = self._sums.shape[1]
        groups = len(self.names)
        if old < problems:
            wider = np.zeros((len(self.models), problems, groups, width))
            sizes = np.zeros((problems, groups))
            sizes[:old] = self._sizes
            if old:
                wider[:, :old] = self._sums
            self._sums, self._sizes = wider, sizes

    def group(self, place: int, confidence: float) -> Group | None:
        """Return the means of one group; None without positions."""
        sizes = self._sizes[:, place]
        if not sizes.sum():
            return None
        total = self._sizes[:, 0]
        base = self._sums[0, :, place]
        models = {}
        for number, model in enumerate(self.models):
            own = self._sums[number, :, place]
            pair = (own - base, sizes) if number else None
            models[model] = self._means(own, sizes, pair, confidence)
        return Group(
            name=self.names[place][2],
            positions=int(sizes.sum()),
            share=ratio_interval(sizes, total, confidence=confidence),
            problems=int((sizes > 0).sum()),
            models=models,
        )

    def _means(
        self,
        sums: Values,
        sizes: Values,
        pair: tuple[Values, Values] | None,
        confidence: float,
    ) -> ModelMeans:
        means = sums.sum(0) / sizes.sum()
        intervals: list[Interval] = []
        if pair is not None and (sizes > 0).sum() >= MIN_PROBLEMS:
            intervals = ratio_intervals(*pair, confidence=confidence)
        places = self._places()
        return ModelMeans(
            means={name: float(means[number]) for number, name in enumerate(SCALARS)},
            curves={name: tuple(means[place].tolist()) for name, place in places.items()},
            differences=dict(zip(SCALARS, intervals, strict=False)),
            curve_differences={
                name: Curve(values=tuple(intervals[place]))
                for name, place in places.items()
                if intervals
            },
        )

    def kind_types(self) -> dict[str, tuple[float, ...]]:
        """Return the share of each of `TYPES` within each kind of token that occurs."""
        places = [place for place, (view, _, _) in enumerate(self.names) if view == "kind_type"]
        sizes = self._sizes[:, places].sum(0).reshape(len(KINDS), len(TYPES))
        return {
            kind: tuple((own / own.sum()).tolist())
            for kind, own in zip(KINDS, sizes, strict=True)
            if own.sum()
        }

    def _places(self) -> dict[str, slice]:
        """Return the columns of each list."""
        places = {}
        start = len(SCALARS)
        for name in LISTS:
            places[name] = slice(start, start + self.widths[name])
            start += self.widths[name]
        return places

    def views(self, confidence: float) -> Views:
        """Return all groups with positions."""
        every = [
            (view, self.group(place, confidence)) for place, (view, _, _) in enumerate(self.names)
        ]
        by_view = {
            name: tuple(group for view, group in every if view == name and group is not None)
            for name in ("all", "type", "kind", "entropy", "top_mass")
        }
        return Views(
            everything=by_view["all"][0],
            types=by_view["type"],
            kinds=by_view["kind"],
            entropies=by_view["entropy"],
            top_masses=by_view["top_mass"],
        )


def _names(edges: NDArray[np.float64]) -> list[tuple[str, int, str]]:
    """Return view, number and name of each group; all positions first."""
    names = [("all", 0, "all")]
    names += [("type", number, name) for number, name in enumerate(TYPES)]
    names += [("kind", number, name) for number, name in enumerate(KINDS)]
    names += [("entropy", number, name) for number, name in enumerate(_bins(edges, 3))]
    names += [
        ("kind_type", number, f"{kind}, {name}")
        for number, (kind, name) in enumerate(itertools.product(KINDS, TYPES))
    ]
    percents = 100 * np.array(TOP_MASS_EDGES)
    names += [("top_mass", number, name) for number, name in enumerate(_bins(percents, 1))]
    return names


def _bins(edges: NDArray[np.float64], digits: int) -> list[str]:
    """Return the names of the bins between edges."""
    texts = [f"{edge:.{digits}f}" for edge in edges]
    if not texts:
        return ["all"]
    inner = [f"{low} to {high}" for low, high in itertools.pairwise(texts)]
    return [f"below {texts[0]}", *inner, f"{texts[-1]} and more"]


def _entropy_edges(path: Path, base: str, domain: str | None) -> NDArray[np.float64]:
    """Return the borders of the tenths of the base's entropy."""
    parts = [
        _column(table, "entropy", _rows(table, base, domain))
        for table in row_group_tables(path, ("entropy", "model", "domain"))
    ]
    shares = np.arange(1, ENTROPY_BINS) / ENTROPY_BINS
    return np.unique(np.quantile(np.concatenate(parts), shares))


def _rows(table: Any, model: str, domain: str | None) -> NDArray[np.int64]:
    """Return the rows of a model, in the order of the positions."""
    chosen = np.array(table.column("model").to_pylist()) == model
    if domain is not None:
        chosen &= np.array(table.column("domain").to_pylist()) == domain
    return np.flatnonzero(chosen)


def _column(table: Any, name: str, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    values: NDArray[np.float64] = table.column(name).to_numpy()[rows].astype(np.float64)
    return values


def _lists(table: Any, name: str, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    flat = table.column(name).combine_chunks().flatten().to_numpy()
    values: NDArray[np.float64] = flat.reshape(table.num_rows, -1)[rows].astype(np.float64)
    return values
