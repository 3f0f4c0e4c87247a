"""The command `panel`. Heavy libraries are imported inside of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ssd_ray.cli.console import results_console
from ssd_ray.cli.options import Quiet, Set

commands = typer.Typer(rich_markup_mode=None)
REGRESSED = 3
"""Exit code of --fail-on-regression."""


@commands.command()
def panel(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Finished run directory.")],
    out: Annotated[
        Path | None, typer.Option(help="Directory of panel.html; default is RUN/panel.")
    ] = None,
    overrides: Set = None,
    fail_on_regression: Annotated[
        bool, typer.Option("--fail-on-regression", help="Exit with 3 if a capability regressed.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Measure what a training cost in other capabilities.

    They are those of section panel of the recipe. Regressed is said only where the paired interval
    says so.
    """
    from ssd_ray import recipes
    from ssd_ray.errors import UserError
    from ssd_ray.progress import progress
    from ssd_ray.reporting.panel import PAGE, terminal
    from ssd_ray.standalone import panel as capabilities

    if not (run / "recipe.yaml").is_file():
        raise UserError(f"{run} is not a run directory: give the --out of a finished ssd-ray run")
    recipe = recipes.load(str(run / "recipe.yaml"), overrides or [])
    place = out or run / "panel"
    result = capabilities.panel(recipe, run, place, progress(quiet))
    results_console().print(terminal(result))
    typer.echo(f"{place / PAGE}\n{place / 'panel.json'}")
    if fail_on_regression and capabilities.regressed(result):
        raise typer.Exit(REGRESSED)
