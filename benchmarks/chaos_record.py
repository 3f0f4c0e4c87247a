"""Rows of the chaos table: figures of each case, their bars, their file and their table."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from chaos_cases import CASES
from machine import machine

CHECKPOINT_EVERY = 5
"""Steps between two states of the recipe's training."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """Figures of one case in one stage."""

    case: str
    stage: str
    seed: int
    moment: float
    """Share of the stage on disk at the strike."""
    at: int
    """Answers, steps or verdicts on disk at the strike."""
    role_back_s: float | None
    """None if the work ended before the role had as many workers as before."""
    pause_s: float
    """Longest time without more on disk, from the strike on."""
    worker_seconds_lost: float
    """Seconds of missing workers of the role, summed until the work ends: GPU seconds of a GPU."""
    seconds: float
    """From the strike to the end of the last command."""
    commands: int
    """Commands until the stage was complete."""
    answers_again: int
    answers_lost_from_disk: int
    steps_again: int
    verdicts_again: int
    """Upper bound: all rows of the slices at work in lost graders."""
    verdicts_rewritten: int
    lost: int
    doubled: int
    different: int
    equal: bool
    left: tuple[str, ...]
    notes: tuple[str, ...]
    minute: float
    date: str

    def misses(self) -> list[str]:
        """Return the bars that the row misses."""
        case = CASES[self.case]
        zeros = ("lost", "doubled", "different", "answers_lost_from_disk", "verdicts_rewritten")
        missed = [f"{name} {getattr(self, name)}" for name in zeros if getattr(self, name)]
        missed += [f"left: {each}" for each in self.left]
        most_steps = 0 if case.notice else CHECKPOINT_EVERY
        if self.steps_again > most_steps:
            missed.append(f"steps again {self.steps_again}, at most {most_steps}")
        if self.commands > 1 and not case.may_end:
            missed.append(f"{self.commands} commands, at most 1")
        if not self.equal:
            missed.append("the result differs")
        return missed


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A case without a row."""

    case: str
    stage: str
    seed: int
    sentence: str
    date: str


@dataclass(kw_only=True)
class Record:
    """Rows and failures of one or more calls, with the file that holds them."""

    path: Path | None
    rows: list[Row] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path | None) -> Record:
        """Return the record of an earlier call, empty without one."""
        record = cls(path=path)
        if path is not None and path.exists():
            document = json.loads(path.read_text())
            for row in document["rows"]:
                texts = {name: tuple(row[name]) for name in ("left", "notes")}
                record.rows.append(Row(**row | texts))
            record.failures = [Failure(**failure) for failure in document["failures"]]
        return record

    def add(self, entry: Row | Failure) -> None:
        """Add a row or a failure in place of earlier failures, and write the file."""
        same = (entry.case, entry.stage, entry.seed)
        self.failures = [
            each for each in self.failures if (each.case, each.stage, each.seed) != same
        ]
        if isinstance(entry, Row):
            self.rows.append(entry)
        else:
            self.failures.append(entry)
        if self.path is not None:
            document = {
                "rows": [asdict(row) for row in self.rows],
                "failures": [asdict(failure) for failure in self.failures],
                "machine": machine(),
            }
            self.path.write_text(json.dumps(document, indent=1) + "\n")


def markdown(rows: list[Row]) -> str:
    """Return the rows as a table."""
    lines = [
        "| case | stage | at | role back, s | pause, s | worker s lost "
        "| answers, steps, verdicts again | lost, doubled, different | equal | commands | left |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        again = f"{row.answers_again}, {row.steps_again}, {row.verdicts_again}"
        cells = [
            row.case,
            row.stage,
            f"{row.moment:.0%}",
            _s(row.role_back_s),
        ]
        cells += [f"{row.pause_s:.1f}", f"{row.worker_seconds_lost:.0f}", again]
        cells += [f"{row.lost}, {row.doubled}, {row.different}"]
        cells += ["yes" if row.equal else "no", str(row.commands), str(len(row.left))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _s(seconds: float | None) -> str:
    return "not needed" if seconds is None else f"{seconds:.1f}"


def verdict(result: Row | Failure) -> str:
    """Return the missed bars of a result in one line."""
    if isinstance(result, Failure):
        return f"failed: {result.sentence}"
    return "; ".join(result.misses()) or "reached"
