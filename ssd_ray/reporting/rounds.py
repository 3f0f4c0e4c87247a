"""Rounds for a reader: rounds.json, rounds.html and the table of the terminal.

Numbers are those of each round's probe, samples and report. Reads runs; the page does no I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table

from ssd_ray.analysis.collapse import ProbeState, SampleState
from ssd_ray.artifacts import manifests
from ssd_ray.artifacts.dataset_facts import DatasetFacts
from ssd_ray.artifacts.facts import AnswerFacts, VerdictFacts
from ssd_ray.reporting.numbers.json_bytes import canonical, plain, rounded_to_ten_digits
from ssd_ray.reporting.numbers.scores_file import read_scores
from ssd_ray.reporting.plots.inline_svg import Drawing, Line, Words, lines
from ssd_ray.reporting.templates.environment import environment
from ssd_ray.reporting.words import count, number, percent

PAGE = "rounds.html"


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """The report of a round."""

    gap_closed: float | None
    """By its student, from its own base; None without held-out samples."""
    scores: Mapping[str, Mapping[str, float | None]]
    """pass@k of the student by benchmark and metric, at its first arm."""
    no_code: float | None
    cut_off: float | None
    mean_tokens: float | None


@dataclass(frozen=True, kw_only=True)
class RoundRow:
    """One round, as far as it has come."""

    round: int
    samples: SampleState
    """Of the round's base: the first base, or the student before."""
    base: ProbeState | None = None
    """The first base, on the same contexts in every round."""
    student: ProbeState | None = None
    evaluated: Evaluated | None = None


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """All rounds so far."""

    recipe: str
    planned: int
    temperature: float
    headline: str
    rows: tuple[RoundRow, ...]
    stopped: str | None
    """Reason for the end before the last round."""
    is_running: bool


def sample_state(run: Path) -> SampleState:
    """Read the state of the samples of a run from its facts."""
    facts = manifests.load_facts(run / "dataset", DatasetFacts)
    drawn = manifests.load_facts(run / "samples", AnswerFacts)
    health = facts.health
    assert health is not None, "dataset/ of this version counts the health of its samples"
    rows = max(health.rows, 1)
    accepted = None
    if (run / "sample-verdicts" / "manifest.json").exists():
        outcomes = manifests.load_facts(run / "sample-verdicts", VerdictFacts).outcomes or {}
        graded = sum(outcomes.values()) - outcomes.get("infrastructure_error", 0)
        accepted = outcomes.get("accepted", 0) / max(graded, 1)
    return SampleState(
        distinct=health.distinct / rows,
        no_code=health.classes["no_code"].rows / rows,
        cut_off=health.classes["cut_off"].rows / rows,
        mean_tokens=(drawn.output_tokens or 0) / rows,
        accepted=accepted,
    )


def evaluated(run: Path) -> Evaluated:
    """Read the student's results from the report of a run."""
    scores = read_scores(run / "report" / "scores.json")
    arm = next((name for name, each in scores.arms.items() if each.model == "ssd"), None)
    held = scores.training.held_out
    closed = held.gap_closed[-1] if held is not None and held.gap_closed else None
    tables = (
        {}
        if arm is None
        else {name: benchmark.all.arms[arm] for name, benchmark in scores.benchmarks.items()}
    )

    def mean(read: Callable[..., float | None]) -> float | None:
        values = [(read(table), table.answers) for table in tables.values()]
        known = [(value, answers) for value, answers in values if value is not None and answers]
        total = sum(answers for _, answers in known)
        return sum(value * answers for value, answers in known) / total if total else None

    return Evaluated(
        gap_closed=closed,
        scores={
            name: {
                metric: None if score is None else score.estimate
                for metric, score in table.score.items()
            }
            for name, table in tables.items()
        },
        no_code=mean(lambda table: table.no_code_rate),
        cut_off=mean(lambda table: table.cap_hit_rate),
        mean_tokens=mean(lambda table: table.mean_answer_tokens),
    )


def json_text(state: Rounds) -> str:
    """Return rounds.json."""
    return canonical(rounded_to_ten_digits(plain(state))) + "\n"


def headings(state: Rounds) -> list[str]:
    """Return the headings of the table of rounds."""
    metrics = [f"{name} {metric}" for name, metric in _metrics(state)]
    return [
        *("round", "fork entropy (nats)", "fork support (tokens)", "entropy (nats)"),
        *("KL to first base (nats)", "gap closed", "distinct", "no program", "cut off"),
        *("mean tokens", *metrics),
    ]


def table_rows(state: Rounds) -> Iterator[list[str]]:
    """Yield the first base, then the student of each round; `–` where it is not there yet."""
    for place in range(len(state.rows) + 1):
        yield _cells(state, place)


def terminal(state: Rounds) -> RenderableType:
    """Return the table of the terminal, and the reason of a stop."""
    table = Table(title=f"{state.recipe}: rounds", title_justify="left")
    for place, heading in enumerate(headings(state)):
        table.add_column(heading, justify="right" if place else "left")
    for row in table_rows(state):
        table.add_row(*row)
    return Group(table, status(state))


def status(state: Rounds) -> str:
    """Return one sentence on the progress of the rounds."""
    if state.stopped:
        return f"Stopped {state.stopped}."
    done = sum(row.student is not None for row in state.rows)
    if state.is_running:
        return f"Running: {done} of {state.planned} rounds are complete."
    return f"All {state.planned} rounds are complete, and no limit of section stop was passed."


def rounds_page(state: Rounds) -> str:
    """Return rounds.html."""
    template = environment().get_template("rounds.html.j2")
    return template.render(
        state=state,
        status=status(state),
        headings=headings(state),
        rows=list(table_rows(state)),
        charts=list(charts(state)),
    )


def charts(state: Rounds) -> Iterator[Drawing]:
    """Yield charts over the rounds, once a round is complete; round 0 is the first base."""
    done = [row for row in state.rows if row.student is not None and row.base is not None]
    if not done:
        return
    base = done[0].base
    assert base is not None
    states = [base, *(row.student for row in done if row.student is not None)]
    rounds = [float(place) for place in range(len(states))]
    measured = (
        ("Entropy at forks", "nats", [each.fork_entropy for each in states]),
        ("Support at forks", "tokens", [each.fork_support for each in states]),
        ("KL to the first base", "nats", [each.kl_to_base for each in states]),
    )
    for title, unit, values in measured:
        yield lines(
            [Line(label="student", xs=rounds, ys=values, color=1)],
            Words(
                x="round",
                y=f"{title.lower()} ({unit})",
                alt=f"{title} by round: {', '.join(number(value, 3) for value in values)}.",
                caption=f"{title}, on the same contexts in every round. Round 0 is the first base.",
            ),
        )


def _metrics(state: Rounds) -> list[tuple[str, str]]:
    complete = [row.evaluated for row in state.rows if row.evaluated is not None]
    if not complete:
        return []
    return [(name, metric) for name, scores in complete[0].scores.items() for metric in scores]


def _cells(state: Rounds, place: int) -> list[str]:
    """Return the row of a model: 0 is the first base, n the student of round n."""
    row = state.rows[place - 1] if place else None
    probe = row.student if row else (state.rows[0].base if state.rows else None)
    # Samples of the next round are those of this model.
    drawn = state.rows[place].samples if place < len(state.rows) else None
    result = row.evaluated if row else None
    metrics = [
        "–" if result is None else percent(result.scores[name].get(metric))
        for name, metric in _metrics(state)
    ]

    def of_probe(read: Callable[[ProbeState], float]) -> str:
        return "–" if probe is None else number(read(probe), 3)

    def of_samples(read: Callable[[SampleState], float]) -> str:
        return "–" if drawn is None else percent(read(drawn))

    closed = None if result is None else result.gap_closed
    return [
        "first base" if place == 0 else str(place),
        of_probe(lambda each: each.fork_entropy),
        of_probe(lambda each: each.fork_support),
        of_probe(lambda each: each.entropy),
        of_probe(lambda each: each.kl_to_base),
        "–" if closed is None else percent(closed),
        of_samples(lambda each: each.distinct),
        of_samples(lambda each: each.no_code),
        of_samples(lambda each: each.cut_off),
        "–" if drawn is None else count(drawn.mean_tokens),
        *metrics,
    ]
