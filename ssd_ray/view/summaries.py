"""Rows of the table of runs: model, headline differences, time, cost.

Reads recipe.yaml, timing.json, manifest.json, report/scores.json and report/timings.json.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from ssd_ray.view.runs import Run, State, read_document

_FORMAT = 1
"""Format of manifests that this version reads."""


@dataclass(frozen=True, kw_only=True)
class Headline:
    """The difference of an arm to the baseline on one benchmark."""

    benchmark: str
    arm: str
    baseline: str
    metric: str
    estimate: float
    low: float
    high: float
    better: int
    worse: int
    problems: int


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A row of the table of runs."""

    name: str
    path: str
    state: State
    model: str
    arms: tuple[str, ...]
    headline: tuple[Headline, ...]
    started: str
    seconds: float
    usd: float | None
    note: str
    """A sentence about files that cannot be read, or ""."""


class Summaries:
    """Summaries of runs, each read again when its report or its state changed."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[object, Summary]] = {}

    def of(self, run: Run) -> Summary:
        """Return the row of a run."""
        state = run.state()
        scores = run.path / "report" / "scores.json"
        stamp = (state, scores.stat().st_mtime_ns if scores.exists() else len(run.arms()))
        cached = self._known.get(run.name)
        if cached is None or cached[0] != stamp or state == "running":
            cached = (stamp, _summary(run, state))
            self._known[run.name] = cached
        return cached[1]


def _summary(run: Run, state: State) -> Summary:
    # Of parts with shards: generations/ARM and verdicts/ARM are one level deeper.
    timings = [
        (path.parent, read_document(path))
        for pattern in ("*/timing.json", "*/*/timing.json")
        for path in run.path.glob(pattern)
    ]
    begun = [path.stat().st_mtime for path in run.path.glob("*/fingerprint.json")]
    begun += [path.stat().st_mtime for path in run.path.glob("*/*/fingerprint.json")]
    total = read_document(run.path / "report" / "timings.json").get("total", {})
    usd = total.get("usd") if isinstance(total, dict) else None
    return Summary(
        name=run.name,
        path=str(run.path),
        state=state,
        model=_model(run),
        arms=run.arms(),
        headline=tuple(_headlines(run)),
        started=time.strftime("%Y-%m-%d %H:%M", time.localtime(min(begun))) if begun else "",
        seconds=sum(float(timing.get("seconds") or 0) for _, timing in timings),
        usd=usd if isinstance(usd, int | float) else None,
        note=other_format(run),
    )


def _model(run: Run) -> str:
    import yaml

    path = run.inside("recipe.yaml")
    try:
        recipe = yaml.load(path.read_bytes(), yaml.CSafeLoader) if path else {}
        return str(recipe["model"]["source"])
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        return ""


def _headlines(run: Run) -> Iterator[Headline]:
    """Yield the difference of each arm to the baseline, for the headline metric."""
    scores = read_document(run.path / "report" / "scores.json")
    metric = scores.get("headline")
    try:
        for benchmark, tables in scores.get("benchmarks", {}).items():
            for arm, table in tables["all"]["arms"].items():
                paired = (table.get("difference") or {}).get(metric)
                if paired:
                    yield Headline(
                        benchmark=benchmark,
                        arm=arm,
                        baseline=scores["baseline"],
                        metric=str(metric),
                        **{name: paired[name] for name in ("estimate", "low", "high")},
                        **{name: paired[name] for name in ("better", "worse", "problems")},
                    )
    except (KeyError, TypeError, AttributeError):
        # A report of an earlier format: the row of the run says so.
        return


def other_format(run: Run) -> str:
    """Return a sentence about artifacts of another format, or ""."""
    for pattern in ("*/manifest.json", "*/*/manifest.json"):
        for path in sorted(run.path.glob(pattern)):
            manifest = read_document(path)
            form = manifest.get("format", _FORMAT)
            if form != _FORMAT:
                return (
                    f"{path.parent.relative_to(run.path)} has format {form}, and this version of "
                    f"ssd_ray reads format {_FORMAT}: use the version that wrote it"
                )
    return ""
