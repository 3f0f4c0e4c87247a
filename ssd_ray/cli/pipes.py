"""The end of a command whose reader has gone, such as `ssd-ray recipes | head -1`.

It ends with status 141, as a program ended by SIGPIPE does in a shell, and prints nothing more.
"""

from __future__ import annotations

import functools
import os
import select
import sys
from collections.abc import Callable
from typing import ParamSpec

P = ParamSpec("P")

READER_GONE = 141
"""128 + SIGPIPE. The signal itself would also end a command for a lost connection of Ray."""
_OUTPUTS = (1, 2)
"""File descriptors of standard output and standard error."""


def ends_quietly(main: Callable[P, None]) -> Callable[P, None]:
    """Return a `main` that ends with status 141 if a reader of its output has gone."""

    @functools.wraps(main)
    def command(*arguments: P.args, **options: P.kwargs) -> None:
        try:
            try:
                main(*arguments, **options)
            finally:
                sys.stdout.flush()
        except (BrokenPipeError, SystemExit) as end:
            error = _broken_pipe(end)
            if error is None:
                raise
            poll = select.poll()
            for number in _OUTPUTS:
                poll.register(number, 0)
            gone = [number for number, event in poll.poll(0) if event & select.POLLERR]
            # A lost connection is no reader of the output.
            if not gone:
                raise error from None
            for number in gone:
                # The interpreter flushes what is left at its end.
                os.dup2(os.open(os.devnull, os.O_WRONLY), number)
            sys.exit(READER_GONE)

    return command


def _broken_pipe(end: BaseException) -> BrokenPipeError | None:
    """Return the error behind the end of a command, of which typer makes an exit."""
    if isinstance(end, SystemExit) and end.code == 1:
        end = end.__context__ or end
    return end if isinstance(end, BrokenPipeError) else None
