"""The owner of a run directory: the process at work there, or the last one with its outcome.

- The lock decides who may work (`artifacts.directory_lock`). The record says who that is.
- The owner touches its record every `BEAT_S`. A reader compares these times with one another and
  never with its own clock.

Reads and writes the JSON file `owner.json` of the run directory.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime
from pathlib import Path

from ssd_ray.artifacts.files import Json, write_atomic
from ssd_ray.errors import InfrastructureError, UserError, one_line

FILE = "owner.json"
BEAT_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Work:
    """Work of a command in a run directory."""

    command: str
    """For people: the verb and the recipe."""
    choices: Json
    """Commands with equal choices may attach to one another."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """End of a command."""

    status: int
    """Exit status: 0, 1, 2 or 130."""
    sentence: str = ""

    @classmethod
    def of(cls, error: BaseException | None) -> Outcome:
        """Return the outcome of a block of code, by the exception that ended it."""
        if error is None:
            return cls(status=0)
        if isinstance(error, UserError):
            return cls(status=2, sentence=str(error))
        if isinstance(error, KeyboardInterrupt):
            return cls(status=130)
        sentence = str(error) if isinstance(error, InfrastructureError) else one_line(error)
        return cls(status=1, sentence=sentence)

    def raise_again(self) -> None:
        """Raise the kind of exception that ends a command with this status, if it is not 0."""
        if self.status == 2:
            raise UserError(self.sentence)
        if self.status == 130:
            raise KeyboardInterrupt
        if self.status:
            raise InfrastructureError(self.sentence)


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")


@dataclass(frozen=True, kw_only=True)
class Owner:
    """A process at work in a run directory; with an outcome, one that has ended."""

    work: Work
    log_start: int
    """Size of the log of progress when the process began."""
    attempt: str = field(default_factory=lambda: uuid.uuid4().hex)
    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)
    began_at: str = field(default_factory=_now)
    outcome: Outcome | None = None

    def __str__(self) -> str:
        """Name the process, as in a sentence."""
        at = datetime.fromisoformat(self.began_at).strftime("%Y-%m-%d %H:%M:%S")
        return f"process {self.pid} on {self.host} ({self.work.command}, begun {at})"


def write(out: Path, owner: Owner) -> None:
    """Write the record of a directory's owner.

    Raises:
        UserError: the directory cannot be written.
    """
    write_atomic(out / FILE, json.dumps(asdict(owner), indent=1))


def read(out: Path) -> tuple[Owner | None, int]:
    """Return the owner on record and the time of its last beat in ns; None without a record."""
    try:
        # Network storage compares an open file with the server, a mere stat may be minutes old.
        with (out / FILE).open() as handle:
            beat = os.fstat(handle.fileno()).st_mtime_ns
            document = json.load(handle)
        known = {each.name for each in fields(Owner)}
        document = {name: value for name, value in document.items() if name in known}
        work = Work(**document.pop("work"))
        outcome = document.pop("outcome")
        return Owner(work=work, outcome=Outcome(**outcome) if outcome else None, **document), beat
    except (OSError, ValueError, KeyError, TypeError):
        # No record, or one of another version: the lock alone counts then.
        return None, 0


@contextmanager
def recorded(out: Path, owner: Owner) -> Iterator[None]:
    """Keep the record of an owner for the length of a block, and its outcome afterwards.

    Raises:
        UserError: the directory cannot be written.
    """
    write(out, owner)
    ended = threading.Event()
    beats = threading.Thread(target=_beat, args=(out, ended), name="owner", daemon=True)
    beats.start()
    error: BaseException | None = None
    try:
        yield
    # Every end is recorded, a bug and Ctrl-C too; attached commands end in the same way.
    except BaseException as raised:
        error = raised
        raise
    finally:
        ended.set()
        beats.join()
        # On a full disk the record stays without an outcome, as after a kill.
        with suppress(UserError):
            write(out, replace(owner, outcome=Outcome.of(error)))


def _beat(out: Path, ended: threading.Event) -> None:
    while not ended.wait(BEAT_S):
        with suppress(OSError):
            os.utime(out / FILE)
