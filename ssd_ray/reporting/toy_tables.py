"""The tables of the toy, for the terminal and the page. Pure functions of `ToyFigures`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ssd_ray.analysis.toy_figures import Best, Pair, ToyFigures
from ssd_ray.reporting.words import percent, points


@dataclass(frozen=True, kw_only=True)
class ToyTable:
    """A table as text, for the terminal and the page."""

    name: str
    title: str
    headings: Sequence[str]
    """The first column holds names, all others numbers."""
    rows: Sequence[Sequence[str]]


def decoding_text(best: Best) -> str:
    """Format a decoding: `T 1.67, top-k 3, top-p 0.71`."""
    top_k = "" if best.top_k is None else f", top-k {best.top_k}"
    return f"T {best.temperature:g}{top_k}, top-p {best.top_p:g}"


def tables(figures: ToyFigures) -> Iterator[ToyTable]:
    """Yield every table."""
    yield _states(figures)
    yield _published(figures)
    yield _frontier(figures)
    yield _robustness(figures)
    yield _other_students(figures)
    yield _rounds(figures)
    yield _locks(figures)
    yield _intervals(figures)


def _states(figures: ToyFigures) -> ToyTable:
    return ToyTable(
        name="states",
        title="States",
        headings=(
            "state",
            "entropy (bits)",
            "token 0, base",
            "token 0, student",
            "tokens kept of all",
            "mass kept",
        ),
        rows=[
            (
                name,
                f"{state.entropy_bits:.2f}",
                percent(state.probabilities[0]),
                percent(state.student[0]),
                f"{state.support} of {len(state.probabilities)}",
                percent(state.kept_mass),
            )
            for name, state in figures.states.items()
        ],
    )


def _published(figures: ToyFigures) -> ToyTable:
    best, states = figures.frontier.fixed_top_p, figures.states
    low, middle, high = figures.shown
    gaps = {row.value: row.at_fixed_top_p.gain for row in figures.robustness}
    lock, fork, root = (states[name] for name in ("lock", "fork", "root"))
    rows: list[tuple[str, str, str]] = [
        ("best success of the base", "8.32 at T 0.639", _at(best.base)),
        ("best success of the student", "13.77 at T 2.091", _at(best.student)),
        (
            "base at T 0.5, 1.0, 2.09",
            "6.4, 6.4, 0.3",
            _listed([low.base, middle.base, high.base]),
        ),
        (
            "student at T 0.5, 1.0, 2.09",
            "5.5, 10.6, 13.8",
            _listed([low.student, middle.student, high.student]),
        ),
        (
            "gain at top-p 0.80 and 0.90 (points)",
            "5.4, 1.4",
            _listed([gaps[0.8], gaps[0.9]]),
        ),
        ("student's lock", "94.8, 5.2", _largest(lock.student, lock.support)),
        ("student's fork, first two", "34.4, 16.9", _largest(fork.student, 2)),
        ("student's root, failing token", "40.6", _largest(root.student, 1)),
        ("base's fork at its best T", "48.2, 17.8, 17.0, 17.0", _listed(fork.base_nucleus)),
        ("student's fork at its best T", "32.1, 22.9, 22.5, 22.5", _listed(fork.student_nucleus)),
        (
            "entropy of fork and lock (bits)",
            "2.81, 1.61",
            f"{fork.entropy_bits:.2f}, {lock.entropy_bits:.2f}",
        ),
    ]
    return ToyTable(
        name="published",
        title="Published and computed (%, at the fixed top-p)",
        headings=("number", "published", "computed"),
        rows=rows,
    )


def _at(best: Best) -> str:
    return f"{100 * best.success:.2f} at T {best.temperature:g}"


def _listed(shares: Sequence[float]) -> str:
    return ", ".join(f"{100 * share:.1f}" for share in shares)


def _largest(probabilities: Sequence[float], count: int) -> str:
    return _listed(sorted(probabilities, reverse=True)[:count])


def _frontier(figures: ToyFigures) -> ToyTable:
    frontier, grid = figures.frontier, figures.settings.grid
    highest = f"T ≤ {grid.highest:g}"
    rows = {f"{highest}, at top-p {grid.top_p:g}": frontier.fixed_top_p}
    if grid.lowest <= 1 < grid.highest:
        rows["T ≤ 1, top-p"] = frontier.tuned_top_p_up_to_one
    rows[f"{highest}, top-p"] = frontier.tuned_top_p
    rows[f"{highest}, top-p, top-k"] = frontier.tuned_top_k_too
    return ToyTable(
        name="frontier",
        title="Best decodings, by the numbers that are tuned",
        headings=("tuned", "base", "its decoding", "student", "its decoding", "gain (points)"),
        rows=[
            (
                name,
                percent(pair.base.success),
                decoding_text(pair.base),
                percent(pair.student.success),
                decoding_text(pair.student),
                points(pair.gain),
            )
            for name, pair in rows.items()
        ],
    )


def _robustness(figures: ToyFigures) -> ToyTable:
    return ToyTable(
        name="robustness",
        title="Another top-p of the evaluation, the student unchanged",
        headings=("top-p", "base", "at T", "student", "at T", "gain (points)"),
        rows=[_pair_row(f"{row.value:.2f}", row.at_fixed_top_p) for row in figures.robustness],
    )


def _pair_row(name: str, pair: Pair) -> tuple[str, ...]:
    return (
        name,
        percent(pair.base.success),
        f"{pair.base.temperature:g}",
        percent(pair.student.success),
        f"{pair.student.temperature:g}",
        points(pair.gain),
    )


def _other_students(figures: ToyFigures) -> ToyTable:
    base = figures.frontier.fixed_top_p.base
    return ToyTable(
        name="other_students",
        title=(
            f"Other samples (base: {percent(base.success)} at top-p {base.top_p:g}, "
            f"{percent(figures.frontier.tuned_top_p.base.success)} with top-p tuned)"
        ),
        headings=(
            "T_train, top-p of the samples",
            "tokens kept: lock, fork, root",
            f"best at top-p {base.top_p:g}",
            "at T",
            "best with top-p tuned",
        ),
        rows=[
            (
                f"{each.temperature:g}, {each.top_p:g}",
                ", ".join(map(str, each.supports)),
                percent(each.best.success),
                f"{each.best.temperature:g}",
                percent(each.tuned.success),
            )
            for each in figures.other_students
        ],
    )


def _rounds(figures: ToyFigures) -> ToyTable:
    return ToyTable(
        name="rounds",
        title="Rounds of self-distillation",
        headings=(
            "round",
            "tokens kept: lock, fork, root",
            "entropies (nats)",
            "best",
            "at T",
            "at T 1",
        ),
        rows=[
            (
                str(each.round),
                ", ".join(map(str, each.supports)),
                ", ".join(f"{value:.2f}" for value in each.entropies),
                percent(each.best.success),
                f"{each.best.temperature:g}",
                percent(each.at_one),
            )
            for each in figures.rounds
        ],
    )


def _locks(figures: ToyFigures) -> ToyTable:
    return ToyTable(
        name="locks",
        title=f"Number of locks, at top-p {figures.settings.grid.top_p:g}",
        headings=("locks", "base", "at T", "student", "at T", "gain (points)"),
        rows=[_pair_row(f"{row.value:g}", row.at_fixed_top_p) for row in figures.locks],
    )


def _intervals(figures: ToyFigures) -> ToyTable:
    def between(low: float, high: float) -> str:
        return f"{low:.3f} to {high:.3f}" if low < high else "none"

    return ToyTable(
        name="intervals",
        title="Top-p that keeps the fork's right token, and one token of the lock",
        headings=("T", "base", "student"),
        rows=[
            (
                f"{each.temperature:g}",
                between(each.base_low, each.base_high),
                between(each.student_low, each.student_high),
            )
            for each in figures.intervals
        ],
    )
