"""The console for results: standard output, also in a pipe or a log."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

_PIPE_WIDTH = 120


def results_console() -> Console:
    """Return the console for results, wide enough for tables; COLUMNS sets its width."""
    from rich.console import Console

    class Results(Console):
        def on_broken_pipe(self) -> None:
            # The error is handled in one place, `cli.pipes`.
            raise

    made = Results()
    # A pipe has 80 columns by default, too few for the tables.
    if not made.is_terminal and not os.environ.get("COLUMNS", "").isdigit():
        made.width = max(made.width, _PIPE_WIDTH)
    return made
