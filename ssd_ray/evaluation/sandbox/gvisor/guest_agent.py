"""The agent within a gVisor sandbox: it runs programs for the grader outside.

- A request is a line of JSON on standard input, the verb first. It is the grader's, so trusted.
- An answer is a line of the wire on standard output.
- The grader numbers the processes.
- The agent ends with its input.

Runs from the files of `image`.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from ssd_ray import wire
from ssd_ray.errors import InfrastructureError
from ssd_ray.evaluation.sandbox import levels
from ssd_ray.evaluation.sandbox.child import Child
from ssd_ray.evaluation.sandbox.inside import walls
from ssd_ray.evaluation.sandbox.process import Limits
from ssd_ray.evaluation.sandbox.spawning import Task, Zygote

STDERR_BYTES = 4096
"""Size of the end of a process's error stream in an answer."""


def main() -> None:
    """Answer `up` and serve until the grader hangs up; answer `failed` if the zygote fails."""
    walls.hide_memory()
    try:
        agent = _GuestAgent(Zygote(levels.L4))
        _answer(["up"])
        for line in sys.stdin.buffer:
            agent.serve(json.loads(line))
    except InfrastructureError as error:
        _answer(["failed", str(error)])


def _answer(answer: list[object]) -> None:
    sys.stdout.write(wire.dumps(answer) + "\n")
    sys.stdout.flush()


class _GuestAgent:
    """The processes alive, by the grader's numbers."""

    def __init__(self, zygote: Zygote) -> None:
        self._zygote = zygote
        self._children: dict[int, Child] = {}

    def serve(self, request: list[Any]) -> None:
        """Carry out a request; every verb but `send` and `close` has an answer."""
        match request:
            case ["start", int(number), dict(task)]:
                limits = Limits(**task.pop("limits"))
                self._children[number] = self._zygote.start(Task(limits=limits, **task))
                _answer(["started"])
            case ["run", int(number), float(time_s)]:
                self._answer_end(number, self._children[number].run(time_s))
            case ["send", int(number), str(lines)]:
                self._children[number].send(lines)
            case ["receive", int(number), float(time_s)]:
                line = self._children[number].receive(time_s)
                if isinstance(line, bytes):
                    _answer(["line", line])
                else:
                    self._answer_end(number, line)
            case ["stop", int(number)]:
                self._answer_end(number, "exited")
            case ["close", int(number)]:
                self._children.pop(number).close()

    def _answer_end(self, number: int, end: str) -> None:
        """Stop a process and answer with the reason of its end, its report and its output."""
        child = self._children[number]
        child.stop()
        report = child.report
        fields = [report.kind, report.number, report.peak_kib, report.cpu_s]
        _answer(["ended", end, fields, child.stdout, child.stderr[-STDERR_BYTES:]])


if __name__ == "__main__":
    main()
