"""Rounds of `ssd-ray run`: the work of a round with real engines and models."""

from __future__ import annotations

from pathlib import Path

import typer

from ssd_ray.analysis.collapse import ProbeState
from ssd_ray.cli.console import results_console
from ssd_ray.config import Recipe
from ssd_ray.errors import UserError
from ssd_ray.pipeline.rounds import Acts, check, run_rounds
from ssd_ray.pipeline.run import Run
from ssd_ray.progress import Progress
from ssd_ray.reporting.rounds import PAGE, evaluated, sample_state, terminal
from ssd_ray.standalone.round_probe import probe_round


def make_rounds(recipe: Recipe, out: Path, verb: str, progress: Progress) -> Path:
    """Make the rounds of a recipe, print their table, and return the directory of the last one.

    Raises:
        UserError: a verb for a single artifact, or as for `run_rounds`.
    """
    check(recipe, out)
    if verb != "report":
        raise UserError(
            f"rounds={recipe.rounds} makes a run for each round, and ssd-ray {verb} makes "
            "artifacts of one: use ssd-ray run, or --set rounds=1"
        )
    state = run_rounds(recipe, out, _acts(progress), progress)
    results_console().print(terminal(state))
    typer.echo(f"rounds: {(out / PAGE).resolve()}")
    complete = [row.round for row in state.rows if row.student is not None]
    return out / f"round-{complete[-1]}"


def _acts(progress: Progress) -> Acts:
    def make(recipe: Recipe, run: Path, verb: str) -> None:
        Run(recipe, run, progress).make(verb)

    def probe(first: Path, run: Path, out: Path) -> tuple[ProbeState, ProbeState]:
        return probe_round(first, run, out, progress)

    return Acts(make=make, samples=sample_state, probe=probe, evaluated=evaluated)
