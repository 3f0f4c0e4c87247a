"""The command `probe`. Heavy libraries are imported inside of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ssd_ray.cli import hints
from ssd_ray.cli.console import results_console
from ssd_ray.cli.options import Quiet, takes
from ssd_ray.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

    from ssd_ray.reporting.numbers.probe_numbers import ProbeNumbers
    from ssd_ray.standalone.probe import ProbeJob

commands = typer.Typer(rich_markup_mode=None)


@dataclass(frozen=True, kw_only=True)
class ProbeOptions:
    """Options of `ssd-ray probe`; None takes the run's value, else the paper's."""

    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL",
            help="The base, then trained models: directories, .gguf files, hub ids, runs, "
            "RUN/checkpoint/steps.",
        ),
    ]
    contexts: Annotated[
        list[str],
        typer.Option(
            metavar="PLACE",
            help="RUN or SWEEP/dataset/NAME (held-out samples), RUN:accepted, RUN:rejected, "
            "completions with ids, builtin, humaneval, a problem file. May be repeated.",
        ),
    ]
    out: Annotated[Path, typer.Option(help="Directory of the tables and the page.")]
    limit: Annotated[
        int | None, typer.Option(min=1, help="Most answers of each place; default all.")
    ] = None
    train_temperature: Annotated[
        float | None, typer.Option(help="T_train; default of the run, else 1.6.")
    ] = None
    train_top_k: Annotated[
        int | None,
        typer.Option(min=0, help="Top-k of the samples; default of the run, else 20; 0 keeps all."),
    ] = None
    train_top_p: Annotated[
        float | None, typer.Option(help="Top-p of the samples; default of the run, else 0.8.")
    ] = None
    eval_temperature: Annotated[
        float | None,
        typer.Option(help="T_eval of the trained model; default of the run, else 1.1."),
    ] = None
    eval_top_k: Annotated[
        int | None,
        typer.Option(
            min=0, help="Top-k of the evaluation; default of the run, else 20; 0 keeps all."
        ),
    ] = None
    eval_top_p: Annotated[
        float | None, typer.Option(help="Top-p of the evaluation; default of the run, else 0.8.")
    ] = None
    temperatures: Annotated[
        str | None,
        typer.Option(help="Temperatures to measure at; default 0.4,0.7,1,1.2,1.4,1.7,2."),
    ] = None
    dtype: Annotated[
        str | None, typer.Option(help="float32 (default on a CPU) or bfloat16 (on a GPU).")
    ] = None
    quiet: Quiet = False


@commands.command()
@takes(ProbeOptions)
def probe(options: ProbeOptions) -> None:
    """Measure models at every position of the same answers.

    Shows locks and forks, the changes by training, and the effects of decoding alone. Writes
    probe.html, probe.json and positions.parquet. No model is sampled from.
    """
    from ssd_ray.progress import progress
    from ssd_ray.standalone.probe import probe as probe_models

    job = _job(options)
    show = progress(options.quiet)
    hints.begin(job.out, show)
    with hints.resume_hint(show):
        numbers = probe_models(job, show)
    results_console().print(_table(numbers))
    typer.echo(f"{job.out / 'probe.html'}\n{job.out / 'probe.json'}")


def _job(options: ProbeOptions) -> ProbeJob:
    from ssd_ray.analysis.measures import TEMPERATURES
    from ssd_ray.standalone.probe import Choices, ProbeJob

    temperatures: tuple[float, ...] = TEMPERATURES
    if options.temperatures is not None:
        try:
            temperatures = tuple(float(each) for each in options.temperatures.split(","))
        except ValueError as error:
            raise UserError(
                f"--temperatures {options.temperatures!r}: use numbers with commas, such as 0.7,1"
            ) from error
    return ProbeJob(
        models=tuple(options.models),
        contexts=tuple(options.contexts),
        out=options.out,
        limit=options.limit,
        dtype=_dtype(options.dtype),
        choices=Choices(
            train_temperature=options.train_temperature,
            train_top_k=options.train_top_k,
            train_top_p=options.train_top_p,
            eval_temperature=options.eval_temperature,
            eval_top_k=options.eval_top_k,
            eval_top_p=options.eval_top_p,
            temperatures=temperatures,
        ),
    )


def _dtype(name: str | None) -> Literal["float32", "bfloat16"] | None:
    match name:
        case None | "float32" | "bfloat16":
            return name
    raise UserError(f"--dtype {name!r}: use float32 or bfloat16")


def _table(numbers: ProbeNumbers) -> Table:
    """Return the results as a table, a column for each trained model."""
    from rich.table import Table

    from ssd_ray.reporting.probe_page import summary

    table = Table(title=f"base: {numbers.base}", title_justify="left")
    table.add_column("")
    for model in numbers.models[1:] or numbers.models:
        table.add_column(model, justify="right")
    for label, cells in summary(numbers):
        table.add_row(label, *cells)
    return table
