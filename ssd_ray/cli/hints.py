"""The first and the last line of a command's log.

- A job begins with its run directory. On a screen, this line would come before each mistake.
- A command that did not finish ends with the command that resumes it.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ssd_ray.errors import InfrastructureError, UserError
from ssd_ray.submissions import retries

if TYPE_CHECKING:
    from ssd_ray.progress import Progress

_SUBMIT = ("ray", "job", "submit", "--working-dir", ".", "--")


def begin(directory: Path, show: Progress) -> None:
    """Print the run directory, if this is a job."""
    if is_job():
        show.say(f"run directory: {directory.absolute()}")


@contextmanager
def resume_hint(show: Progress) -> Iterator[None]:
    """End with the command to resume the run, if the block is interrupted or fails."""
    try:
        yield
    except KeyboardInterrupt:
        show.say(f"interrupted; what is on disk stays. To resume: {_this_command()}")
        raise
    except InfrastructureError as error:
        # `main` prints it after the sentence: the last line of a log is the command.
        error.add_note(f"stopped; what is on disk stays. To resume: {_this_command()}")
        raise


def end_retries(error: UserError | None = None) -> None:
    """End the attempts of this job at a mistake of the user, unless it may pass by itself.

    Without an `error`, the arguments of the command are the mistake.
    """
    if is_job() and not (error is not None and retries.may_pass(error)):
        retries.stop_if_retried(lambda line: typer.echo(line, err=True))


def is_job() -> bool:
    """Return True in a script of `jobs/`."""
    return Path(sys.argv[0]).parent.name == "jobs"


def _this_command() -> str:
    """Return this command, or the submission of this job, as a line for a shell."""
    if not is_job():
        return shlex.join(["ssd-ray", *sys.argv[1:]])
    submit = _SUBMIT if retries.is_submitted() else ()
    return shlex.join([*submit, "python", *sys.argv])
