"""The verbs on a command line; each makes its artifacts and whatever they need.

Exit codes: 0 done, 2 a mistake in what was given (one sentence), 1 an infrastructure failure (run again to resume),
130 interrupted. Importing this module loads no Ray, torch or vLLM.
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

from ssd_ray.cluster import import_path
from ssd_ray.errors import InfrastructureError, UserError

app = typer.Typer(
    help="Simple self-distillation: sample from a frozen model, fine-tune it on the raw answers, evaluate both.",
    epilog="A recipe is the name of a shipped one (ssd-ray recipes) or a YAML file. Every verb resumes where it stopped.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

RecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help="Shipped recipe name or path of a YAML file.")
]
Out = Annotated[
    Path | None,
    typer.Option("--out", help="Run directory; default is runs/NAME, or $SSD_RAY_RUNS/NAME."),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override a field: --set sample.temperature=1.1"
    ),
]
Quiet = Annotated[
    bool, typer.Option("--quiet", help="One line per stage and period instead of live bars.")
]


def _make(
    verb: str, recipe: str, out: Path | None, overrides: list[str] | None, quiet: bool
) -> Path:
    from ssd_ray import recipes
    from ssd_ray.pipeline.run import Run
    from ssd_ray.progress import progress

    loaded = recipes.load(recipe, overrides or [])
    directory = out or Path(os.environ.get("SSD_RAY_RUNS", "runs")) / loaded.name
    show = progress(quiet)
    with _told_how_to_resume(show):
        made = Run(loaded, directory, show).make(verb)
    for artifact in made:
        typer.echo(f"{artifact.path}")
    return directory


@contextmanager
def _told_how_to_resume(show: Any) -> Iterator[None]:
    again = shlex.join(["ssd-ray", *sys.argv[1:]])
    try:
        yield
    except KeyboardInterrupt:
        show.say(f"interrupted; what is on disk stays. To resume: {again}")
        raise
    except InfrastructureError:
        show.say(f"stopped; what is on disk stays. To resume: {again}")
        raise


def _verb(name: str, help_text: str) -> None:
    def command(
        recipe: RecipeArgument, out: Out = None, overrides: Set = None, quiet: Quiet = False
    ) -> None:
        _make(name, recipe, out, overrides, quiet)

    app.command(name, help=help_text)(command)


@app.command()
def run(
    recipe: RecipeArgument, out: Out = None, overrides: Set = None, quiet: Quiet = False
) -> None:
    """Everything from prompts to report; a finished run is a no-op."""
    from ssd_ray.artifacts.files import read_json
    from ssd_ray.reporting.terminal import summary

    directory = _make("report", recipe, out, overrides, quiet)
    _console().print(summary(read_json(directory / "report" / "scores.json")))
    typer.echo(f"report: {(directory / 'report' / 'report.html').resolve()}")


_verb(
    "render",
    "Put the training problems and the benchmark to the model's template: prompts with token ids.",
)
_verb("sample", "Draw one answer per prompt from the frozen model at the training temperature.")
_verb("prepare", "Turn samples into training sequences: exact ids, what is dropped is counted.")
_verb(
    "train",
    "Fine-tune the model on its samples with Ray Train and DeepSpeed, at the recipe's ZeRO stage.",
)
_verb("generate", "Answer the benchmark with every arm of the recipe.")


@app.command()
def grade(
    recipe: Annotated[
        str | None, typer.Argument(metavar="[RECIPE]", help="Recipe, or none with --problems.")
    ] = None,
    out: Out = None,
    overrides: Set = None,
    quiet: Quiet = False,
    problems: Annotated[
        Path | None, typer.Option(help="Problems, in any format of docs/benchmarks.md.")
    ] = None,
    completions: Annotated[
        Path | None, typer.Option(help="Rows: problem's id, index, and text or code.")
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(help="strict (real processes; default) or lcb-compat (bug for bug)."),
    ] = None,
    extract: Annotated[
        str | None, typer.Option(help="Program in a text: last-block (default), first-block, lcb.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; default is one a core.")
    ] = None,
    timeout_s: Annotated[
        float | None,
        typer.Option("--timeout-s", min=0.1, max=86400, help="Time limit of a test; default 6."),
    ] = None,
    memory_mib: Annotated[
        int | None, typer.Option("--memory-mib", min=64, help="Memory limit; default 1024.")
    ] = None,
    output_kib: Annotated[
        int | None,
        typer.Option(
            "--output-kib",
            min=1,
            help="Limit of a test's output, or what is expected needs; default 1024.",
        ),
    ] = None,
    sandbox_floor: Annotated[
        str | None, typer.Option("--sandbox-floor", help="Refuse a weaker sandbox; default L1.")
    ] = None,
    skip_bad_rows: Annotated[
        bool | None,
        typer.Option("--skip-bad-rows", help="Leave bad rows out, count and list them."),
    ] = None,
    thinking: Annotated[
        bool | None,
        typer.Option(
            "--thinking",
            help="The texts begin within a reasoning part: prompts ended in <think> or the like.",
        ),
    ] = None,
) -> None:
    """Run the answers' programs in a sandbox and record verdicts.

    Those of a recipe, after whatever comes before them; or, with --problems, --completions and --out, any file of completions.
    """
    options: dict[str, Any] = {
        "problems": problems,
        "completions": completions,
        "profile": profile,
        "extract": extract,
        "workers": workers,
        "time_limit_s": timeout_s,
        "memory_limit_mib": memory_mib,
        "output_limit_kib": output_kib,
        "sandbox_floor": sandbox_floor,
        "skip_bad_rows": skip_bad_rows,
        "thinking": thinking,
    }
    given = {name: value for name, value in options.items() if value is not None}
    if recipe is not None:
        if given:
            names = ", ".join(given)
            raise UserError(
                f"with a recipe, {names} come from the recipe: use --set evaluate.FIELD=VALUE (ssd-ray recipes --fields)"
            )
        _make("grade", recipe, out, overrides, quiet)
        return
    missing = [
        name
        for name, value in (
            ("--problems", problems),
            ("--completions", completions),
            ("--out", out),
        )
        if value is None
    ]
    if missing or out is None:
        raise UserError(
            f"without a recipe, --problems, --completions and --out are needed; missing: {', '.join(missing)}"
        )
    if overrides:
        raise UserError("--set overrides a recipe's fields, and there is no recipe")
    from ssd_ray.cli.grading import grade_from_command_line
    from ssd_ray.progress import progress

    show = progress(quiet)
    with _told_how_to_resume(show):
        table = grade_from_command_line(**given, out=out, progress=show)
    _console().print(table)
    typer.echo(f"{out / 'verdicts.parquet'}\n{out / 'scores.json'}")


@app.command()
def sandbox() -> None:
    """Say how well programs are walled in on this machine, what that covers, and try every claim."""
    from ssd_ray.cli.grading import sandbox_tables

    ok = True
    for table, fine in sandbox_tables():
        _console().print(table)
        ok &= fine
    if not ok:
        raise InfrastructureError(
            "a claim of the sandbox does not hold on this machine: do not grade untrusted programs here"
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
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Print every choice with its source, what a run would do, and what training takes in memory, hours and money."""
    import json

    from ssd_ray import recipes
    from ssd_ray.cli import plan as planned
    from ssd_ray.planner.assumptions import assumptions

    loaded, assumed = recipes.load(recipe, overrides or []), assumptions(assume or [])
    directory = out or Path(os.environ.get("SSD_RAY_RUNS", "runs")) / loaded.name
    if as_json:
        typer.echo(
            json.dumps(
                planned.as_json(loaded, overrides or [], directory, assumed), indent=1, default=str
            )
        )
        return
    console = _console()
    console.print(planned.choices_table(loaded, overrides or []))
    console.print(planned.steps_table(loaded, directory))
    console.print(planned.training_tables(loaded, directory, assumed))


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.")],
    second: Annotated[Path, typer.Argument(metavar="RUN", help="Another run directory.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Set two finished runs side by side: recipe differences, scores, paired differences by problem."""
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
            "--fields", help="Print every field of a recipe, its default and what it does."
        ),
    ] = False,
) -> None:
    """List the recipes that come with the package, or the fields of a recipe."""
    from ssd_ray import recipes

    if fields:
        from ssd_ray.cli.plan import fields_table

        _console().print(fields_table())
        return
    for name in recipes.shipped():
        typer.echo(f"{name:<24} {' '.join(recipes.load(name).description.split())}")


def _console() -> Any:
    """Where results are printed; a pipe or a log is as wide as tables need."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, 120)
    return console


def _interrupt(_signal: int, _frame: Any) -> None:
    raise KeyboardInterrupt


def main(arguments: list[str] | None = None) -> None:
    """Run a command line and exit; a person's mistake costs one sentence, not a traceback."""
    signal.signal(signal.SIGTERM, _interrupt)
    import_path.keep_children_safe()
    if arguments is not None:
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
