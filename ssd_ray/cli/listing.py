"""Command `ssd-ray recipes`: the recipes of the package, and the fields of a recipe."""

from __future__ import annotations

from typing import Annotated

import typer

from ssd_ray.cli.console import results_console

commands = typer.Typer(rich_markup_mode=None)


@commands.command("recipes")
def list_recipes(
    fields: Annotated[
        bool,
        typer.Option(
            "--fields", help="Print every field of a recipe, its default and its meaning."
        ),
    ] = False,
) -> None:
    """List the recipes of the package, or the fields of a recipe."""
    import textwrap

    from ssd_ray import recipes

    if fields:
        from ssd_ray.cli.plan import fields_table

        results_console().print(fields_table())
        return
    width = results_console().width
    for name in recipes.shipped():
        entry = f"{name:<24} {' '.join(recipes.load(name).description.split())}"
        typer.echo(textwrap.fill(entry, width, subsequent_indent=" " * 25, break_on_hyphens=False))
