"""A process that outlives an engine's owner by a moment, to end whatever the owner leaves running.

An engine with several devices starts worker processes that survive their parent by themselves. The owner leads a process
group of its own; the guardian stands outside of it, waits for the end of the owner or of the owner's own parent (on Ray, the
raylet), and kills the group. Nothing that the owner could do, or that could be done to it, keeps it from that.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys


def guard() -> None:
    """Lead a process group, and have a guardian watch over it until this process or its parent ends."""
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)
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
    """Wait until any of the watched processes has ended, then kill the process group."""
    select.select(watched, [], [])
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
