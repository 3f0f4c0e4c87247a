"""The command `ssd-ray sweep`: many settings of one recipe, with shared work."""

from __future__ import annotations

import os
from pathlib import Path

import typer

from ssd_ray.cli import hints
from ssd_ray.cli.console import results_console
from ssd_ray.cli.options import SweepOptions, takes

commands = typer.Typer(rich_markup_mode=None)


@commands.command()
@takes(SweepOptions)
def sweep(options: SweepOptions) -> None:
    """Sweep settings of sampling, training and decoding.

    One sampling for each setting of sample, one training for each set of samples and setting of
    train, and any number of decodings of each student. T_train 1 without truncation is always
    among them. Prints the cost first. A larger sweep in the same directory keeps all earlier work,
    and a killed one resumes cell by cell.

    Example: ssd-ray sweep quickstart --over sample.temperature=0.8,1.2,1.6 --over
    evaluate.temperature=0.2,0.6,1.0,1.4
    """
    from ssd_ray.pipeline.sweep_run import SweepRun, cost_lines
    from ssd_ray.progress import progress
    from ssd_ray.recipes.sweeps import design
    from ssd_ray.reporting.numbers.sweep_document import read_sweep
    from ssd_ray.reporting.sweep import terminal

    show = progress(options.quiet)
    designed = design(
        options.recipe, options.overrides or [], options.over or [], fit=not options.no_fit
    )
    name = designed.recipe.name
    directory = options.out or Path(os.environ.get("SSD_RAY_RUNS", "runs")) / name / "sweep"
    run = SweepRun(designed, directory, show, options.measure.value)
    # The cost comes first, so that a mistake in the axes can be stopped in time.
    for line in cost_lines(designed, run.states()):
        show.say(line)
    if options.plan:
        return
    hints.begin(directory, show)
    with hints.resume_hint(show):
        (artifact,) = run.make_sweep()
    path = artifact.path / "sweep.json"
    if options.as_json:
        typer.echo(path.read_text(), nl=False)
        return
    console = results_console()
    for part in terminal(read_sweep(path)):
        console.print(part)
    typer.echo(f"{artifact.path / 'sweep.html'}\n{path}")
