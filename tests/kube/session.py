"""A session of a shell on a page: its commands run one by one, and its output is compared.

- A block of a page with the language `console` has commands after `$ `, and their output.
- A line `...` matches any lines. Times, ages, names and addresses are masked on both sides.
- All commands share one bash, so variables stay.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_MASKS = (
    (r"\b\d+\.\d+\.\d+\.\d+\b", "ADDRESS"),
    (r"-(head|worker)-[a-z0-9]{5}\b", r"-\1-POD"),
    (r"/_ray_pkg_[0-9a-f]+", "/PACKAGE"),
    (r"_ray_pkg_[0-9a-f]+\.zip", "PACKAGE.zip"),
    (r"\b\d+:\d\d(:\d\d)?\b|\b(\d+h)?(\d+m)?\d+s\b|\b\d+m\b|\b\d+(\.\d+)? s\b", "TIME"),
    (r"(_request_total) \d+", r"\1 COUNT"),
    (r"[ \t]+", " "),
)
_LEFT_OUT = "..."


@dataclass(frozen=True, kw_only=True)
class Step:
    """A command of a session with its output."""

    command: str
    output: str


@dataclass(frozen=True, kw_only=True)
class Result:
    """A command that was run."""

    step: Step
    output: str
    status: int
    began: float
    """Time of the start, as `time.time` has it."""
    seconds: float


def steps_of(page: Path) -> list[Step]:
    """Return the commands of a page's sessions in their order."""
    steps: list[Step] = []
    for block in _BLOCK.findall(page.read_text()):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            lines = part.splitlines()
            length = 1 + next(
                (index for index, line in enumerate(lines) if not line.endswith("\\")), 0
            )
            output = "\n".join(lines[length:])
            steps.append(Step(command="\n".join(lines[:length]), output=output))
    return steps


def masked(text: str) -> str:
    """Return a text with what differs from run to run replaced."""
    for pattern, name in _MASKS:
        text = re.sub(pattern, name, text)
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def agrees(expected: str, output: str) -> bool:
    """Return True if an output is that of the page, except for what is masked or left out."""
    lines = masked(expected).split("\n")
    pattern = "".join(
        r"(?:.*\n)*?" if line == _LEFT_OUT else re.escape(line) + r"\n" for line in lines
    )
    return re.fullmatch(pattern, masked(output) + "\n") is not None


class Shell:
    """A bash that runs commands one after another."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            ["bash", "--norc", "--noprofile"],
            cwd=folder,
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )

    def run(self, step: Step, timeout_s: float, command: str = "") -> Result:
        """Run a command, or another in its place. Raise TimeoutError after `timeout_s`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        mark = f"--end-{time.monotonic_ns()}--"
        began = time.time()
        timer = threading.Timer(timeout_s, self.close)
        timer.start()
        lines: list[str] = []
        try:
            # Without an input of its own, a command would read the next ones.
            end = f"status=$?; echo; echo {mark} $status"
            text = f"{{ {command or step.command}\n}} </dev/null; {end}\n"
            self._process.stdin.write(text)
            self._process.stdin.flush()
            for line in self._process.stdout:
                if line.startswith(mark):
                    status = int(line.split()[1])
                    break
                lines.append(line)
            else:
                raise TimeoutError(f"{step.command}: no end after {timeout_s:.0f} s\n{lines[-20:]}")
        finally:
            timer.cancel()
        return Result(
            step=step,
            output="".join(lines).rstrip("\n"),
            status=status,
            began=began,
            seconds=time.time() - began,
        )

    def close(self) -> None:
        """End bash and its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def differences(results: Sequence[Result]) -> list[str]:
    """Return a text for each command whose output is not that of the page."""
    return [
        f"$ {each.step.command}\npage:\n{each.step.output}\nnow (status {each.status}):\n"
        f"{each.output}"
        for each in results
        if not agrees(each.step.output, each.output)
    ]
