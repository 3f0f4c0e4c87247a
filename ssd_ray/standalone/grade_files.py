"""Grade files without a recipe: problems and completions in, verdicts and scores out.

    problems, completions ─> benchmark/, completions/ ─ worker processes ─> verdicts/
    verdicts/ ─> verdicts.parquet, scores.json

Every directory is an artifact, so an interrupted call resumes. Imports neither Ray nor torch, vLLM
or transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from ssd_ray.artifacts import files, manifests, slices
from ssd_ray.artifacts.directory_lock import locked
from ssd_ray.artifacts.facts import VerdictFacts
from ssd_ray.artifacts.identity import Identity, revision_of, staleness
from ssd_ray.artifacts.problem_facts import CompletionFileFacts, ProblemFileFacts
from ssd_ray.artifacts.shards import read_rows, shard_paths, write_shard
from ssd_ray.errors import UserError
from ssd_ray.evaluation import soundness
from ssd_ray.evaluation.grader import Grader, GradingSpec
from ssd_ray.evaluation.judging.judge import Rules
from ssd_ray.evaluation.tests_on_disk import store_problems
from ssd_ray.evaluation.verdicts import SLICE_ROWS, facts, graded_keys, is_open
from ssd_ray.problems.benchmarks import read_problems
from ssd_ray.problems.benchmarks.files import list_files
from ssd_ray.progress import Progress
from ssd_ray.reasoning import ANY, ReasoningFormat
from ssd_ray.reporting import words
from ssd_ray.schema import Completion, Problem
from ssd_ray.standalone import scores
from ssd_ray.standalone.completions import content_of, open_completions
from ssd_ray.standalone.workers import local_pool

_SHARD_ROWS = 1024
_POLL_S = 0.2


@dataclass(frozen=True, kw_only=True)
class Job:
    """Files to grade, rules, and the output directory."""

    problems: Path
    completions: Path
    out: Path
    rules: Rules
    floor: str = "L1"
    """The weakest sandbox level allowed."""
    workers: int = 1
    """Number of processes."""
    skip_bad_rows: bool = False
    thinking: bool = False
    """True if the texts begin within a reasoning part."""
    max_infrastructure_errors: float = 0.01
    """Largest share of ungraded completions in a group with a score."""


def grade_files(job: Job, progress: Progress) -> scores.FileScores:
    """Grade a file of completions; return the contents of `scores.json`.

    Raises:
        UserError: a bad row, no problem that can be graded, or a sandbox below the floor.
        InfrastructureError: workers crashed too often; the same call resumes.
    """
    # Read first: a mistake in the completions shows before minutes are spent on the problems.
    content = content_of(list_files(job.completions, "completions"))
    if job.thinking and content == "code":
        raise UserError(
            f"--thinking is about texts, and {job.completions} holds programs (column code): "
            "leave it out"
        )
    rules = asdict(job.rules) | ({"extract": "whole"} if content == "code" else {})
    rules |= {"thinking": True} if job.thinking else {}
    identities = _identities(job, rules)
    with locked(job.out):
        _refuse_others(job.out, identities)
        benchmark, completions, verdicts = (job.out / name for name in identities)
        manifests.make(
            benchmark, identities["benchmark"], lambda out: _benchmark(job, out, progress)
        )
        manifests.make(completions, identities["completions"], lambda out: _completions(job, out))
        completion_facts = manifests.load_facts(completions, CompletionFileFacts)
        total = completion_facts.rows
        if manifests.state_of(verdicts, identities["verdicts"]) == "complete" and is_open(verdicts):
            manifests.reopen(verdicts)
        manifests.make(
            verdicts,
            identities["verdicts"],
            lambda out: _verdicts(job, out, total, content, progress),
        )
        counted = scores.Counted(
            problems=manifests.load_facts(benchmark, ProblemFileFacts),
            completions=completion_facts,
            verdicts=manifests.load_facts(verdicts, scores.GradedFacts),
        )
        return scores.write(
            job.out, counted, rules, max_infrastructure_errors=job.max_infrastructure_errors
        )


def _identities(job: Job, rules: Mapping[str, object]) -> dict[str, Identity]:
    """Return the identities of the artifacts in the order in which they are made.

    Inputs enter a fingerprint with their revisions, unlike in a run: no step compares contents.
    """
    options = {"skip_bad_rows": job.skip_bad_rows}
    choices: dict[str, Mapping[str, object]] = {
        "benchmark": {"problems": files.digest(list_files(job.problems, "problems")), **options},
        "completions": {
            "completions": files.digest(list_files(job.completions, "completions")),
            **options,
        },
        "verdicts": rules,
    }
    identities: dict[str, Identity] = {}
    inputs: dict[str, str] = {}
    for stage, chosen in choices.items():
        identities[stage] = Identity(
            stage=stage, choices=chosen, inputs=inputs, revision=revision_of(stage)
        )
        inputs = {stage: identities[stage].fingerprint}
    return identities


def _refuse_others(out: Path, identities: Mapping[str, Identity]) -> None:
    """Raise an error for a directory made from other files or rules, before it is touched.

    Raises:
        UserError: an artifact is stale; the message names the difference and the remedy.
    """
    stale = {
        out / name: wanted
        for name, wanted in identities.items()
        if manifests.state_of(out / name, wanted) == "stale"
    }
    if stale:
        first = next(iter(stale))
        change = staleness(files.read_json(first / "fingerprint.json"), stale[first])
        raise UserError(
            f"{first} {change}: choose another --out, or delete {' and '.join(map(str, stale))}"
        )


def _benchmark(job: Job, out: Path, progress: Progress) -> ProblemFileFacts:
    """Write the problems that can be graded; return facts with the others."""
    loaded = read_problems(job.problems, skip_bad_rows=job.skip_bad_rows)
    if loaded.format == "evalplus":
        progress.say(
            "computing the expected outputs from the reference solutions, once; "
            "a minute or two for EvalPlus's files"
        )
    left_out: list[str] = []
    ungradable: dict[str, str] = {}
    rows = list(store_problems(loaded, out / "tests", job.floor, left_out, ungradable))
    problems_left_out = soundness.records(ungradable, loaded.places)
    if not rows:
        reasons = "; ".join(
            [f"{len(loaded.bad_rows)} bad rows", *soundness.describe(problems_left_out, most=1)]
        )
        raise UserError(f"{job.problems}: no problem in it can be graded ({reasons})")
    for line in soundness.describe(problems_left_out):
        progress.say(line)
    for start in range(0, len(rows), _SHARD_ROWS):
        write_shard(out, f"problems-{start:08}", rows[start : start + _SHARD_ROWS], Problem)
    bad_rows = tuple(loaded.bad_rows)
    progress.say(
        f"{words.counted(len(rows), 'problem')} in "
        + ("your own format" if loaded.format == "rows" else f"format {loaded.format}")
        + (f", {len(bad_rows)} bad rows left out" if bad_rows else "")
    )
    if loaded.num_public_only:
        progress.say(
            f"{loaded.num_public_only} problems have public tests only: their scores are too high"
        )
    return ProblemFileFacts(
        rows=len(rows),
        format=loaded.format,
        public_only=loaded.num_public_only,
        bad_rows=bad_rows,
        tests_left_out=tuple(left_out),
        problems_left_out=problems_left_out,
    )


def _completions(job: Job, out: Path) -> CompletionFileFacts:
    """Write the completions in shards; return facts with the bad rows."""
    problems = {
        problem.problem_id: problem for problem in read_rows(job.out / "benchmark", Problem)
    }
    benchmark = manifests.load_facts(job.out / "benchmark", ProblemFileFacts)
    left_out = [problem.problem_id for problem in benchmark.problems_left_out]
    loaded = open_completions(
        job.completions, problems, skip_bad_rows=job.skip_bad_rows, left_out=left_out
    )
    rows: list[Completion] = []
    count = 0
    for completion in loaded:
        rows.append(completion)
        count += 1
        if len(rows) == _SHARD_ROWS:
            write_shard(out, f"completions-{count:08}", rows, Completion)
            rows.clear()
    if rows:
        write_shard(out, f"completions-{count:08}", rows, Completion)
    if not count:
        raise UserError(
            f"{job.completions}: no completion in it can be graded "
            f"({len(loaded.bad_rows)} bad rows)"
        )
    return CompletionFileFacts(
        rows=count,
        content=loaded.content,
        bad_rows=tuple(loaded.bad_rows),
        left_out=loaded.num_left_out,
    )


def _verdicts(job: Job, out: Path, total: int, content: str, progress: Progress) -> VerdictFacts:
    """Grade the completions without a verdict; return facts."""
    spec = GradingSpec(
        benchmark=(job.out / "benchmark").resolve(),
        rules=job.rules,
        floor=job.floor,
        out=out.resolve(),
        reasoning=ReasoningFormat(opened=ANY if job.thinking else ""),
        as_code=content == "code",
    )
    done = graded_keys(out)
    shards = shard_paths(job.out / "completions")
    # Slices are small enough for every process to get about four of them.
    rows = max(1, min(SLICE_ROWS, total // (4 * job.workers)))
    pieces = [piece for path in shards for piece in slices.slices_of(path, done, rows)]
    # A faulty machine or benchmark is reported here, before any process starts.
    Grader(spec).close()
    with (
        progress.task("verdicts", total=total, unit="verdicts", done=len(done)) as task,
        local_pool(job.workers) as pool,
        pool.work(spec, "verdicts") as work,
    ):
        work.put(pieces)
        while work.remaining:
            task.update(len(done) + work.wait(_POLL_S))
        # Raises the error of the last slice.
        task.update(len(done) + work.wait(0))
    return facts(spec)
