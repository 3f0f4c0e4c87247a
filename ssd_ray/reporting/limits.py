"""Sentences of the report page on the run, and on its limits.

The limits of a run follow from its recipe and counts, so the page derives them. Statements about
the paper (arXiv 2604.01193) name their place in it. Pure functions of the recipe, scores.json and
timings.json; each statement is a (lead, sentences) pair.
"""

from __future__ import annotations

from collections.abc import Iterator

from ssd_ray.config import Decoding, Recipe, arms
from ssd_ray.reporting.numbers.scores import Scores
from ssd_ray.reporting.numbers.timings import Timings
from ssd_ray.reporting.numbers.training_data import Training
from ssd_ray.reporting.words import (
    control,
    count,
    counted,
    decoding,
    is_few,
    isolation,
    parameters,
    percent,
)
from ssd_ray.statistics.selection import SPLITS

PAPER_SMALLEST = 4e9
"""Parameters of the smallest model in the paper (table 2)."""
_NAMED = 10
"""Most problems to name in a sentence."""
PAPER_FEWEST_SEQUENCES = 300 * 32
"""Training sequences of the paper's shortest stated runs: 300 steps of 32 (section 3.1)."""


def what_was_run(recipe: Recipe, scores: Scores) -> list[tuple[str, str]]:
    """Return the run in plain words, a statement for each stage."""
    data = scores.training
    sample = recipe.sample
    dropped = sum((data.dataset.dropped or {}).values())
    right_or_wrong = ", right or wrong" if recipe.prepare.select == "all" else ""
    sizes = (
        f"{scores.benchmarks[name].all.problems} of {name}" for name in scores.order.benchmarks
    )
    return [
        (
            "Sample",
            f"The frozen model {recipe.model.source} gave "
            f"{counted(sample.samples_per_prompt, 'answer')} to each of "
            f"{count(data.prompts.rows)} prompts, at {decoding(sample)}, "
            f"cut off after {count(sample.max_tokens)} tokens.{_not_drawn(data)}",
        ),
        (
            "Prepare",
            f"{_chosen(recipe)} {count(dropped)} of {count(data.samples.rows)} were left "
            f"out; the other {count(data.dataset.rows)} stayed{right_or_wrong}.",
        ),
        (
            "Train",
            "The same model was fine-tuned on those raw answers, "
            f"{counted(_steps(recipe, scores), 'step')} of {recipe.train.global_batch_size} "
            "sequences, with the loss on answer tokens "
            f"only. That gave the model called ssd.{_controls(recipe)}",
        ),
        (
            "Evaluate",
            f"{_swept(recipe)}Each arm, a model with its own decoding, gave "
            f"{counted(recipe.evaluate.samples_per_problem, 'answer')} to each problem "
            f"({', '.join(sizes)}), and their programs ran against the tests.",
        ),
    ]


def _not_drawn(data: Training) -> str:
    missing = data.samples.not_drawn
    if not missing:
        return ""
    return (
        f" {counted(missing, 'answer')} could not be drawn; the manifest of samples names each "
        "with its reason."
    )


def _chosen(recipe: Recipe) -> str:
    if recipe.prepare.select == "accepted":
        return (
            "Answers were graded, and those that failed a test were left out, which is no longer "
            "self-distillation."
        )
    return "Answers were chosen by rules on their form alone: no program was run or graded."


def _controls(recipe: Recipe) -> str:
    return "".join(
        f" The control called {branch.name}: {control(branch.name)}"
        for branch in arms.branches(recipe)[1:]
    )


def _swept(recipe: Recipe) -> str:
    grid = arms.temperatures(recipe)
    names = ", ".join(arms.families(recipe))
    return f"Each of {names} was decoded at T {', '.join(f'{t:g}' for t in grid)}. " if grid else ""


def limits(recipe: Recipe, scores: Scores, timings: Timings) -> list[tuple[str, str]]:
    """Return the limits of the run, the weightiest first."""
    return [
        *_scale(recipe, scores),
        *_decodings(recipe),
        *_control(recipe),
        _uncertainty(recipe, scores),
        *_selection(recipe),
        _paper(),
        _grading(scores, timings),
    ]


def _steps(recipe: Recipe, scores: Scores) -> int:
    steps = scores.training.checkpoint.steps
    # A manifest may lack the number; the recipe has the planned one.
    return recipe.train.steps if steps is None else steps


def _scale(recipe: Recipe, scores: Scores) -> Iterator[tuple[str, str]]:
    number = scores.training.checkpoint.parameters
    sequences = _steps(recipe, scores) * recipe.train.global_batch_size
    small_model = number is not None and number < PAPER_SMALLEST
    # The quickstart is a demonstration at any size.
    if recipe.name != "quickstart" and not small_model and sequences >= PAPER_FEWEST_SEQUENCES:
        return
    model = ""
    if small_model:
        model = (
            f"The model has {parameters(number)} parameters; "
            "the smallest in the paper has 4 billion. "
        )
    yield (
        "It proves the pipeline, not the method.",
        f"{model}Training saw {count(sequences)} sequences; the paper's shortest stated runs saw "
        f"{count(PAPER_FEWEST_SEQUENCES)}. At this size neither a gain nor its absence speaks for "
        "or against simple self-distillation.",
    )


def _decodings(recipe: Recipe) -> Iterator[tuple[str, str]]:
    # An ssd arm needs a base arm with the same decoding to be compared with.
    every = arms.arms(recipe)
    bases = [arm for arm in every.values() if arm.model == "base"]
    alone = [
        name
        for name, arm in every.items()
        if arm.model == "ssd" and not any(_alike(base, arm) for base in bases)
    ]
    if alone:
        yield (
            "Two things change at once.",
            f"No arm decodes the base model with the decoding of {' or '.join(alone)}. A "
            "difference mixes the effect of training with that of another temperature or "
            "truncation. So each arm is shown with its decoding.",
        )


def _alike(first: Decoding, second: Decoding) -> bool:
    keys = ("temperature", "top_k", "top_p", "entropy_theta", "min_p")
    return all(getattr(first, key, None) == getattr(second, key, None) for key in keys)


def _control(recipe: Recipe) -> Iterator[tuple[str, str]]:
    if arms.NAIVE in {branch.name for branch in arms.branches(recipe)}:
        return
    sample = recipe.sample
    # Then ssd itself is the missing control.
    if sample.temperature == 1 and sample.top_k is None and sample.top_p == 1:
        yield (
            "This run is the control.",
            "Samples at temperature 1 without truncation are naive self-training: their expected "
            "gradient is zero at the start, so changes are noise or a side effect of fine-tuning.",
        )
        return
    yield (
        "The run has no control of training.",
        "Training on samples at temperature 1 without truncation has zero expected gradient at the "
        "start, yet such cells of the paper's figure 10 score 44.1 to 45.7 against a base of 42.4. "
        "So a gain is evidence for temperature and truncation only next to that control: "
        "evaluate.controls: [teacher, naive].",
    )


def _uncertainty(recipe: Recipe, scores: Scores) -> tuple[str, str]:
    confidence = scores.confidence
    trained = "this is one set of samples and one training run"
    if recipe.train.seeds > 1:
        trained = (
            f"it is about one training. The table of {recipe.train.seeds} trainings adds their "
            "spread, on one set of samples"
        )
    # Few problems are shown as counts, without an interval.
    paired = sum(
        difference is not None and not is_few(difference.problems)
        for benchmark in scores.benchmarks.values()
        for group in (benchmark.all, *benchmark.difficulties.values())
        for arm in group.arms.values()
        for difference in arm.difference.values()
    )
    chance = (
        f" Of the paired intervals on this page ({paired}) about {paired * (1 - confidence):.1f} "
        "would miss zero by chance alone."
    )
    return (
        "The intervals cover problems, not training.",
        f"A {percent(confidence, 0)} interval shows how a score may move on other problems of the "
        f"same kind. It does not cover another seed: {trained}.{chance if paired else ''}",
    )


def _selection(recipe: Recipe) -> Iterator[tuple[str, str]]:
    num_arms = len(arms.arms(recipe))
    if recipe.evaluate.sweep:
        yield (
            "Only one number here is free of selection.",
            f"{num_arms} arms answered the same problems, and the best of many cells is too good "
            "by luck. The gain with temperatures chosen on other problems is not: each model's "
            "temperature is the best on one half of the problems, the models are compared on the "
            f"other half, the halves change places, and {SPLITS} splits are averaged. It is the "
            "gain after tuning on half as many problems as there are. Choices of training, such as "
            "the sampling temperature, the steps or the checkpoint, may have been made on these "
            "problems too; this page cannot know.",
        )
    elif num_arms > 2:
        yield (
            "Picking the best arm overstates it.",
            f"{num_arms} arms answered the same problems. A decoding chosen by these scores has to "
            "be confirmed on other problems; evaluate.sweep does so.",
        )


def _paper() -> tuple[str, str]:
    return (
        "The paper's numbers are the paper's.",
        "Nothing here reproduces arXiv 2604.01193. When this version of ssd-ray was written no "
        "independent reproduction of its gains was known; apple/ml-ssd issue 14 reports 51.3 for a "
        "released checkpoint that the paper puts at 57.8.",
    )


def _grading(scores: Scores, timings: Timings) -> tuple[str, str]:
    levels = sorted({isolation(facts) for facts in timings.isolation.values()})
    ungraded = sum(
        arm.infrastructure_errors
        for benchmark in scores.benchmarks.values()
        for arm in benchmark.all.arms.values()
    )
    return (
        "Grading is as good as its tests and its sandbox.",
        "A program that passes the tests may still be wrong, and more programs exceed the time "
        "limit on a slower machine. Not graded, and so neither right nor wrong: "
        f"{counted(ungraded, 'answer')}. {_problems_left_out(scores)}"
        f"Isolation of the programs: {'; '.join(levels)}.",
    )


def _problems_left_out(scores: Scores) -> str:
    """Return a sentence on the problems without a score, as no program can be graded on them."""
    names = [problem.problem_id for problem in scores.problems_left_out]
    if not names:
        return ""
    some = ", ".join(names[:_NAMED]) + (", …" if names[_NAMED:] else "")
    return (
        "Left out, because no program can be graded on them: "
        f"{counted(len(names), 'problem')} ({some}), with reasons in scores.json. "
    )
