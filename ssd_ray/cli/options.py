"""Options of the commands, and dataclasses of options as commands.

A field of `GradeOptions` carries its typer option; `takes` builds the command's signature from it.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar, get_type_hints

import typer

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    OptionsT = TypeVar("OptionsT", bound=DataclassInstance)

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
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GradeOptions:
    """Options of `ssd-ray grade`: those of every verb, then those for files without a recipe.

    None marks an option left out; `cli.grading` fills in the defaults of grading files.
    """

    recipe: Annotated[
        str | None, typer.Argument(metavar="[RECIPE]", help="Recipe, or none with --problems.")
    ] = None
    out: Out = None
    overrides: Set = None
    quiet: Quiet = False
    problems: Annotated[
        Path | None, typer.Option(help="Problems, in any format of docs/benchmarks.md.")
    ] = None
    completions: Annotated[
        Path | None, typer.Option(help="Rows: problem's id, index, and text or code.")
    ] = None
    profile: Annotated[
        str | None,
        typer.Option(help="strict (real processes; default) or lcb-compat (bug for bug)."),
    ] = None
    extract: Annotated[
        str | None, typer.Option(help="Program in a text: last-block (default), first-block, lcb.")
    ] = None
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; default is one per core.")
    ] = None
    # Names are those of the fields under `evaluate`: a recipe's error message lists them.
    time_limit_s: Annotated[
        float | None,
        typer.Option("--timeout-s", min=0.1, max=86400, help="Time limit of a test; default 6."),
    ] = None
    memory_limit_mib: Annotated[
        int | None, typer.Option("--memory-mib", min=64, help="Memory limit; default 1024.")
    ] = None
    output_limit_kib: Annotated[
        int | None,
        typer.Option(
            "--output-kib",
            min=1,
            help="Limit of a test's output, raised to the expected output; default 1024.",
        ),
    ] = None
    sandbox_floor: Annotated[
        str | None, typer.Option("--sandbox-floor", help="Refuse a weaker sandbox; default L1.")
    ] = None
    skip_bad_rows: Annotated[
        bool | None,
        typer.Option("--skip-bad-rows", help="Leave bad rows out, count and list them."),
    ] = None
    thinking: Annotated[
        bool | None,
        typer.Option(
            "--thinking",
            help="The texts begin within a reasoning part: prompts ended in <think> or the like.",
        ),
    ] = None

    def only_for_files(self) -> list[str]:
        """List the options on the command line with no use with a recipe."""
        of_every_verb = ("recipe", "out", "overrides", "quiet")
        return [
            field.name
            for field in dataclasses.fields(self)
            if field.name not in of_every_verb and getattr(self, field.name) is not None
        ]


def takes(
    options: type[OptionsT],
) -> Callable[[Callable[[OptionsT], None]], Callable[..., None]]:
    """Return a decorator for functions of one dataclass: the result has a parameter a field.

    typer reads commands from signatures, so each field becomes an option or an argument.
    """
    annotations = get_type_hints(options, include_extras=True)
    parameters = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=annotations[field.name],
        )
        for field in dataclasses.fields(options)
    ]

    def decorate(act: Callable[[OptionsT], None]) -> Callable[..., None]:
        def command(**values: object) -> None:
            act(options(**values))

        command.__name__ = act.__name__
        command.__doc__ = act.__doc__
        # Both are read: the signature for parameters, the annotations for their types.
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = annotations
        return command

    return decorate
