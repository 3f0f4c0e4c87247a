"""The command `panel`: the cost of a training elsewhere, capability by capability.

    RUN (recipe.yaml, report/scores.json, base, checkpoint/) ─> panel.json, panel.html, rows/

- Benchmarks are read from the run: nothing is drawn or graded again.
- Formats are checked on files of answers.
- Choices and divergences are forward passes of base and student, kept row by row.
- Wrong answers and wrong formats are counted apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ssd_ray.analysis.likelihood import Choices, Ids
from ssd_ray.artifacts import files
from ssd_ray.artifacts.directory_lock import locked
from ssd_ray.artifacts.shards import read_rows
from ssd_ray.config import Recipe, arms
from ssd_ray.config.panel import Capability
from ssd_ray.errors import UserError
from ssd_ray.progress import Progress
from ssd_ray.reporting.numbers.scores_file import read_scores
from ssd_ray.reporting.panel import PAGE, Counts, Measured, Panel, json_text, panel_page
from ssd_ray.schema import Completion, Problem, Verdict
from ssd_ray.standalone.panel_files import LABELS, read_prompts, read_questions
from ssd_ray.standalone.panel_formats import Kept, kept, read_answers, read_instructions
from ssd_ray.standalone.panel_rows import BASE, STUDENT, Pair
from ssd_ray.statistics.differences import difference, pass_at_values
from ssd_ray.statistics.means import ratio_interval
from ssd_ray.statistics.regression import divergence_regression, regression

_FENCE = "```"


def panel(recipe: Recipe, run: Path, out: Path, progress: Progress) -> Panel:
    """Measure every capability of a recipe's panel on a finished run, and write the page.

    Raises:
        UserError: the recipe has no panel, a capability has no answers, or a file is unreadable.
    """
    if not recipe.panel:
        raise UserError(
            f"the recipe of {run} has no panel: add a section panel to it, or --set "
            "panel.NAME.kind=benchmark and the other fields (docs/panel.md)"
        )
    # Files are read before any model is loaded: a mistake in the last one shows at once.
    for name, each in recipe.panel.items():
        _check(recipe, run, name, each)
    with locked(out):
        result = Panel(
            recipe=recipe.name,
            model=recipe.model.source,
            confidence=recipe.evaluate.confidence,
            capabilities=_measure(recipe, run, out, progress),
        )
        files.write_atomic(out / "panel.json", json_text(result))
        files.write_atomic(out / PAGE, panel_page(result))
    return result


def _measure(recipe: Recipe, run: Path, out: Path, progress: Progress) -> tuple[Measured, ...]:
    needs_models = any(each.kind in ("choices", "kl") for each in recipe.panel.values())
    pair = Pair(run, out / "rows", progress) if needs_models else None
    measured = []
    for name, each in recipe.panel.items():
        progress.say(f"panel: {name}")
        if each.kind == "benchmark":
            measured.append(_benchmark(recipe, run, name, each))
            continue
        if each.kind == "format":
            measured.append(_formats(recipe, name, each))
            continue
        assert pair is not None
        act = _choices if each.kind == "choices" else _divergence
        measured.append(act(recipe, name, each, pair))
    return tuple(measured)


def _check(recipe: Recipe, run: Path, name: str, chosen: Capability) -> None:
    if chosen.kind == "choices":
        read_questions(Path(chosen.source), chosen.limit)
    elif chosen.kind == "kl":
        read_prompts(Path(chosen.source), chosen.limit)
    elif chosen.kind == "format":
        _kept(chosen)
    else:
        _arms(recipe, run, name, chosen)


def _arms(recipe: Recipe, run: Path, name: str, chosen: Capability) -> tuple[str, str]:
    """Return the trained arm and the one to compare with, both with answers."""
    every = arms.arms(recipe)
    student = next((each for each, arm in every.items() if arm.model == "ssd"), None)
    pair = (chosen.arm or student, chosen.against or arms.baseline(recipe))
    if not (run / "report" / "scores.json").exists():
        raise UserError(f"{run} has no report, which panel.{name} reads: run ssd-ray run first")
    scores = read_scores(run / "report" / "scores.json")
    if chosen.source not in scores.benchmarks:
        raise UserError(
            f"panel.{name}.source {chosen.source!r} has no answers in {run}: add it to "
            f"evaluate.benchmarks and run again, or use one of {', '.join(scores.benchmarks)}"
        )
    known = scores.benchmarks[chosen.source].all.arms
    for each in pair:
        if each not in known:
            raise UserError(
                f"panel.{name} compares the arm {each!r}, which {run} lacks: set arm and against "
                f"to two of {', '.join(known)}"
            )
    trained, against = pair
    assert trained is not None
    return trained, against


def _benchmark(recipe: Recipe, run: Path, name: str, chosen: Capability) -> Measured:
    pair = _arms(recipe, run, name, chosen)
    problems = read_scores(run / "report" / "scores.json").problems[chosen.source]
    values = [
        pass_at_values([(each.graded[arm], each.accepted[arm]) for each in problems.values()], 1)
        for arm in pair
    ]
    paired = difference(recipe, *values)
    if paired is None:
        raise UserError(
            f"panel.{name}: no problem of {chosen.source!r} is graded in both {pair[0]} and "
            f"{pair[1]}: run ssd-ray grade again"
        )
    counts = [_answer_counts(recipe, run, arm, chosen.source) for arm in pair]
    return Measured(
        name=name,
        kind=chosen.kind,
        source=chosen.source,
        items=paired.problems,
        student=counts[0],
        base=counts[1],
        difference=paired,
        divergence=None,
        regression=regression(paired, chosen.tolerance),
    )


def _answer_counts(recipe: Recipe, run: Path, arm: str, benchmark: str) -> Counts:
    """Count the answers of an arm: right, wrong, of a wrong format, and not graded."""
    directory = arms.VERDICTS[recipe.evaluate.profiles[0]]
    verdicts: dict[tuple[str, int], Verdict] = {
        (row.prompt_id, row.sample_index): row
        for row in read_rows(run / directory / arm, Verdict)
        if row.source == benchmark
    }
    is_numeric = any(
        problem.kind == "numeric"
        for problem in read_rows(run / "benchmark", Problem)
        if problem.source == benchmark
    )
    counts = {"right": 0, "wrong": 0, "wrong_format": 0, "ungraded": 0}
    for answer in read_rows(run / "generations" / arm, Completion):
        verdict = verdicts.get((answer.prompt_id, answer.sample_index))
        if verdict is not None:
            counts[kind_of_answer(verdict, answer.text, is_numeric=is_numeric)] += 1
    return Counts(**counts)


def kind_of_answer(verdict: Verdict, text: str, *, is_numeric: bool) -> str:
    """Return `right`, `wrong`, `wrong_format` or `ungraded` for one answer.

    An answer has a wrong format without a program or a number, with a block of another language, or
    with a code block where a number is asked for and its number is wrong.
    """
    if verdict.outcome == "infrastructure_error":
        return "ungraded"
    if verdict.outcome == "accepted":
        return "right"
    # A verdict on a number has no program, so the text alone shows a code block.
    if verdict.outcome in ("no_code", "wrong_block"):
        return "wrong_format"
    return "wrong_format" if is_numeric and _FENCE in text else "wrong"


def _kept(chosen: Capability) -> tuple[Kept, Kept]:
    """Return the checked answers of student and base."""
    instructions = read_instructions(chosen.source, chosen.limit)
    assert chosen.answers is not None
    assert chosen.base_answers is not None
    student, base = (
        kept(instructions, read_answers(Path(path), instructions))
        for path in (chosen.answers, chosen.base_answers)
    )
    return student, base


def _formats(recipe: Recipe, name: str, chosen: Capability) -> Measured:
    student, base = _kept(chosen)
    most = max(student.most, base.most)
    paired = difference(recipe, student.shares, base.shares, answers=most)
    assert paired is not None, "every instruction has answers"
    return Measured(
        name=name,
        kind=chosen.kind,
        source=chosen.source,
        items=paired.problems,
        student=student.counts,
        base=base.counts,
        difference=paired,
        divergence=None,
        regression=regression(paired, chosen.tolerance),
    )


def _choices(recipe: Recipe, name: str, chosen: Capability, pair: Pair) -> Measured:
    questions = read_questions(Path(chosen.source), chosen.limit)
    prompts, after_template = _prompts(pair.tokenizer, [each.prompt for each in questions])
    labels = _labels(pair.tokenizer, name, after_template)
    own = [labels[: len(each.choices)] for each in questions]
    results = [pair.choices(name, which, prompts, own) for which in (STUDENT, BASE)]
    right = np.array([each.answer for each in questions])
    values = [(result.chosen == right).astype(np.float64) for result in results]
    paired = difference(recipe, *values, answers=1)
    assert paired is not None, "every question has a choice"
    return Measured(
        name=name,
        kind=chosen.kind,
        source=chosen.source,
        items=len(questions),
        student=_choice_counts(results[0], right),
        base=_choice_counts(results[1], right),
        difference=paired,
        divergence=None,
        regression=regression(paired, chosen.tolerance),
    )


def _choice_counts(result: Choices, right: np.ndarray[Any, np.dtype[np.int64]]) -> Counts:
    is_right = result.chosen == right
    return Counts(
        right=int((is_right & result.in_format).sum()),
        wrong=int((~is_right & result.in_format).sum()),
        wrong_format=int((~result.in_format).sum()),
        ungraded=0,
        label_mass=float(result.mass.mean()),
    )


def _divergence(recipe: Recipe, name: str, chosen: Capability, pair: Pair) -> Measured:
    texts = read_prompts(Path(chosen.source), chosen.limit)
    ids, _ = _prompts(pair.tokenizer, texts)
    sums, sizes = pair.divergences(name, ids)
    interval = ratio_interval(sums, sizes, confidence=recipe.evaluate.confidence)
    return Measured(
        name=name,
        kind=chosen.kind,
        source=chosen.source,
        items=len(texts),
        student=None,
        base=None,
        difference=None,
        divergence=interval,
        regression=divergence_regression(interval, chosen.tolerance),
    )


def _prompts(tokenizer: Any, texts: list[str] | tuple[str, ...]) -> tuple[list[Ids], bool]:
    """Return token ids of user messages under the chat template, and whether there is one."""
    if not tokenizer.chat_template:
        return [tuple(tokenizer.encode(f"{text}\nAnswer:")) for text in texts], False
    rendered = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False
        )
        for text in texts
    ]
    # The template writes its own special tokens.
    return [tuple(tokenizer.encode(each, add_special_tokens=False)) for each in rendered], True


def _labels(tokenizer: Any, name: str, after_template: bool) -> Ids:
    """Return the token of each label as it follows a prompt."""
    ids: list[int] = []
    for label in LABELS:
        spelled = label if after_template else f" {label}"
        # Some tokenizers write a space of its own before a word: the last token is the letter.
        own = tokenizer.encode(spelled, add_special_tokens=False)
        ids.append(own[-1])
    if len(set(ids)) < len(ids):
        raise UserError(
            f"panel.{name}: the tokenizer has no token of its own for each label {LABELS}: leave "
            "that capability out"
        )
    return tuple(ids)


def regressed(result: Panel) -> Mapping[str, float]:
    """Return the capabilities that regressed, with the estimate of the loss."""
    return {
        each.name: each.loss
        for each in result.capabilities
        if each.regression.verdict == "regressed"
    }
