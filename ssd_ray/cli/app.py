"""Commands of `ssd-ray`: each verb makes its artifacts and their inputs.

Exit codes:

- 0: done.
- 1: an infrastructure failure; the same command resumes.
- 2: a mistake in the input, explained in one sentence.
- 3: a capability regressed, with `panel --fail-on-regression`.
- 130: interrupted.
- 141: the reader of the output has gone, such as `head`.

Importing this module loads no Ray, torch or vLLM.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ssd_ray.cli import hints, pipes
from ssd_ray.cli.console import results_console
from ssd_ray.cli.forecast import commands as forecast
from ssd_ray.cli.listing import commands as listing
from ssd_ray.cli.options import (
    GradeOptions,
    Json,
    Out,
    PlanOptions,
    Quiet,
    RecipeArgument,
    Seeds,
    Set,
    seeds_override,
    takes,
)
from ssd_ray.cli.panel import commands as panel
from ssd_ray.cli.science import commands as science
from ssd_ray.cli.sweep import commands as sweep
from ssd_ray.cli.view import commands as view
from ssd_ray.cluster import import_path
from ssd_ray.errors import InfrastructureError, UserError

app = typer.Typer(
    help="Simple self-distillation: sample from a frozen model, fine-tune it on the raw answers, "
    "evaluate both.",
    epilog="RECIPE is a YAML file, or the name of a recipe listed by ssd-ray recipes. "
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

    show = progress(quiet)
    if out:
        hints.begin(out, show)
    loaded = recipes.load(recipe, overrides or [])
    directory = out or Path(os.environ.get("SSD_RAY_RUNS", "runs")) / loaded.name
    if not out:
        hints.begin(directory, show)
    with hints.resume_hint(show):
        if loaded.rounds > 1 or (directory / "rounds.json").exists():
            from ssd_ray.cli.rounds import make_rounds

            return make_rounds(loaded, directory, verb, show)
        artifacts = Run(loaded, directory, show).make(verb)
    for artifact in artifacts:
        typer.echo(f"{artifact.path}")
    return directory


def _verb(name: str, help_text: str, inputs: str = "") -> None:
    """Add the command of a verb; `inputs` are made first where they are missing."""
    if inputs:
        help_text += f"\n\nFirst makes what is missing: {inputs}."

    def command(
        recipe: RecipeArgument,
        out: Out = None,
        overrides: Set = None,
        seeds: Seeds = None,
        quiet: Quiet = False,
    ) -> None:
        changes = [*(overrides or []), *seeds_override(seeds)]
        directory = _make("report" if name == "run" else name, recipe, out, changes, quiet)
        if name in ("run", "report"):
            _print_scores(directory / "report")

    app.command(name, help=help_text)(command)


def _print_scores(report: Path) -> None:
    from ssd_ray.reporting.numbers.scores_file import read_scores
    from ssd_ray.reporting.terminal import summary

    results_console().print(summary(read_scores(report / "scores.json")))
    typer.echo(f"report: {(report / 'report.html').resolve()}")


_verb("run", "Make everything from prompts to report. A finished run is a no-op.")
_verb(
    "render",
    "Render problems as prompts with token ids. Training and evaluation use the model's template.",
)
_verb(
    "sample",
    "Draw answers to prompts from the frozen model. The temperature is T_train.",
    "prompts",
)
_verb(
    "prepare",
    "Turn samples into training sequences. Ids stay exact, dropped rows are counted.",
    "prompts and samples",
)
_verb(
    "train",
    "Fine-tune the model on its samples. DeepSpeed runs under Ray Train, at train.zero_stage.",
    "prompts, samples and training sequences",
)
_verb(
    "generate", "Answer the benchmarks with every arm of the recipe.", "everything up to training"
)


@app.command()
@takes(GradeOptions)
def grade(options: GradeOptions) -> None:
    """Run the programs of answers in a sandbox and record verdicts.

    With a recipe: the answers of its run. First makes what is missing: everything up to the
    training and the answers of every arm. Without one: any file of completions, given --problems,
    --completions and --out. With --follow: the answers of a run elsewhere, as they arrive, without
    Ray, token or network.
    """
    if options.recipe is not None and options.follow is None:
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

    show = progress(options.quiet)
    if options.follow is not None:
        hints.begin(options.follow, show)
        with hints.resume_hint(show):
            typer.echo("\n".join(grading.follow_run(options, show)))
        return
    job = grading.files_job(options)
    hints.begin(job.out, show)
    with hints.resume_hint(show):
        scores = grade_files(job, show)
    results_console().print(grading.scores_table(scores))
    typer.echo(f"{job.out / 'verdicts.parquet'}\n{job.out / 'scores.json'}")


@app.command()
def sandbox() -> None:
    """Print the isolation of programs on this machine. Every claim about it is tested."""
    from ssd_ray.cli.grading import sandbox_tables

    all_hold = True
    # Print every table before failing, so that all broken claims show.
    for table, claims_hold in sandbox_tables():
        results_console().print(table)
        all_hold &= claims_hold
    if not all_hold:
        raise InfrastructureError(
            "a claim of the sandbox does not hold on this machine: "
            "do not grade untrusted programs here"
        )


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def doctor(context: typer.Context, as_json: Json = False) -> None:
    """Check this machine, and name the shipped recipes that run on it."""
    from ssd_ray.cli import doctor as checks

    hints.refuse_for_doctor(context.args)
    report = checks.report()
    if as_json:
        typer.echo(report.json_text())
        return
    for table in report.tables():
        results_console().print(table)


_verb(
    "report",
    "Complete the run, write the report page, and print the scores.",
    "the complete run, so it does the same as run",
)


@app.command()
@takes(PlanOptions)
def plan(options: PlanOptions) -> None:
    """Print choices, steps and costs, and the stages on a --cluster.

    Choices have their sources; the cost is memory, hours and money. A plan that says no is an
    answer, with exit code 0. Without an answer the code is 2.
    """
    from ssd_ray import recipes
    from ssd_ray.cli import plan as planned
    from ssd_ray.planner.assumptions import assumptions

    loaded = recipes.load(options.recipe, options.overrides or [])
    directory = options.out or Path(os.environ.get("SSD_RAY_RUNS", "runs")) / loaded.name
    subject = planned.Subject(
        recipe=loaded,
        overrides=tuple(options.overrides or ()),
        out=directory,
        assumed=assumptions(options.assume or []),
        cluster=options.cluster,
    )
    if options.as_json:
        for text in planned.json_text(subject):
            typer.echo(text)
        return
    for part in planned.parts(subject):
        results_console().print(part)


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.")],
    second: Annotated[Path, typer.Argument(metavar="RUN", help="Another run directory.")],
    as_json: Json = False,
) -> None:
    """Compare two finished runs.

    Shows the differences of the recipes, the scores, and paired differences by problem.
    """
    import json

    from ssd_ray.reporting.comparison import compare as compare_runs

    comparison = compare_runs(first, second)
    if as_json:
        typer.echo(json.dumps(comparison.plain(), indent=1))
        return
    # Apart from the tables, whose columns would break a path.
    typer.echo(f"first run: {first}\nsecond run: {second}")
    results_console().print(comparison)


app.add_typer(listing)
app.add_typer(science)
app.add_typer(forecast)
app.add_typer(view)
app.add_typer(sweep)
app.add_typer(panel)


def _interrupt(_signal: int, _frame: Any) -> None:
    raise KeyboardInterrupt


@pipes.ends_quietly
def main(arguments: list[str] | None = None) -> None:
    """Run a command line and exit; a user's mistake prints one sentence and no traceback."""
    # Schedulers stop jobs with SIGTERM. It is handled like Ctrl-C, so that engines are stopped too.
    signal.signal(signal.SIGTERM, _interrupt)
    import_path.keep_children_safe()
    # The hint to resume prints the command from here. A job keeps its own.
    if arguments is not None and not hints.is_job():
        sys.argv = ["ssd-ray", *arguments]
    try:
        app(arguments, prog_name="ssd-ray")
    except UserError as error:
        hints.end_retries(error)
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
    except SystemExit as end:
        # Typer has refused the arguments.
        if end.code == 2:
            hints.end_retries()
        raise
    except InfrastructureError as error:
        typer.echo("\n".join([f"failed: {error}", *getattr(error, "__notes__", ())]), err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
