"""Processes that a test watches and ends; each may end by itself at any time."""

from __future__ import annotations

from collections.abc import Iterable

import psutil

# Ray's own agents of a node hold no device and no core, and end some seconds after their raylet.
AGENTS = ("DashboardAgent", "RuntimeEnvAgent", "dashboard/agent.py", "runtime_env/agent")


def descendants(pid: int) -> list[psutil.Process]:
    """Return the processes below a process; none if it has ended."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def workers_of(pid: int) -> list[psutil.Process]:
    """Return the processes below a driver, without Ray's own agents."""
    return [process for process in descendants(pid) if not is_agent(process)]


def command_of(process: psutil.Process) -> str:
    """Return the command line of a process; empty if it has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def is_agent(process: psutil.Process) -> bool:
    """Return True for the agents that Ray starts on each node."""
    return any(name in command_of(process) for name in AGENTS)


def is_starting(process: psutil.Process) -> bool:
    """Return True for a process of Ray that has no work yet; Ray titles it when it has some."""
    return "default_worker.py" in command_of(process)


def is_alive(pid: int) -> bool:
    """Return True while a process runs; False once it has ended, also before it is waited for."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def kill(process: psutil.Process) -> bool:
    """Kill a process; return False if it had ended before."""
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return False
    return True


def kill_all(processes: Iterable[psutil.Process], timeout_s: float = 20) -> None:
    """Kill processes, wait for their ends, and pass over those that ended before."""
    victims = [process for process in processes if kill(process)]
    psutil.wait_procs(victims, timeout=timeout_s)
