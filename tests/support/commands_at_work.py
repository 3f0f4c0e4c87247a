"""A command of a run directory in a process of its own, steered through files.

`python -m tests.support.commands_at_work DIRECTORY CHOICE` holds its turn, says `working`, and ends
as the file `end` in DIRECTORY says: `0`, `1`, `2`, `130` or `bug`.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from ssd_ray.errors import InfrastructureError, UserError
from ssd_ray.progress import LineProgress, RecordedProgress
from ssd_ray.submissions.owner import Work
from ssd_ray.submissions.turn import turn

ENDS: dict[str, type[BaseException]] = {
    "1": InfrastructureError,
    "2": UserError,
    "130": KeyboardInterrupt,
    "bug": ZeroDivisionError,
}


def work(choice: str = "a", verb: str = "report") -> Work:
    """Return the work of a command with one choice."""
    return Work(command=f"ssd-ray {verb} tiny", choices={"sample": {"seed": choice}})


def start(out: Path, choice: str = "a") -> subprocess.Popen[str]:
    """Start a command; it works as soon as it prints `working`."""
    command = [sys.executable, "-m", __name__, str(out), choice]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def until_working(process: subprocess.Popen[str]) -> None:
    """Wait until a command is at work."""
    assert process.stderr is not None
    line = ""
    for line in process.stderr:
        if line == "working\n":
            return
    raise AssertionError(f"it ended before its work: {line}")


def main(out: Path, choice: str) -> None:
    """Hold the turn until the file `end` appears."""
    progress = RecordedProgress(LineProgress())
    with turn(out, work(choice), progress):
        progress.say("working")
        with progress.task("samples", 4, "answers") as task:
            while not (end := out / "end").exists():
                task.update(1)
                time.sleep(0.05)
            task.update(4)
        if error := ENDS.get(end.read_text().strip()):
            raise error(f"no seed {choice}: use another")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
