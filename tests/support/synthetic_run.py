"""A complete run of synthetic rows, written through the package's own artifacts."""

import dataclasses
import io
import json
import random
import tempfile
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from ssd_ray.artifacts import files, manifests, shards
from ssd_ray.artifacts.dataset_facts import DatasetFacts, LengthHistogram, Masked
from ssd_ray.artifacts.device_use import DeviceUse, StageUse
from ssd_ray.artifacts.facts import AnswerFacts, CheckpointFacts, Isolation, VerdictFacts
from ssd_ray.artifacts.problem_facts import (
    BenchmarkFacts,
    BenchmarkOverlaps,
    ContaminationFacts,
    EvalPromptFacts,
    OverlapExample,
    PromptFacts,
    TrainingProblemFacts,
)
from ssd_ray.config import PrepareConfig, Recipe, arms
from ssd_ray.reporting.page import report
from ssd_ray.schema import Completion, Example, Prompt, Verdict
from ssd_ray.training.data.dataset import prepare
from ssd_ray.training.data.health import ParseOptions

EVIL = "<script>alert(1)</script>"
PROBLEMS = {
    "builtin": ("easy", "easy", "medium", "medium", "hard", "hard") * 2,
    "humaneval": ("unknown",) * 12,
}
SAMPLES = 6
CAP = 64


def recipe(**changes):
    evaluate = {
        "arms": {
            "base": {"model": "base", "temperature": 0.7, "top_k": 20, "top_p": 0.8},
            "ssd": {"model": "ssd", "temperature": 1.1, "top_k": 20, "top_p": 0.8},
        },
        "samples_per_problem": SAMPLES,
        "pass_at": [1, 5],
        "max_tokens": CAP,
        "bootstrap_samples": 500,
        "max_infrastructure_errors": 0.1,
    } | changes.pop("evaluate", {})
    values = {
        "name": "quickstart",
        "description": "A small model on a small machine.",
        "model": {"source": "package:tiny/model.gguf", "dtype": "float32", "max_model_len": 512},
        "sample": {"temperature": 1.6, "top_k": 20, "top_p": 0.8, "max_tokens": CAP},
        "train": {"steps": 40, "global_batch_size": 4, "warmup_steps": 4},
        "evaluate": evaluate,
        "sources": {
            "sample": "paper, table 3",
            "sample.temperature": "paper, table 3; 1.5 in the released configuration",
        },
    }
    return Recipe.model_validate(values | changes)


@dataclasses.dataclass(kw_only=True)
class Made:
    """A synthetic run: its directory, and its rows."""

    path: Path
    recipe: Recipe
    steps: list[str]
    verdicts: dict[str, list[Verdict]]
    completions: dict[str, list[Completion]]


def make_run(
    path, made_by=None, *, seed=0, evil="", outcome=None, mutate=lambda name, rows: rows, facts=True
):
    """Write a complete run at `path`.

    `outcome(arm, problem, sample, rng)` sets verdicts; `mutate(directory, rows)` damages rows.
    """
    chosen = made_by or recipe()
    steps = []

    def write(name, *what, **more):
        steps.append(name)
        _write(path / name, name.partition("/")[0], *what, **more)

    rng = random.Random(seed)
    prompts = [
        Prompt(
            prompt_id=f"{evil}train-{i:03}",
            source="builtin",
            difficulty="easy",
            text="Write.",
            token_ids=(1,) * 9,
        )
        for i in range(40)
    ]
    samples = [_completion(prompt, 0, rng, evil) for prompt in prompts]
    examples = [
        Example(
            prompt_id=s.prompt_id,
            sample_index=0,
            input_ids=s.prompt_token_ids + s.output_token_ids,
            num_prompt_tokens=9,
        )
        for s in samples[3:]
    ]
    problems = [
        Prompt(
            prompt_id=f"{evil}{source}/{i:02}",
            source=source,
            difficulty=difficulty,
            text=f"{evil} Solve {i}.",
            token_ids=(1,) * 11,
        )
        for source, difficulties in PROBLEMS.items()
        for i, difficulty in enumerate(difficulties)
    ]
    known = _facts(prompts, samples, examples, _health(samples))
    if not facts:
        known = _uncounted(known)
    write("benchmark", [], Example, BenchmarkFacts(rows=0), 1.5)
    write("prompts", mutate("prompts", prompts), Prompt, known["prompts"], 3.2)
    write("contamination", [], Example, _contamination(evil), 0.1)
    for branch in arms.branches(chosen):
        names = (branch.samples, branch.dataset, branch.checkpoint)
        if not (path / names[0]).exists():
            write(names[0], mutate(names[0], samples), Completion, known["samples"], 80.5)
        if branch.verdicts:
            write("training-problems", [], Example, TrainingProblemFacts(rows=0, tests=0), 0.5)
            graded = VerdictFacts(rows=0, infrastructure_errors=0)
            write(branch.verdicts, [], Example, graded, 4.0)
        if not (path / names[1]).exists():
            write(names[1], mutate(names[1], examples), Example, known["dataset"], 0.0257)
        write(names[2], [], Example, known["checkpoint"], 120.0, losses=True)
    posed = mutate("eval-prompts", problems)
    write("eval-prompts", posed, Prompt, EvalPromptFacts(rows=len(posed)), 2.0)
    made = Made(path=path, recipe=chosen, steps=steps, verdicts={}, completions={})
    decide = outcome or usual_outcome
    for arm in arms.arms(chosen):
        answers = [
            _completion(problem, i, rng, evil)
            for problem in problems
            for i in range(chosen.evaluate.samples_per_problem)
        ]
        verdicts = [_verdict(answer, decide(arm, answer, rng), evil) for answer in answers]
        made.completions[arm], made.verdicts[arm] = answers, verdicts
        name = f"generations/{arm}"
        drawn = mutate(name, answers)
        write(name, drawn, Completion, AnswerFacts(rows=len(drawn)), 300.0)
        isolation = Isolation(level=f"namespaces{evil}", network=False) if facts else None
        for profile in chosen.evaluate.profiles:
            name = f"{arms.VERDICTS[profile]}/{arm}"
            regraded = profile != chosen.evaluate.profiles[0]
            rows = mutate(name, _regraded(verdicts) if regraded else verdicts)
            counted = VerdictFacts(rows=len(rows), infrastructure_errors=0, isolation=isolation)
            write(name, rows, Verdict, counted, 30.0)
    return made


def _regraded(verdicts):
    """Return another grader's verdicts: sample 0 of every third built-in problem flips."""
    other = {"accepted": "wrong_answer"}
    return [
        dataclasses.replace(verdict, outcome=other.get(verdict.outcome, "accepted"))
        if verdict.sample_index == 0 and int(verdict.prompt_id[-2:]) % 3 == 0
        else verdict
        for verdict in verdicts
        if verdict.source == "builtin"
    ]


def _completion(prompt, index, rng, evil):
    length = min(CAP, rng.randint(5, 80))
    return Completion(
        prompt_id=prompt.prompt_id,
        sample_index=index,
        seed=rng.randrange(2**31),
        source=prompt.source,
        difficulty=prompt.difficulty,
        prompt_token_ids=prompt.token_ids,
        output_token_ids=tuple(rng.randrange(100) for _ in range(length)),
        text=f"I read a number and double it.\n{evil}\n```python\nprint(2 * int(input()))\n```",
        finish_reason="length" if length == CAP else "stop",
    )


def usual_outcome(arm, answer, rng):
    chance = {"easy": 0.7, "medium": 0.4, "hard": 0.1}.get(answer.difficulty, 0.3) + (
        0.1 if arm.startswith("ssd") else 0.0
    )
    if rng.random() < chance:
        return "accepted"
    return rng.choice(["wrong_answer"] * 4 + ["runtime_error", "time_limit", "no_code"])


def _verdict(answer, outcome, evil):
    return Verdict(
        prompt_id=answer.prompt_id,
        sample_index=answer.sample_index,
        source=answer.source,
        difficulty=answer.difficulty,
        outcome=outcome,
        num_tests=4,
        num_passed=4 if outcome == "accepted" else 1,
        time_s=random.random(),
        code="print(2 * int(input()))",
        detail=f"{evil}test 2: expected 4, got 5" if outcome == "wrong_answer" else "",
        reasoning="none",
    )


def _health(samples):
    with tempfile.TemporaryDirectory() as place:
        shards.write_shard(Path(place) / "in", "a", samples, Completion)
        reading = ParseOptions(end_tokens=frozenset(range(50)))
        return prepare(Path(place) / "in", PrepareConfig(), reading, out=Path(place) / "out").health


def _contamination(evil):
    example = OverlapExample(
        prompt_id=f"{evil}train-001",
        benchmark="builtin",
        problem_id="builtin/01",
        share=0.4,
        words=f"a b {evil}",
        length="3 words",
    )
    return ContaminationFacts(
        # The directory of this run holds no shard.
        rows=40,
        contaminated=1,
        policy="allow",
        words=13,
        benchmarks={
            "builtin": BenchmarkOverlaps(problems=12, contaminated=1),
            "humaneval": BenchmarkOverlaps(problems=12, contaminated=0),
        },
        examples=(example,),
    )


def _uncounted(known):
    """Return the facts that every version of ssd_ray counts, without later ones."""
    return {
        "prompts": PromptFacts(rows=known["prompts"].rows),
        "samples": AnswerFacts(rows=known["samples"].rows),
        "dataset": DatasetFacts(
            rows=known["dataset"].rows,
            masked=known["dataset"].masked,
            health=known["dataset"].health,
        ),
        "checkpoint": CheckpointFacts(),
    }


def _facts(prompts, samples, examples, health):
    reasons = Counter(sample.finish_reason for sample in samples)
    tokens = sum(len(sample.output_token_ids) for sample in samples)
    return {
        "prompts": PromptFacts(
            rows=len(prompts),
            read=52,
            dropped={"duplicate": 10, "too_long": 2},
            tokens=9 * len(prompts),
        ),
        "samples": AnswerFacts(
            rows=len(samples),
            prompt_tokens=9 * len(samples),
            output_tokens=tokens,
            finish_reasons=dict(reasons),
        ),
        "dataset": DatasetFacts(
            rows=len(examples),
            read=len(samples),
            dropped={"empty": 2, "stub": 1},
            masked=Masked(rows=0, response_tokens=0),
            truncated=0,
            prompt_tokens=9 * len(examples),
            response_tokens=sum(len(e.input_ids) - e.num_prompt_tokens for e in examples),
            finish_reasons={"stop": 30, "length": 7},
            token_share={"stop": 0.7, "length": 0.3},
            length_histogram=LengthHistogram(edges=(0, 50, 100), counts=(20, 17)),
            health=health,
        ),
        "checkpoint": CheckpointFacts(
            steps=40,
            first_loss=0.9,
            final_loss=0.7,
            response_tokens=4000,
            tokens=5500,
            epochs=4.3,
            num_workers=1,
            parameters=134_515_008,
        ),
    }


def _measured(step):
    """Return held-out measures as training writes them; entropy is the sum of its parts."""
    parts = {
        "entropy_gate": 0.3 - 0.004 * step,
        "entropy_head": 0.5,
        "entropy_tail": 0.2 - 0.003 * step,
    }
    return {
        "step": step,
        "tokens": 321,
        "nll": 0.9 - 0.005 * step,
        "floor": 0.6,
        "cross_entropy": 0.88 - 0.005 * step,
        "support_compression": 0.16 - 0.002 * step,
        "reshaping": -0.18 - 0.004 * step,
        "alignment": 0.001 * step,
        "constant": 0.9,
        "kl_to_base": 0.002 * step,
        "entropy": sum(parts.values()),
        **parts,
        "kept_mass": 0.85 + 0.002 * step,
        "base_kept_mass": 0.85,
        "outside_support": 0.0,
        "gap_closed": 0.009 * step,
        "temperature_reached": 1 + 0.011 * step,
        "tail_removed": 0.02 * step / 1.5,
    }


def _write(out, stage, rows, row_type, facts, seconds, *, losses=False):
    identity = manifests.Identity(stage=stage, choices={"at": out.name})
    assert manifests.claim(out, identity) is None
    half = len(rows) // 2
    if rows:
        shards.write_shard(out, "part-00000", rows[:half], row_type)
        shards.write_shard(out, "part-00001", rows[half:], row_type)
    if losses:
        lines = [
            {
                "step": i,
                "loss": 0.9 - 0.004 * i + 0.03 * (i % 3),
                "learning_rate": 1e-5,
                "seconds": 2.9,
            }
            for i in range(1, 41)
        ]
        files.write_atomic(out / "loss.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
        measured = (_measured(step) for step in (0, 10, 20, 30, 40))
        files.write_atomic(
            out / "heldout.jsonl", "".join(json.dumps(line) + "\n" for line in measured)
        )
    timing = {
        "seconds": seconds,
        "wall_seconds": 2 * seconds,
        "attempts": 1,
        "tokens": 1000 * int(seconds),
        "peak_bytes": 3 * 2**30,
    }
    files.write_atomic(out / "timing.json", json.dumps(timing))
    if out.name in ("samples", "checkpoint"):
        use = StageUse(
            devices=(DeviceUse(name="engine a", gpus=2, busy_s=300.0, idle_s=100.0, load_s=47.0),),
            preemptions=1,
            redone=12,
        )
        files.write_atomic(out / "devices.json", json.dumps(asdict(use)))
    manifests.seal(out, identity, facts)


def reported(made, name="report"):
    """Write the report of a run, and return its directory, facts and scores."""
    out = made.path / name
    facts = report(made.recipe, made.path, made.steps, out=out)
    return out, facts, json.loads((out / "scores.json").read_text())


def printed(renderable):
    """Return the output on a terminal of 200 columns."""
    sink = io.StringIO()
    Console(file=sink, width=200).print(renderable)
    return sink.getvalue()
