"""Take the lock of a run directory, or attach to the command at work there until it ends.

- A command with other choices is refused at once.
- An attached command prints the owner's lines of progress. It ends with the owner's status, unless
  that is 0: then it goes on with its own verb, which finds complete artifacts.
- An owner without an outcome was killed, or its node is gone. Its lock is waited for, as long as
  network storage may keep it, and its work is taken over.

Reads and writes `.lock`, `owner.json` and `logs/progress.log` of the run directory.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from ssd_ray.artifacts import directory_lock, files
from ssd_ray.artifacts.identity import differences
from ssd_ray.errors import InfrastructureError, UserError
from ssd_ray.progress import RecordedProgress
from ssd_ray.submissions import owner as owners
from ssd_ray.submissions.owner import Owner, Work
from ssd_ray.submissions.traces import Traces

LOG = Path("logs/progress.log")
UNKNOWN_S = 10.0
"""Longest wait for a record of the owner: versions before 0.1.0 write none."""
SILENT_S = 30.0
"""Time without a beat after which an owner is reported as silent."""
LEASE_S = 300.0
"""Longest wait for the lock of a silent owner. Leases of NFS servers take 90 to 180 s."""
_FIRST_POLL_S = 0.1
_LAST_POLL_S = 2.0


@contextmanager
def turn(out: Path, work: Work, progress: RecordedProgress) -> Iterator[None]:
    """Hold a run directory for the length of a block, and record progress and outcome there.

    A block that is refused before it makes anything leaves the directory as it was.

    Raises:
        UserError: the owner works with other choices, or ended with a mistake; or the storage has
            no locks.
        InfrastructureError: the owner failed, or is silent and keeps its lock.
        KeyboardInterrupt: the owner was interrupted.
    """
    lock, traces = _lock(out, work, progress.say)
    with lock:
        try:
            with progress.kept_in(out / LOG) as start:
                owner = Owner(work=work, log_start=start)
                with owners.recorded(out, owner):
                    yield
        except UserError:
            traces.remove()
            raise


def _lock(out: Path, work: Work, say: Callable[[str], None]) -> tuple[TextIO, Traces]:
    """Return the open file that holds the lock, once the owner of the directory has ended.

    Return the traces that this command leaves from here on, too.
    """
    attached = _Attached(out, work, say)
    pause_s = _FIRST_POLL_S
    try:
        while True:
            traces = Traces(out)
            if (lock := directory_lock.try_lock(out)) is not None:
                break
            attached.follow()
            time.sleep(pause_s)
            pause_s = min(1.2 * pause_s, _LAST_POLL_S)
    except KeyboardInterrupt:
        attached.leave()
        raise
    try:
        attached.end()
    except BaseException:
        # The next command may have the lock, however this one ends.
        lock.close()
        raise
    return lock, traces


class _Attached:
    """A command that waits for the owner of a directory, and shows its progress."""

    def __init__(self, out: Path, work: Work, say: Callable[[str], None]) -> None:
        self._out = out
        self._work = work
        self._say = say
        self._owner: Owner | None = None
        self._position = 0
        self._beat = 0
        self._changed_at = time.monotonic()
        self._is_silent = False

    def follow(self) -> None:
        """Show the news of the owner.

        Raises:
            UserError: it works with other choices, or has no record.
            InfrastructureError: it has been silent for longer than storage keeps a lock.
        """
        owner, beat = owners.read(self._out)
        if beat != self._beat:
            self._beat = beat
            self._changed_at = time.monotonic()
            self._is_silent = False
        silent_s = time.monotonic() - self._changed_at
        if owner is None or owner.outcome is not None:
            # Just beginning, just ended, or of a version without records.
            if silent_s > UNKNOWN_S:
                raise UserError(directory_lock.in_use(self._out))
            return
        if self._owner is None or self._owner.attempt != owner.attempt:
            self._attach(owner)
        self._show_lines()
        if silent_s > LEASE_S:
            raise InfrastructureError(
                f"{owner} has been silent for {LEASE_S:g} s and still holds the lock of "
                f"{self._out}: end that process, or delete {self._out / '.lock'} if its machine "
                "is gone"
            )
        if silent_s > SILENT_S and not self._is_silent:
            self._is_silent = True
            self._say(
                f"{owner} has been silent for {SILENT_S:g} s: waiting up to {LEASE_S:g} s for the "
                "storage to drop its lock"
            )

    def leave(self) -> None:
        """Report that the owner goes on without this command."""
        if self._owner is not None:
            self._say(f"detached: {self._owner} goes on")

    def end(self) -> None:
        """Show the last lines of the owner, and end as it did; report one that was killed.

        Raises:
            UserError: it ended with a mistake, or is at work without a common lock.
            InfrastructureError: it failed.
            KeyboardInterrupt: it was interrupted.
        """
        owner, _ = owners.read(self._out)
        if owner is None:
            return
        if owner.outcome is None:
            if owner.host != socket.gethostname():
                self._require_silence(owner)
            self._show_lines()
            self._say(f"taking over from {owner}, which ended without a result")
            return
        # A command that never waited begins as usual, however the last one ended.
        if self._owner is None:
            return
        self._show_lines()
        owner.outcome.raise_again()

    def _attach(self, owner: Owner) -> None:
        changes = list(differences(owner.work.choices, self._work.choices))
        if changes:
            raise UserError(
                f"{self._out} is in use by {owner} with other choices "
                f"({'; '.join(changes[:3])}): wait for it, or choose another --out"
            )
        if self._owner is None:
            self._position = owner.log_start
        self._owner = owner
        self._say(f"attached to {owner}; its progress follows")

    def _show_lines(self) -> None:
        path = self._out / LOG
        if self._owner is None or not path.exists():
            return
        with path.open("rb") as handle:
            handle.seek(self._position)
            lines = files.read_complete_lines(handle)
            self._position = handle.tell()
        for line in lines:
            self._say(line.decode(errors="replace"))

    def _require_silence(self, owner: Owner) -> None:
        """Refuse storage that grants the lock of a process at work on another machine.

        Raises:
            UserError: the owner still beats.
        """
        _, before = owners.read(self._out)
        until = time.monotonic() + 2.5 * owners.BEAT_S
        while time.monotonic() < until:
            time.sleep(owners.BEAT_S / 10)
            present, beat = owners.read(self._out)
            if beat != before and present is not None and present.outcome is None:
                raise UserError(
                    f"{self._out} is in use by {owner}, and its storage grants the lock to this "
                    "machine too: mount it with locks shared by all nodes (NFS without nolock and "
                    "local_lock), or choose another --out"
                )
