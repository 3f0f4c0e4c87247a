"""Coverage of the interval of a paired difference, by simulation.

    python benchmarks/interval_coverage.py --out figures.json

Two families of cases, each with 1, 4 and 10 answers per problem:

- changed: training draws a new chance for a share of the problems. True scores are 0.05 to
  0.95, and the answers to one problem are correlated.
- few: both models solve all but 0 to 6 problems always or never. The average number is drawn
  from a band of width one, since coverage jumps with it (Brown, Cai and DasGupta 2001).

The truth is covered where the score test does not reject it; the interval inverts the test.
Limits: 93 % in every case, and at most 97.5 % with 3 or more differing problems on average.
With 12,000 comparisons a case the error is 0.5 points (two standard errors at 93 %).
Reads nothing; writes the figures and the machine as JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
from machine import machine

from ssd_ray.statistics.metrics import effective_number
from ssd_ray.statistics.paired import discordance, score

Array = npt.NDArray[np.float64]
LOWEST, HIGHEST = 0.93, 0.975
COMPARISONS = 12_000
ANSWERS = (1, 4, 10)
Z = NormalDist().inv_cdf(0.975)

CHANGES = (
    (0.05, 0.1, 0.5),
    (0.1, 0.2, 1.0),
    (0.3, 0.3, 0.2),
    (0.3, 0.5, 0.3),
    (0.6, 0.6, 1.0),
    (0.9, 0.95, 0.5),
    (0.1, 0.9, 0.2),
)
"""Mean chance before training, mean of the new chances, share of problems with a new one."""
KINDS = ("all better", "mostly better", "uncertain, better", "uncertain, equal")
"""Kinds of the few problems.

- The trained model solves all of them, or four of five, and the base the others.
- Chances are uniform for the base, and the same or higher for the trained model.
"""


@dataclass(frozen=True, kw_only=True)
class Data:
    """Shares of right answers, float64[comparisons, problems], and true differences."""

    trained: Array
    base: Array
    truth: Array


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row of the table: `effective` is the median effective number of differing problems."""

    family: str
    problems: int
    answers: int
    name: str
    effective: float
    coverage: float


def beta_chances(
    mean: float, likeness: float, shape: tuple[int, int], rng: np.random.Generator
) -> Array:
    """Draw chances with the given mean; `likeness` correlates two answers to one problem."""
    size = 1 / likeness - 1
    return rng.beta(mean * size, (1 - mean) * size, shape)


def changed(
    problems: int,
    answers: int,
    likeness: float,
    change: tuple[float, float, float],
    rng: np.random.Generator,
    comparisons: int,
) -> Data:
    """Draw two models that differ on a share of the problems."""
    base, trained, moved = change
    shape = (comparisons, problems)
    before = beta_chances(base, likeness, shape, rng)
    after = np.where(rng.random(shape) < moved, beta_chances(trained, likeness, shape, rng), before)
    shares = [rng.binomial(answers, chances) / answers for chances in (after, before)]
    return Data(
        trained=shares[0], base=shares[1], truth=np.full(comparisons, moved * (trained - base))
    )


def few(
    problems: int, answers: int, band: int, kind: str, rng: np.random.Generator, comparisons: int
) -> Data:
    """Draw two models that differ on `band` to `band` + 1 problems on average."""
    shape = (comparisons, problems)
    share = rng.uniform(band, band + 1, (comparisons, 1)) / problems
    open_ones = rng.random(shape) < share
    before = rng.random(shape)
    after = before
    gain = 0.0
    if kind == "all better":
        after, before, gain = np.ones(shape), np.zeros(shape), 1.0
    elif kind == "mostly better":
        after = (rng.random(shape) < 0.8).astype(np.float64)
        before, gain = 1 - after, 0.6
    elif kind == "uncertain, better":
        after, gain = rng.beta(2, 1, shape), 2 / 3 - 1 / 2
    certain = rng.integers(2, size=shape).astype(np.float64)
    shares = [
        rng.binomial(answers, np.where(open_ones, chances, certain)) / answers
        for chances in (after, before)
    ]
    return Data(trained=shares[0], base=shares[1], truth=share[:, 0] * gain)


def coverage(data: Data, answers: int) -> tuple[float, float]:
    """Return the share of intervals with the truth, and the median effective number."""
    held, effective = [], []
    for trained, base, truth in zip(data.trained, data.base, data.truth.tolist(), strict=True):
        held.append(abs(score(discordance(trained, base, answers=answers), truth)) <= Z)
        effective.append(effective_number(trained - base))
    return float(np.mean(held)), float(np.median(effective))


def cases(sizes: tuple[int, ...], comparisons: int) -> Iterator[Case]:
    """Yield every case of both families, each with its own seed."""
    for problems, answers in itertools.product(sizes, ANSWERS):
        for number, (likeness, change) in enumerate(itertools.product((0.1, 0.6), CHANGES)):
            rng = np.random.default_rng([problems, answers, number])
            covered, effective = coverage(
                changed(problems, answers, likeness, change, rng, comparisons), answers
            )
            name = "{} to {} on {:.0%}, likeness {}".format(*change, likeness)
            yield Case(
                family="changed",
                problems=problems,
                answers=answers,
                name=name,
                effective=effective,
                coverage=covered,
            )
        for number, (band, kind) in enumerate(itertools.product(range(6), KINDS)):
            rng = np.random.default_rng([problems, answers, 100 + number])
            covered, effective = coverage(
                few(problems, answers, band, kind, rng, comparisons), answers
            )
            name = f"{band} to {band + 1} problems"
            yield Case(
                family=kind,
                problems=problems,
                answers=answers,
                name=name,
                effective=effective,
                coverage=covered,
            )


def main() -> None:
    """Simulate, print every case and the rows of docs/statistics.md, and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--problems", type=int, nargs="+", default=[30, 131, 500])
    parser.add_argument("--comparisons", type=int, default=COMPARISONS)
    chosen = parser.parse_args()
    start, rows = time.perf_counter(), []
    for case in cases(tuple(chosen.problems), chosen.comparisons):
        rows.append(case)
        print(
            (
                f"{case.problems:4} {case.answers:2} {case.family:18} {case.name:40} "
                f"{case.effective:5.1f} {case.coverage:.4f}"
            ),
            flush=True,
        )
    groups = itertools.groupby(sorted(rows, key=_row), key=_row)
    for row, members in groups:
        shares = [100 * case.coverage for case in members]
        print(
            f"| {row[1]} | {row[0]} | {len(shares)} | {min(shares):.1f} | {np.mean(shares):.1f} "
            f"| {max(shares):.1f} |"
        )
    low = [case for case in rows if case.coverage < LOWEST]
    wide = [case for case in rows if case.coverage > HIGHEST and case.effective >= 3]
    figures = {
        "machine": machine(),
        "seconds": time.perf_counter() - start,
        "comparisons": chosen.comparisons,
        "cases": [asdict(case) for case in rows],
    }
    if chosen.out:
        chosen.out.write_text(json.dumps(figures, indent=1) + "\n")
    print(
        f"below {LOWEST:.1%}: {len(low)}; above {HIGHEST:.1%} with 3 or more differing problems: "
        f"{len(wide)}"
    )
    for case in (*low, *wide):
        print("  ", case)


def _row(case: Case) -> tuple[int, str]:
    return case.problems, "changed" if case.family == "changed" else case.name


if __name__ == "__main__":
    main()
