"""Handles of a sandboxed process: its id, and a kill that is safe if the id is reused.

Reads /proc.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal


class PidFd:
    """A process, held by its pidfd; the process may be in another process namespace."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @functools.cached_property
    def pid(self) -> int:
        """Process id in our own namespace; -1 if the process had ended."""
        with open(f"/proc/self/fdinfo/{self._fd}") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("Pid:"))

    def kill(self) -> None:
        """Kill the process if it is alive."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._fd, signal.SIGKILL)

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._fd)


class KillPipe:
    """A process of our own namespace, held by a pipe to its zygote; closing the pipe kills it.

    For kernels without pidfds. Only the parent knows if a process id still belongs to its child.
    """

    def __init__(self, fd: int, pid: int) -> None:
        self._fd = fd
        self.pid = pid

    def kill(self) -> None:
        """Have the zygote kill the process."""
        self.close()

    def close(self) -> None:
        """Close the pipe, which kills the process."""
        # The pipe also closes when its holder dies, so its programs die with it.
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
