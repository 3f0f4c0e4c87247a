"""The first and the last line of a command's log, and the right command for a wrong one.

- A job begins with its run directory. On a screen, this line would come before each mistake.
- A command that did not finish ends with the command that resumes it.
- Arguments that belong to another command end with that command.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
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


def refuse_for_doctor(arguments: Sequence[str]) -> None:
    """Refuse arguments of `ssd-ray doctor`.

    Raises:
        UserError: names the commands about one recipe.
    """
    if not arguments:
        return
    recipe = next((each for each in arguments if not each.startswith("-")), "RECIPE")
    raise UserError(
        f"doctor takes no {arguments[0]}: `ssd-ray doctor` checks all shipped recipes, `ssd-ray "
        f"plan {recipe}` prints the needs of one, and `ssd-ray run {recipe}` makes the same checks "
        "before it starts"
    )


def refuse_gpu(values: list[str] | None) -> None:
    """Refuse `--gpu` and `--gpus` of `ssd-ray plan`.

    The kind of a GPU is an assumption, and their number is a choice of the recipe.

    Raises:
        UserError: names the options to use instead.
    """
    if not values:
        return
    number = values[0] if values[0].isdecimal() else "8"
    raise UserError(
        f"plan has no --gpu {values[0]}: give the memory of a GPU with `ssd-ray plan RECIPE "
        f"--assume gpu_memory_gib=141`, and a number of GPUs with `--set "
        f"cluster.train_workers={number}`"
    )


def is_job() -> bool:
    """Return True in a script of `jobs/`."""
    return Path(sys.argv[0]).parent.name == "jobs"


def _this_command() -> str:
    """Return this command, or the submission of this job, as a line for a shell."""
    if not is_job():
        return shlex.join(["ssd-ray", *sys.argv[1:]])
    submit = _SUBMIT if retries.is_submitted() else ()
    return shlex.join([*submit, "python", *sys.argv])
