"""Interface of a confined process: its limits, its lines, its output and its end.

`Child` implements it on this machine's kernel, and `gvisor.client.GuestProcess` within gVisor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

End = Literal["exited", "time_limit", "output_limit", "thread_limit"]
MOST_THREADS = 512
"""Most threads of one process.

Address space does not bound them: without a stack of its own, a thread takes only kernel memory and
a process id.
"""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Resources of one test."""

    time_s: float
    """Wall time. Seconds of waiting for a core, while ready to run, do not count."""
    memory_mib: int
    """Address space."""
    output_kib: int
    """Size of each output stream, and of the result."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """The end of a process as reported by its zygote."""

    kind: str
    """`exit` or `signal`."""
    number: int
    """Exit status, or number of the signal."""
    peak_kib: int
    """Peak resident size."""
    cpu_s: float


class Process(Protocol):
    """Interface of a confined process, wherever it runs."""

    cpu_s: float
    """Limit of CPU time."""
    filtered: bool
    """True if the process can neither send itself SIGKILL nor lower its limit of CPU time."""

    def run(self, time_s: float) -> End:
        """Let the process run to its end, for at most `time_s` seconds, and stop it."""

    def send(self, lines: str) -> None:
        """Queue complete lines, sent as the process reads."""

    def receive(self, time_s: float) -> bytes | End:
        """Return the next line within `time_s` seconds, or the reason why none came."""

    @property
    def stdout(self) -> bytes:
        """Standard output, cut off at the cap."""

    @property
    def stderr(self) -> bytes:
        """Standard error, at least its last lines, cut off at the cap."""

    @property
    def report(self) -> Report:
        """The end of the process.

        Raises:
            InfrastructureError: The sandbox died before it reported one.
        """

    def stop(self) -> None:
        """Kill the process if it is alive."""

    def close(self) -> None:
        """Stop the process and release its resources."""
