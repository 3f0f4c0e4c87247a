"""The command `ssd-ray view`. Its server is imported inside of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

commands = typer.Typer(rich_markup_mode=None)


@commands.command()
def view(
    directories: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[RUN_OR_DIRECTORY]...",
            help="Run directories, outputs of `ssd-ray grade`, or directories above them; "
            "default is runs.",
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Port; default is the first free one from 8765."),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on. Another than 127.0.0.1 needs --token.")
    ] = "127.0.0.1",
    token: Annotated[
        str | None, typer.Option(help="Token in the address; default is a random one.")
    ] = None,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the address in a browser.")
    ] = True,
) -> None:
    """Read the answers of runs in a browser.

    Filters, search, one answer with its verdict, changes between arms, and files to take away.
    Prints the address, and serves it to this machine alone until Ctrl-C. Never writes into a run,
    so a run in progress can be watched. docs/view.md has a tour.

    ssd-ray view runs: every run below runs/.
    """
    import os

    from ssd_ray.view.server import ServerOptions, serve

    chosen = directories or [Path(os.environ.get("SSD_RAY_RUNS", "runs"))]
    options = ServerOptions(host=host, port=port, token=token, open_browser=browser)
    serve(chosen, options)
