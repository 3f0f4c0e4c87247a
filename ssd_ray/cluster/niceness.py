"""Run workers at the niceness of everything else, where the machine lets them.

A raylet gives its workers niceness 15 unless it was itself started with `RAY_worker_niceness=0`;
the driver's environment reaches only a Ray that it starts. An unprivileged process cannot lower
its own niceness, so what is left is to say so.
"""

from __future__ import annotations

import os

REMEDY = "start Ray on its nodes with RAY_worker_niceness=0"


def settle() -> int:
    """Take niceness 0 for every thread of this process where permitted; return the niceness."""
    if niceness() > 0:
        for thread in os.listdir("/proc/self/task"):
            try:
                os.setpriority(os.PRIO_PROCESS, int(thread), 0)
            except PermissionError:
                break
            except ProcessLookupError:  # it ended in between
                continue
    return niceness()


def niceness() -> int:
    """Return the niceness of the calling thread, which threads that it starts inherit."""
    return os.getpriority(os.PRIO_PROCESS, 0)
