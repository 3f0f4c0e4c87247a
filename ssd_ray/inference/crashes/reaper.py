"""End the worker processes left running by an engine's owner, however the owner ends.

- An engine with several devices starts worker processes. They survive their parent.
- The owner leads a process group. The reaper is a process outside of it.
- The reaper waits for the end of the owner, or of its parent (on Ray, the raylet), and kills the
  group. SIGKILL to the owner does not prevent it.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys


def guard() -> None:
    """Lead a process group, and start a reaper to end it with this process or its parent."""
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)
    # A pidfd names one process, also after its number is used again.
    watched = [os.pidfd_open(pid) for pid in (os.getpid(), os.getppid())]
    subprocess.Popen(
        [sys.executable, "-P", "-S", "-E", __file__, str(os.getpid()), *map(str, watched)],
        pass_fds=watched,
        start_new_session=True,
        stdin=subprocess.DEVNULL,
    )
    for handle in watched:
        os.close(handle)


def main(group: int, *watched: int) -> None:
    """Wait until one of the watched processes has ended, then kill the process group."""
    select.select(watched, [], [])
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
