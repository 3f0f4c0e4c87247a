"""Commands of `ssd-ray`: each verb makes its artifacts and their inputs.

Exit codes:

- 0: done.
- 1: an infrastructure failure; the same command resumes.
- 2: a mistake in the input, explained in one sentence.
- 130: interrupted.

Importing this module loads no Ray, torch or vLLM.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from ssd_ray.cli.options import GradeOptions, Json, Out, Quiet, RecipeArgument, Set, takes
from ssd_ray.cluster import import_path
from ssd_ray.errors import InfrastructureError, UserError

app = typer.Typer(
    help="Simple self-distillation: sample from a frozen model, fine-tune it on the raw answers, "
    "evaluate both.",
    epilog="A recipe is the name of a shipped one (ssd-ray recipes) or a YAML file. "
    "Every verb resumes where it stopped.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib import metadata

        typer.echo(f"ssd-ray {metadata.version('ssd-ray')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Take the options before the verb."""


def _make(
    verb: str, recipe: str, out: Path | None, overrides: list[str] | None, quiet: bool
) -> Path:
    # Imported here: help and mistakes need not wait for heavy libraries.
    from ssd_ray import recipes
    from ssd_ray.pipeline.run import Run
    from ssd_ray.progress import progress

    loaded = recipes.load(recipe, overrides or [])
    directory = out or Path(os.environ.get("SSD_RAY_RUNS", "runs")) / loaded.name
    show = progress(quiet)
    with _resume_hint(show):
        artifacts = Run(loaded, directory, show).make(verb)
    for artifact in artifacts:
        typer.echo(f"{artifact.path}")
    return directory


@contextmanager
def _resume_hint(show: Any) -> Iterator[None]:
    """Print the command to resume the run, if the block is interrupted or fails."""
    command = shlex.join(["ssd-ray", *sys.argv[1:]])
    try:
        yield
    except KeyboardInterrupt:
        show.say(f"interrupted; what is on disk stays. To resume: {command}")
        raise
    except InfrastructureError:
        show.say(f"stopped; what is on disk stays. To resume: {command}")
        raise


def _verb(name: str, help_text: str) -> None:
    """Add the command of a verb."""

    def command(
        recipe: RecipeArgument, out: Out = None, overrides: Set = None, quiet: Quiet = False
    ) -> None:
        _make(name, recipe, out, overrides, quiet)

    app.command(name, help=help_text)(command)


@app.command()
def run(
    recipe: RecipeArgument, out: Out = None, overrides: Set = None, quiet: Quiet = False
) -> None:
    """Make everything from prompts to report; a finished run is a no-op."""
    from ssd_ray.reporting.numbers.scores_file import read_scores
    from ssd_ray.reporting.terminal import summary

    directory = _make("report", recipe, out, overrides, quiet)
    _console().print(summary(read_scores(directory / "report" / "scores.json")))
    typer.echo(f"report: {(directory / 'report' / 'report.html').resolve()}")


_verb(
    "render",
    "Render training problems and benchmarks with the model's template: prompts with token ids.",
)
_verb("sample", "Draw one answer per prompt from the frozen model at the training temperature.")
_verb("prepare", "Turn samples into training sequences: exact ids, dropped rows are counted.")
_verb(
    "train",
    "Fine-tune the model on its samples with Ray Train and DeepSpeed, at the recipe's ZeRO stage.",
)
_verb("generate", "Answer the benchmark with every arm of the recipe.")


@app.command()
@takes(GradeOptions)
def grade(options: GradeOptions) -> None:
    """Run the programs of answers in a sandbox and record verdicts.

    With a recipe: its answers, after the steps before them. Without one: any file of completions,
    given --problems, --completions and --out.
    """
    if options.recipe is not None:
        # Refused rather than ignored: the recipe's values would silently win.
        if names := options.only_for_files():
            raise UserError(
                f"with a recipe, {', '.join(names)} come from the recipe: use --set "
                "evaluate.FIELD=VALUE (ssd-ray recipes --fields)"
            )
        _make("grade", options.recipe, options.out, options.overrides, options.quiet)
        return
    from ssd_ray.cli import grading
    from ssd_ray.progress import progress
    from ssd_ray.standalone.grade_files import grade_files

    job = grading.files_job(options)
    show = progress(options.quiet)
    with _resume_hint(show):
        scores = grade_files(job, show)
    _console().print(grading.scores_table(scores))
    typer.echo(f"{job.out / 'verdicts.parquet'}\n{job.out / 'scores.json'}")


@app.command()
def sandbox() -> None:
    """Print the isolation of programs on this machine, and test every claim of it."""
    from ssd_ray.cli.grading import sandbox_tables

    all_hold = True
    # Print every table before failing, so that all broken claims show.
    for table, claims_hold in sandbox_tables():
        _console().print(table)
        all_hold &= claims_hold
    if not all_hold:
        raise InfrastructureError(
            "a claim of the sandbox does not hold on this machine: "
            "do not grade untrusted programs here"
        )


_verb("report", "Write the report page and scores.json.")


@app.command()
def plan(
    recipe: RecipeArgument,
    out: Out = None,
    overrides: Set = None,
    assume: Annotated[
        list[str] | None,
        typer.Option(
            "--assume", metavar="NAME=VALUE", help="Replace an assumption: --assume peak_tflops=312"
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Print choices with sources, the steps of a run, and memory, hours and money of training."""
    import json

    from ssd_ray import recipes
    from ssd_ray.cli import plan as planned
    from ssd_ray.planner.assumptions import assumptions

    loaded = recipes.load(recipe, overrides or [])
    assumed = assumptions(assume or [])
    directory = out or Path(os.environ.get("SSD_RAY_RUNS", "runs")) / loaded.name
    if as_json:
        tables = planned.as_json(loaded, overrides or [], directory, assumed)
        typer.echo(json.dumps(tables, indent=1, default=str))
        return
    console = _console()
    console.print(planned.choices_table(loaded, overrides or []))
    console.print(planned.steps_table(loaded, directory))
    console.print(planned.training_tables(loaded, directory, assumed))


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.")],
    second: Annotated[Path, typer.Argument(metavar="RUN", help="Another run directory.")],
    as_json: Json = False,
) -> None:
    """Compare two finished runs: recipe differences, scores, paired differences by problem."""
    import json

    from ssd_ray.reporting.comparison import compare as compare_runs

    comparison = compare_runs(first, second)
    if as_json:
        typer.echo(json.dumps(comparison.plain(), indent=1))
        return
    _console().print(comparison)


@app.command("recipes")
def list_recipes(
    fields: Annotated[
        bool,
        typer.Option(
            "--fields", help="Print every field of a recipe, its default and its meaning."
        ),
    ] = False,
) -> None:
    """List the recipes of the package, or the fields of a recipe."""
    from ssd_ray import recipes

    if fields:
        from ssd_ray.cli.plan import fields_table

        _console().print(fields_table())
        return
    for name in recipes.shipped():
        typer.echo(f"{name:<24} {' '.join(recipes.load(name).description.split())}")


def _console() -> Any:
    """Return the console for results, wide enough for tables also in a pipe or a log."""
    from rich.console import Console

    console = Console()
    # A pipe has 80 columns by default, too few for the tables.
    if not console.is_terminal:
        console.width = max(console.width, 120)
    return console


def _interrupt(_signal: int, _frame: Any) -> None:
    raise KeyboardInterrupt


def main(arguments: list[str] | None = None) -> None:
    """Run a command line and exit; a user's mistake prints one sentence and no traceback."""
    # Schedulers stop jobs by SIGTERM: it takes the way of Ctrl-C, so that engines are stopped too.
    signal.signal(signal.SIGTERM, _interrupt)
    import_path.keep_children_safe()
    if arguments is not None:
        # The hint to resume prints the command from here.
        sys.argv = ["ssd-ray", *arguments]
    try:
        app()
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
    except InfrastructureError as error:
        typer.echo(f"failed: {error}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
