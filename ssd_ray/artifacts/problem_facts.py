"""Facts of problems, prompts and their overlaps; they follow the rules of `facts.py`.

Does no I/O.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ssd_ray.artifacts.facts import RowFacts


@dataclass(frozen=True, kw_only=True)
class ProblemLeftOut:
    """A problem on which no program can be graded."""

    problem_id: str
    place: str
    """File and row, empty if unknown."""
    reason: str


@dataclass(frozen=True, kw_only=True)
class BadRow:
    """A row left out on request, and the reason."""

    file: str
    row: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class BenchmarkFacts(RowFacts):
    """Facts of `benchmark/` of a run."""

    tests: int | None = None
    tests_left_out: tuple[str, ...] = ()
    """Tests too large for a grader."""
    problems_left_out: tuple[ProblemLeftOut, ...] = ()
    public_only: Mapping[str, int] = field(default_factory=dict)
    """LiveCodeBench problems without private tests, by benchmark."""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Problems dropped, by reason."""
    bad_rows: tuple[BadRow, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ProblemFileFacts(RowFacts):
    """Facts of `benchmark/` of a directory of `ssd-ray grade`."""

    format: str
    """Format of the file by its columns."""
    public_only: int
    """LiveCodeBench problems without private tests."""
    bad_rows: tuple[BadRow, ...]
    tests_left_out: tuple[str, ...]
    problems_left_out: tuple[ProblemLeftOut, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CompletionFileFacts(RowFacts):
    """Facts of `completions/` of a directory of `ssd-ray grade`."""

    content: str
    """"text" or "code"."""
    bad_rows: tuple[BadRow, ...]
    left_out: int = 0
    """Completions of problems that are left out."""


@dataclass(frozen=True, kw_only=True)
class TrainingProblemFacts(RowFacts):
    """Facts of `training-problems/`."""

    tests: int
    tests_left_out: tuple[str, ...] = ()
    """Tests too large for a grader."""


@dataclass(frozen=True, kw_only=True)
class EvalPromptFacts(RowFacts):
    """Facts of `eval-prompts/`."""

    tokens: int | None = None
    longest: int | None = None
    """Tokens of the longest prompt."""
    skipped: int | None = None
    """Prompts too long for the context."""
    truncated: int | None = None
    """Prompts cut from the left to fit the context."""
    chat_template: str | None = None
    """SHA-256 of the chat template; None also without one."""
    template_date: str | None = None
    """Date that the chat template reads; None also if it reads none."""
    control_words: int | None = None
    """Number of prompts in which the text of a control token was encoded as plain text."""
    control_words_unwritable: tuple[str, ...] = ()
    """Prompts with control tokens that this tokenizer cannot write as text."""


@dataclass(frozen=True, kw_only=True)
class PromptFacts(EvalPromptFacts):
    """Facts of `prompts/`."""

    read: int | None = None
    """Rows read from the source."""
    source_revision: str | None = None
    """Commit of a data set of the hub; None also for other sources."""
    dropped: Mapping[str, int] | None = None
    """Problems dropped, by reason."""
    model: str | None = None
    """Name of the model's directory, which is its commit on the hub."""
    tokenizer: Mapping[str, str] | None = None
    """SHA-256 of each file of the tokenizer."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkOverlaps:
    """Overlaps of the training prompts with one benchmark."""

    problems: int
    contaminated: int
    """Prompts that overlap."""


@dataclass(frozen=True, kw_only=True)
class OverlapExample:
    """A training prompt and the benchmark problem that it overlaps."""

    prompt_id: str
    benchmark: str
    problem_id: str
    share: float
    """Share of the problem's runs that the prompt has, 0 to 1."""
    words: str
    """One shared run."""
    length: str
    """Length of that run, such as `13 words`."""


@dataclass(frozen=True, kw_only=True)
class ContaminationFacts(RowFacts):
    """Facts of `contamination/`."""

    contaminated: int
    """Prompts that overlap."""
    policy: str
    words: int
    """Number of words of a run."""
    benchmarks: Mapping[str, BenchmarkOverlaps]
    examples: tuple[OverlapExample, ...]
    """The largest overlaps."""
