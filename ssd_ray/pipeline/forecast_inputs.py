"""Inputs of a forecast's numbers: the grid, answers and references scored, health, cost.

Reads the artifacts of a forecast and the frozen model; writes nothing.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING

from ssd_ray.artifacts import shards
from ssd_ray.config import Decoding, Policies, PrepareConfig, Recipe, arms
from ssd_ray.errors import UserError
from ssd_ray.models import architecture, loading
from ssd_ray.models.answers import reasoning_format
from ssd_ray.pipeline.context import RunContext
from ssd_ray.planner.assumptions import Assumptions
from ssd_ray.planner.clusters import plan_training
from ssd_ray.problems.references import reference_ids
from ssd_ray.progress import counted
from ssd_ray.schema import Completion, Problem, Prompt, Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ssd_ray.analysis.forecast import Grid, Tally
    from ssd_ray.analysis.forward import Context, ScoredModel
    from ssd_ray.reporting.numbers.forecast import Cost, HealthAt

T_TRAIN = (1.0, 1.5, 2.0)
"""T_train, in addition to the recipe's own."""
TOP_K = (10, 20, 50)
"""Top-k of the samples, in addition to the recipe's own."""
TOP_P = (0.95, 1.0)
"""Top-p of the samples, in addition to the recipe's own.

Without top-k they are left out: a nucleus at T 2 holds thousands of tokens, and to rank those takes
longer than all else. Samples without any truncation are in the grid.
"""
T_EVAL = tuple(number / 5 for number in range(1, 11))


def train_temperatures(recipe: Recipe) -> tuple[float, ...]:
    """Return the T_train of a forecast, rising."""
    return tuple(sorted({*T_TRAIN, recipe.sample.temperature}))


def plain_decoding(decoding: Decoding) -> Decoding:
    """Return temperature, top-k and top-p alone."""
    return Decoding(temperature=decoding.temperature, top_k=decoding.top_k, top_p=decoding.top_p)


def evaluated(recipe: Recipe) -> Decoding:
    """Return the decoding of the student: that of the first arm `ssd`, else of the baseline."""
    return plain_decoding(arms.decoding(recipe, "ssd") or baseline(recipe))


def baseline(recipe: Recipe) -> Decoding:
    """Return the decoding of the recipe's base."""
    return plain_decoding(recipe.evaluate.arms[recipe.evaluate.baseline])


def grid_of(recipe: Recipe) -> Grid:
    """Return the grid: every T_train with every top-k and top-p, each at every T_eval."""
    from ssd_ray.analysis.forecast import grid

    own = recipe.sample
    finite = sorted({*TOP_K, own.top_k} - {None}, key=lambda top_k: top_k or 0)
    cuts = [
        (own.top_k, own.top_p),
        *itertools.product(finite, sorted({own.top_p, *TOP_P})),
        (None, 1.0),
    ]
    # The recipe's own truncation comes first; `grid` leaves out what repeats it.
    training = [
        Decoding(temperature=temperature, top_k=top_k, top_p=top_p)
        for top_k, top_p in cuts
        for temperature in train_temperatures(recipe)
    ]
    evaluate = evaluated(recipe)
    alone = [baseline(recipe), Decoding()]
    if evaluate.top_k is not None:
        wider = [evaluate.model_copy(update={"top_p": top_p}) for top_p in (0.95, 1.0)]
        alone += [
            cut.model_copy(update={"temperature": temperature})
            for cut in wider
            for temperature in T_EVAL
        ]
    return grid(training, evaluate, T_EVAL, alone)


def answers(samples: Path) -> list[Context]:
    """Return the answers of the base, those with a position."""
    from ssd_ray.analysis.forward import Context

    rows = sorted(
        shards.read_rows(samples, Completion), key=lambda row: (row.prompt_id, row.sample_index)
    )
    contexts = [
        Context(
            problem_id=row.prompt_id,
            prompt_token_ids=row.prompt_token_ids,
            output_token_ids=row.output_token_ids,
            sample_index=row.sample_index,
        )
        for row in rows
    ]
    return [each for each in contexts if each.num_positions]


def accepted(verdicts: Path, contexts: Sequence[Context]) -> list[bool]:
    """Return for each answer whether it passed its tests."""
    outcomes = {
        (row.prompt_id, row.sample_index): row.outcome == "accepted"
        for row in shards.read_rows(verdicts, Verdict)
    }
    return [outcomes[each.problem_id, each.sample_index] for each in contexts]


def references(
    problems: Path, prompts: Path, context: RunContext, longest: int
) -> tuple[list[Context], int]:
    """Return the reference solutions after their prompts, and the number of those too long."""
    from ssd_ray.analysis.forward import Context

    tokenizer = loading.load_tokenizer(context.model)
    rendered = {row.prompt_id: row.token_ids for row in shards.read_rows(prompts, Prompt)}
    contexts: list[Context] = []
    left_out = 0
    for problem in shards.read_rows(problems, Problem):
        output = reference_ids(problem, tokenizer)
        prompt = rendered.get(problem.problem_id)
        # A problem whose prompt was left out has no answers to compare with either.
        if output is None or prompt is None:
            continue
        if len(prompt) + len(output) > longest:
            left_out += 1
            continue
        contexts.append(
            Context(problem_id=problem.problem_id, prompt_token_ids=prompt, output_token_ids=output)
        )
    return contexts, left_out


def scored(
    model: ScoredModel, contexts: Sequence[Context], chosen: Grid, context: RunContext, unit: str
) -> Tally:
    """Return the sums of all contexts, from one forward pass over them."""
    from ssd_ray.analysis import forward
    from ssd_ray.analysis.forecast import Tally

    forward.check([model], contexts)
    tally = Tally(chosen, len(contexts))
    groups = forward.batches(contexts)
    for batch in counted(groups, context.progress, "forecast", unit, len(groups)):
        for chunk in forward.score([model], contexts, batch):
            tally.add(chunk.rows, chunk.tokens, chunk.logits[0])
    return tally


def health(recipe: Recipe, temperature: float, samples: Path, context: RunContext) -> HealthAt:
    """Classify the samples at one T_train as those of a training are."""
    from ssd_ray.reporting.numbers.forecast import HealthAt
    from ssd_ray.training.data.health import CLASSES, ParseOptions
    from ssd_ray.training.data.selection import select

    options = ParseOptions(
        extract=recipe.evaluate.extract,
        reasoning=reasoning_format(context.model, context.run / "prompts"),
        end_tokens=loading.end_tokens(context.model, recipe.model.end_tokens),
    )
    # Nothing is left out: the health is that of the samples as drawn.
    everything = PrepareConfig(policies=Policies(empty="keep", stub="keep"))
    drawn = select(samples, everything, options).answers
    faults = {
        name: drawn.classes[:, CLASSES.index(name)] for name in ("no_code", "loop", "cut_off")
    }
    return HealthAt(
        temperature=temperature,
        answers=len(drawn.classes),
        tokens=int(drawn.num_output_tokens.sum()),
        **{name: int(members.sum()) for name, members in faults.items()},
        unhealthy=int((faults["no_code"] | faults["loop"] | faults["cut_off"]).sum()),
    )


def cost(
    recipe: Recipe, contexts: Sequence[Context], context: RunContext
) -> tuple[Cost | None, str]:
    """Return the plan of the training with the lengths of the answers, or the reason for none."""
    from ssd_ray.reporting.numbers.forecast import Cost

    # Lengths at T 1 represent those at T_train, which are not known for each setting.
    number = len(contexts)
    assumed = Assumptions(
        mean_prompt_tokens=sum(len(each.prompt_token_ids) for each in contexts) / number,
        mean_response_tokens=sum(len(each.output_token_ids) for each in contexts) / number,
    )
    try:
        plan = plan_training(recipe, architecture.read(context.model), assumed)
    except UserError as error:
        return None, str(error)
    own = plan.requested
    return (
        Cost(
            device=plan.device,
            workers=plan.num_workers,
            hours=None if own.time is None else own.time.hours,
            usd=own.usd,
            refusal=own.refusal,
            smallest=None if plan.smallest is None else plan.smallest.num_workers,
        ),
        "",
    )
