"""The command `ssd-ray view`. Its server is imported inside of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from ssd_ray.cli.options import takes

commands = typer.Typer(rich_markup_mode=None)


@dataclass(frozen=True, kw_only=True)
class ViewOptions:
    """Options of `ssd-ray view`."""

    directories: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[RUN_OR_DIRECTORY]",
            help="Run directories, outputs of `ssd-ray grade`, or directories above them; "
            "default is runs.",
        ),
    ] = None
    export: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write a self-contained site of one run, and end."),
    ] = None
    rows: Annotated[int, typer.Option(min=1, max=20_000, help="Answers of --export.")] = 200
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Port; default is the first free one from 8765."),
    ] = None
    host: Annotated[
        str, typer.Option(help="Address to listen on. Another than 127.0.0.1 needs --token.")
    ] = "127.0.0.1"
    token: Annotated[
        str | None, typer.Option(help="Token in the address; default is a random one.")
    ] = None
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the address in a browser.")
    ] = True


@commands.command()
@takes(ViewOptions)
def view(options: ViewOptions) -> None:
    """Read the answers of runs in a browser.

    Filters, search, one answer with its verdict, changes between arms, and files to take away.
    Prints the address, and serves it to this machine alone until Ctrl-C. Never writes into a run,
    so a run in progress can be watched. docs/view.md has a tour.

    ssd-ray view runs: every run below runs/.
    """
    import os

    from ssd_ray.view.server import ServerOptions, export_site, serve

    chosen = options.directories or [Path(os.environ.get("SSD_RAY_RUNS", "runs"))]
    if options.export is not None:
        typer.echo(export_site(chosen, options.export, options.rows))
        return
    serve(
        chosen,
        ServerOptions(
            host=options.host,
            port=options.port,
            token=options.token,
            open_browser=options.browser,
        ),
    )
