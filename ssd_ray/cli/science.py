"""Commands of the science: the toy, the probe.

They start no Ray and need no recipe. Heavy libraries are imported inside of each command.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ssd_ray.cli import probe
from ssd_ray.cli.console import results_console
from ssd_ray.cli.options import Json

commands = typer.Typer(rich_markup_mode=None)
commands.add_typer(probe.commands)


@commands.command()
def toy(
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="Override a number: --set samples.temperature=1.6"
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Directory of toy.html and toy.json; default is toy.")
    ] = Path("toy"),
    as_json: Json = False,
) -> None:
    """Compute the paper's toy, with the frontier of decoding alone.

    An automaton of forks and locks with a known answer. Writes toy.html and toy.json.
    """
    from ssd_ray.analysis.toy import ToySettings
    from ssd_ray.analysis.toy_study import study
    from ssd_ray.artifacts.files import write_atomic
    from ssd_ray.config.overrides import overridden
    from ssd_ray.reporting import toy as reporting

    figures = study(overridden(ToySettings, "--set", overrides or []))
    text = reporting.json_text(figures)
    write_atomic(out / "toy.json", text)
    write_atomic(out / "toy.html", reporting.page(figures))
    if as_json:
        typer.echo(text, nl=False)
        return
    console = results_console()
    for part in reporting.terminal(figures):
        console.print(part)
    typer.echo(f"{out / 'toy.html'}\n{out / 'toy.json'}")
