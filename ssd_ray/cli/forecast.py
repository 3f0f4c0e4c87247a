"""The command `ssd-ray forecast`: what a training could change, from the base alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from ssd_ray.cli import hints
from ssd_ray.cli.console import results_console
from ssd_ray.cli.options import Json, Quiet, RecipeArgument, Set

commands = typer.Typer()

ForecastOut = Annotated[
    Path | None,
    typer.Option(
        "--out",
        help="Directory; default is runs/NAME/forecast, or $SSD_RAY_RUNS/NAME/forecast.",
    ),
]
Answers = Annotated[
    int, typer.Option("--answers", min=2, help="Answers at T 1, three to a prompt.")
]


@commands.command()
def forecast(
    recipe: RecipeArgument,
    overrides: Set = None,
    answers: Answers = 96,
    out: ForecastOut = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Say what a training could change, before paying for it.

    Draws answers of the base to training prompts and grades them where there are tests. Shows what
    T_train, truncation and T_eval would do, what decoding alone would do, and the cost.
    """
    from ssd_ray import recipes
    from ssd_ray.pipeline.forecasting import VERB, forecast_recipe, forecast_steps
    from ssd_ray.pipeline.run import Run
    from ssd_ray.progress import progress
    from ssd_ray.reporting.forecast import terminal
    from ssd_ray.reporting.numbers.forecast import read_forecast

    show = progress(quiet)
    loaded = forecast_recipe(recipes.load(recipe, overrides or []), answers)
    directory = out or Path(os.environ.get("SSD_RAY_RUNS", "runs")) / loaded.name / "forecast"
    hints.begin(directory, show)
    with hints.resume_hint(show):
        (artifact,) = Run(loaded, directory, show, forecast_steps(loaded)).make(VERB)
    path = artifact.path / "forecast.json"
    if as_json:
        typer.echo(path.read_text(), nl=False)
        return
    console = results_console()
    for part in terminal(read_forecast(path)):
        console.print(part)
    typer.echo(f"{artifact.path / 'forecast.html'}\n{path}")
    report = directory.parent / "report" / "report.html"
    if out is None and report.exists() and report.stat().st_mtime < path.stat().st_mtime:
        show.say(
            f"{report} was made before this forecast: to show it there, delete {report.parent} "
            f"and run `ssd-ray report {recipe}`"
        )
