"""Within a gVisor sandbox: a zygote of its own, and a grader outside who has it fork processes by lines on standard streams.

A request is a line of JSON, the verb first; the grader's, so it is trusted. An answer is a line of `wire`. Processes have
numbers that the grader gives them. Ends with its input. Runs from the image that image.py makes.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from ssd_ray import wire
from ssd_ray.errors import InfrastructureError
from ssd_ray.evaluation.sandbox import levels
from ssd_ray.evaluation.sandbox.child import Child, Limits
from ssd_ray.evaluation.sandbox.inside import walls
from ssd_ray.evaluation.sandbox.spawning import Task, Zygote

STDERR_BYTES = 4096
"""Of a process's error stream, the last bytes are told."""


def main() -> None:
    """Say `up`, serve until the grader hangs up; say why where a zygote does not start or dies."""
    walls.hide_memory()
    try:
        relay = _Relay(Zygote(levels.L4))
        _say(["up"])
        for line in sys.stdin.buffer:
            relay.serve(json.loads(line))
    except InfrastructureError as error:
        _say(["failed", str(error)])


def _say(answer: list[object]) -> None:
    sys.stdout.write(wire.dumps(answer) + "\n")
    sys.stdout.flush()


class _Relay:
    """The processes alive, by the grader's numbers."""

    def __init__(self, zygote: Zygote) -> None:
        self._zygote = zygote
        self._children: dict[int, Child] = {}

    def serve(self, request: list[Any]) -> None:
        """Do what is asked; every verb but `send` and `close` has an answer."""
        match request:
            case ["start", int(number), dict(task)]:
                limits = Limits(**task.pop("limits"))
                self._children[number] = self._zygote.start(Task(limits=limits, **task))
                _say(["started"])
            case ["run", int(number), float(time_s)]:
                self._say_end(number, self._children[number].run(time_s))
            case ["send", int(number), str(lines)]:
                self._children[number].send(lines)
            case ["receive", int(number), float(time_s)]:
                line = self._children[number].receive(time_s)
                if isinstance(line, bytes):
                    _say(["line", line])
                else:
                    self._say_end(number, line)
            case ["stop", int(number)]:
                self._say_end(number, "exited")
            case ["close", int(number)]:
                self._children.pop(number).close()

    def _say_end(self, number: int, end: str) -> None:
        """How a process ended, after it is stopped: why, how the kernel reports it, and what it wrote."""
        child = self._children[number]
        child.stop()
        report = child.report
        told = [report.kind, report.number, report.peak_kib, report.cpu_s]
        _say(["ended", end, told, child.stdout, child.stderr[-STDERR_BYTES:]])


if __name__ == "__main__":
    main()
