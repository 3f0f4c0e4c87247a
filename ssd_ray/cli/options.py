"""Options of the commands.

A command with many options takes them as a dataclass. Each field is annotated with its typer
option, and `takes` builds the command's signature from the fields.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar, get_type_hints

import typer

from ssd_ray.cli import hints
from ssd_ray.errors import UserError

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
Seeds = Annotated[
    int | None,
    typer.Option(
        "--seeds",
        metavar="N",
        help="Train N times with N seeds, 2 or more, and report their spread (train.seeds).",
    ),
]
Quiet = Annotated[
    bool, typer.Option("--quiet", help="Print lines at intervals instead of live bars.")
]
Assume = Annotated[
    list[str] | None,
    typer.Option(
        "--assume", metavar="NAME=VALUE", help="Replace an assumption: --assume peak_tflops=312"
    ),
]
Cluster = Annotated[
    Path | None,
    typer.Option(
        "--cluster",
        metavar="PATH",
        help="Compare with a cluster: a kustomize directory, a RayCluster, a RayJob, cluster.yaml.",
    ),
]
NoGpu = Annotated[
    list[str] | None, typer.Option("--gpu", "--gpus", hidden=True, callback=hints.refuse_gpu)
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


def seeds_override(seeds: int | None) -> list[str]:
    """Return `--seeds N` as an override of the recipe.

    Raises:
        UserError: one training, which has no spread.
    """
    if seeds is None:
        return []
    if seeds < 2:
        raise UserError(
            f"--seeds {seeds} asks for the spread of trainings, which needs 2 or more: "
            "leave --seeds out for one training"
        )
    return [f"train.seeds={seeds}"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """Options of `ssd-ray plan`."""

    recipe: RecipeArgument
    out: Out = None
    overrides: Set = None
    assume: Assume = None
    cluster: Cluster = None
    as_json: Json = False
    gpu: NoGpu = None


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
    follow: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Grade for a run with cluster.graders=apart, as its answers arrive. "
            "Takes --workers and --quiet alone.",
        ),
    ] = None
    profile: Annotated[
        str | None,
        typer.Option(
            help="strict (real processes; default) or lcb-compat (as LiveCodeBench's grader)."
        ),
    ] = None
    extract: Annotated[
        str | None,
        typer.Option(
            help="Rule for the program in a text: last-block (default), first-block, lcb, release."
        ),
    ] = None
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; default is one per core.")
    ] = None
    # Named like the fields under `evaluate`, because the error about options that a recipe decides
    # lists these names.
    time_limit_s: Annotated[
        float | None,
        typer.Option("--timeout-s", min=0.1, max=86400, help="Time limit of a test; default 6."),
    ] = None
    memory_limit_mib: Annotated[
        int | None,
        typer.Option(
            "--memory-mib", min=64, help="Limit on the address space of a program; default 1024."
        ),
    ] = None
    output_limit_kib: Annotated[
        int | None,
        typer.Option(
            "--output-kib",
            min=1,
            help="Limit of a test's output, raised to fit the expected output; default 1024.",
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
        """List the options given that are for files alone, and have no effect with a recipe."""
        return self._other_than("recipe", "out", "overrides", "quiet")

    def not_for_following(self) -> list[str]:
        """List the options given that have no effect with --follow."""
        return self._other_than("follow", "workers", "quiet")

    def _other_than(self, *names: str) -> list[str]:
        return [
            field.name
            for field in dataclasses.fields(self)
            if field.name not in names and getattr(self, field.name) is not None
        ]


class SweepMeasure(StrEnum):
    """Measures of `ssd-ray sweep`."""

    answers = "answers"
    probe = "probe"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """Options of `ssd-ray sweep`."""

    recipe: RecipeArgument
    over: Annotated[
        list[str] | None,
        typer.Option(
            "--over",
            metavar="FIELD=V1,V2",
            help="An axis: a field of sample or train, evaluate.temperature, evaluate.top_k, "
            "evaluate.top_p, or checkpoint (exported steps). May be repeated.",
        ),
    ] = None
    measure: Annotated[
        SweepMeasure,
        typer.Option(
            help="answers: graded answers of every cell. probe: distributions on held-out answers "
            "of the base, one forward pass a student."
        ),
    ] = SweepMeasure.answers
    overrides: Set = None
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Directory; default is runs/NAME/sweep, or $SSD_RAY_RUNS/NAME/sweep."
        ),
    ] = None
    no_fit: Annotated[bool, typer.Option("--no-fit", help="Fit nothing over T_eff.")] = False
    plan: Annotated[bool, typer.Option("--plan", help="Print the cost and end.")] = False
    as_json: Json = False
    quiet: Quiet = False


def takes(
    options: type[OptionsT],
) -> Callable[[Callable[[OptionsT], None]], Callable[..., None]]:
    """Return a decorator for functions of one dataclass: each field becomes a parameter.

    typer reads commands from signatures, and makes an option or an argument of each parameter.
    """
    annotations = get_type_hints(options, include_extras=True)
    missing = inspect.Parameter.empty
    parameters = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default if field.default is not dataclasses.MISSING else missing,
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
