"""What a program may leave behind: processes, where no process namespace ends them, and files; both are done away with."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path


def kill_survivors(token: str) -> None:
    """Kill every process that was started with `token` in its environment: the fall-back without process namespaces.

    Daemons keep the environment they were born with unless they overwrite it in memory; one that does survives this.
    """
    for _ in range(100):
        alive = False
        for name in os.listdir("/proc"):
            if name.isdecimal():
                with contextlib.suppress(OSError):
                    alive |= _kill_if_marked(int(name), token.encode())
        if not alive:
            return
        time.sleep(0.001)


def _kill_if_marked(pid: int, token: bytes) -> bool:
    pidfd = os.pidfd_open(pid)
    try:
        if token not in Path(f"/proc/{pid}/environ").read_bytes():
            return False
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        return True
    finally:
        os.close(pidfd)


def remove_directory(directory: str) -> None:
    """Delete a directory that a program may have filled with whatever it likes, however deep or locked."""
    try:
        os.rmdir(directory)
    except OSError:
        for command in (["chmod", "-R", "u+rwx", directory], ["rm", "-rf", directory]):
            subprocess.run(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
