"""How a sandboxed process is held from outside: killed without mistaking another for it, and looked at.

Reads /proc.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal


class PidFd:
    """A process by a pidfd, from whatever process namespace it is."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @functools.cached_property
    def pid(self) -> int:
        """Its number in our own namespace; -1 once it is gone."""
        with open(f"/proc/self/fdinfo/{self._fd}") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("Pid:"))

    def kill(self) -> None:
        """Kill it, if it is still there."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._fd, signal.SIGKILL)

    def close(self) -> None:
        """Let go of it."""
        os.close(self._fd)


class KillPipe:
    """A process of our own namespace by a pipe to its zygote, which kills its child when the pipe is closed, or it ends."""

    def __init__(self, fd: int, pid: int) -> None:
        self._fd, self.pid = fd, pid

    def kill(self) -> None:
        """Have it killed; its parent alone knows whether the number is still its own."""
        self.close()

    def close(self) -> None:
        """Let go of it, which kills it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
