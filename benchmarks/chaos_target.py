"""The interface to a cluster for the chaos table, and what it says of processes.

- `Target` has the operations. Cases use nothing else of a cluster.
- `Command` is a command of ssd_ray at work on one; `ProcessCommand` one in a process of its own.
- `chaos_nodes.LocalTarget` is a cluster on this machine.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil


class Command(Protocol):
    """A command of ssd_ray at work on a target."""

    def poll(self) -> int | None:
        """Return the exit status, None while it runs."""

    def stop(self) -> None:
        """End it as its user does: Ctrl-C, or `ray job stop`."""

    def kill(self) -> list[psutil.Process]:
        """Kill its process (SIGKILL); return the processes below it."""

    def tail(self) -> str:
        """Return the last line of its output."""


@dataclass(frozen=True, kw_only=True)
class Leftovers:
    """Everything of a command that outlived it, except files."""

    processes: tuple[str, ...] = ()
    actors: tuple[str, ...] = ()
    placement_groups: tuple[str, ...] = ()


class Target(Protocol):
    """A cluster with places for each role: nodes of one machine, or pods.

    A place is the name of one that holds workers of a role.
    """

    def places(self, role: str) -> list[str]:
        """Return the places of a role, the oldest first."""

    def workers(self, role: str) -> list[psutil.Process]:
        """Return the live worker processes of a role."""

    def workers_at(self, place: str) -> list[psutil.Process]:
        """Return the live worker processes of a place."""

    def notice(self, place: str, seconds: float) -> None:
        """Announce the end of a place in some seconds, and return at once."""

    def kill(self, place: str) -> None:
        """Kill everything at a place (SIGKILL), its raylet included."""

    def add(self, role: str) -> None:
        """Bring a place of a role; a cluster with an autoscaler does that by itself."""

    def restore(self) -> None:
        """Bring the places that a case took away for good."""

    def cut_off(self, place: str) -> None:
        """Let nothing at a place answer any more."""

    def rejoin(self, place: str) -> None:
        """Let it answer again; it returns once its place is in the cluster, under any name."""

    def limit_memory(self, worker: psutil.Process) -> str:
        """Let a worker exceed a limit of memory; return the kind of the limit."""

    def start(self, verb: str, recipe: Path, out: Path, log: Path) -> Command:
        """Start a command in a process of its own."""

    def submit(self, verb: str, recipe: Path, out: Path, log: Path) -> Command:
        """Submit a command as a job."""

    def leftovers(self) -> Leftovers:
        """Return everything of ended commands that is still there, after some patience."""

    def close(self) -> None:
        """End the cluster."""


def family(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Return processes and all below them, each once; those that have ended are left out."""
    members: dict[int, psutil.Process] = {}
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            for member in (process, *process.children(recursive=True)):
                members[member.pid] = member
    return list(members.values())


def send(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    """Send a signal to processes; pass over those that have ended."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def is_at_work(process: psutil.Process) -> bool:
    """Return True for a live process that is not stopped."""
    try:
        return process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_STOPPED)
    except psutil.NoSuchProcess:
        return False


def command_line(process: psutil.Process) -> str:
    """Return the command line of a process, empty if it has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def children_of(process: psutil.Process) -> list[psutil.Process]:
    """Return the children of a process from /proc/PID/task, without a look at all processes."""
    children = []
    for path in Path(f"/proc/{process.pid}/task").glob("*/children"):
        with suppress(OSError, psutil.NoSuchProcess):
            children += [psutil.Process(int(pid)) for pid in path.read_text().split()]
    return children


@dataclass
class ProcessCommand:
    """`python -m ssd_ray VERB`, on the head."""

    process: subprocess.Popen[bytes]
    log: Path

    def poll(self) -> int | None:
        """Return the exit status, None while it runs."""
        return self.process.poll()

    def stop(self) -> None:
        """Press Ctrl-C."""
        self.process.send_signal(signal.SIGINT)

    def kill(self) -> list[psutil.Process]:
        """Kill the driver alone."""
        below = family([psutil.Process(self.process.pid)])
        self.process.kill()
        self.process.wait()
        return below

    def tail(self) -> str:
        """Return the last line of its output."""
        return last_line(self.log)


def last_line(log: Path) -> str:
    """Return the last line of a log, empty if there is none."""
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return lines[-1] if lines else ""
