"""Run workers at niceness 0 where the machine permits it.

A raylet gives its workers niceness 15 unless it was started with `RAY_worker_niceness=0`. The
driver's environment reaches a local Ray alone. On a cluster, an unprivileged worker cannot lower
its niceness, and the caller reports `REMEDY`.
"""

from __future__ import annotations

import os

REMEDY = "start Ray on its nodes with RAY_worker_niceness=0"


def settle() -> int:
    """Take niceness 0 for every thread of this process where permitted; return the niceness."""
    if niceness() > 0:
        # On Linux niceness belongs to a thread, not to the process.
        for thread in os.listdir("/proc/self/task"):
            try:
                os.setpriority(os.PRIO_PROCESS, int(thread), 0)
            except PermissionError:
                break
            except ProcessLookupError:
                # The thread ended in between.
                continue
    return niceness()


def niceness() -> int:
    """Return the niceness of the calling thread; its new threads inherit it."""
    return os.getpriority(os.PRIO_PROCESS, 0)
