"""Repeated self-distillation: each round samples from the frozen student before it.

    round-1/ ─probe→ probes/round-1/     round-2/ ─probe→ probes/round-2/     ...     rounds.html

- A round is an ordinary run. Its model is the trained model of the round before, in its directory.
- The samples of a round are looked at before its training, its student after it. Either may stop
  the rounds (`analysis/collapse.py`).
- The page and rounds.json are written after every step, so a collapse shows while it happens.
- Every part resumes by itself, and a finished directory is a no-op.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ssd_ray.analysis.collapse import ProbeState, SampleState, stopped_by_probe, stopped_by_samples
from ssd_ray.artifacts import files
from ssd_ray.config import Recipe
from ssd_ray.errors import UserError
from ssd_ray.progress import Progress
from ssd_ray.reporting.rounds import PAGE, Evaluated, RoundRow, Rounds, json_text, rounds_page

RECORD = "rounds.json"


@dataclass(frozen=True, kw_only=True)
class Acts:
    """The work of a round; tests replace it."""

    make: Callable[[Recipe, Path, str], None]
    """Make the artifacts of a verb in a run directory."""
    samples: Callable[[Path], SampleState]
    """Read the samples of a run."""
    probe: Callable[[Path, Path, Path], tuple[ProbeState, ProbeState]]
    """Probe the first base and the student of a run: first run, run, output."""
    evaluated: Callable[[Path], Evaluated]
    """Read the report of a run."""


def round_recipe(recipe: Recipe, number: int, out: Path) -> Recipe:
    """Return the recipe of a round: its model is the student of the round before.

    Each round has a seed of its own, so that no prompt gets the random numbers of an earlier round.
    """
    single = {"rounds": 1, "seed": recipe.seed + number - 1}
    if number == 1:
        return recipe.model_copy(update=single)
    student = (out / f"round-{number - 1}" / "checkpoint").resolve()
    # A revision names a commit of the hub, which the checkpoint has not.
    model = recipe.model.model_copy(update={"source": str(student), "revision": None})
    return recipe.model_copy(update={**single, "model": model})


def check(recipe: Recipe, out: Path) -> None:
    """Refuse rounds that could not be watched, and a directory of another kind.

    Raises:
        UserError: no held-out samples, a run without rounds at `out`, or rounds at the `out` of a
            run without them.
    """
    has_rounds = (out / RECORD).exists()
    if recipe.rounds == 1:
        if has_rounds:
            raise UserError(
                f"{out} holds rounds, and rounds=1 makes a run without them: choose another --out, "
                "or set rounds to the number of rounds there or more"
            )
        return
    if not recipe.train.heldout_samples:
        raise UserError(
            f"rounds={recipe.rounds} is watched on held-out samples of the first round, and "
            "train.heldout_samples=0 holds out none: set train.heldout_samples=32 or more"
        )
    if (out / "recipe.yaml").exists() and not has_rounds:
        raise UserError(
            f"{out} holds a run without rounds, and rounds={recipe.rounds} needs a directory of "
            "its own: choose another --out"
        )


def run_rounds(recipe: Recipe, out: Path, acts: Acts, progress: Progress) -> Rounds:
    """Make the rounds of a recipe, until the last one or a reason to stop, and return them.

    Raises:
        UserError: as for `check`, or as for a run.
        InfrastructureError: as for a run; the same call resumes.
    """
    check(recipe, out)
    state = Rounds(
        recipe=recipe.name,
        planned=recipe.rounds,
        temperature=recipe.sample.temperature,
        headline=f"pass@{min(recipe.evaluate.pass_at)}",
        rows=(),
        stopped=None,
        is_running=True,
    )
    first = out / "round-1"
    for number in range(1, recipe.rounds + 1):
        run = out / f"round-{number}"
        chosen = round_recipe(recipe, number, out)
        progress.say(f"round {number} of {recipe.rounds}: samples of {chosen.model.source}")
        # Written first: an interrupted first round is known as one.
        _write(out, state)
        # Samples first: a collapsed model is not worth another training.
        acts.make(chosen, run, "prepare")
        row = RoundRow(round=number, samples=acts.samples(run))
        state = _with(out, state, row)
        reason = stopped_by_samples(state.rows[0].samples, row.samples, recipe.stop)
        if reason:
            state = replace(
                state, stopped=f"before the training of round {number}, because {reason}"
            )
            break
        acts.make(chosen, run, "report")
        base, student = acts.probe(first, run, out / "probes" / f"round-{number}")
        state = _with(
            out, state, replace(row, base=base, student=student, evaluated=acts.evaluated(run))
        )
        reason = stopped_by_probe(base, student, recipe.stop)
        if reason:
            state = replace(state, stopped=f"after round {number}, because {reason}")
            break
    state = replace(state, is_running=False)
    _write(out, state)
    return state


def _with(out: Path, state: Rounds, row: RoundRow) -> Rounds:
    """Return the rounds with a row added, or replaced if it is there, and write them."""
    before = tuple(each for each in state.rows if each.round != row.round)
    after = replace(state, rows=(*before, row))
    _write(out, after)
    return after


def _write(out: Path, state: Rounds) -> None:
    files.make_directory(out)
    files.write_atomic(out / RECORD, json_text(state))
    files.write_atomic(out / PAGE, rounds_page(state))
