"""A user's mistake on record: the next attempt finds it unchanged before it asks for a node.

Schedulers retry a failed job whatever its exit status. Each retry starts a cluster, waits for its
GPUs, and finds the same mistake. So a mistake that showed while nodes were at work is recorded,
with a digest of its circumstances.

- Cheap checks come first, so a mistake that they find is examined again each time.
- An `OutsideError` is never recorded: storage, network or a machine may have been repaired.

Reads and writes the JSON file `mistake.json` of the run directory.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from ssd_ray.artifacts import versions
from ssd_ray.artifacts.files import Json, write_atomic
from ssd_ray.errors import OutsideError, UserError
from ssd_ray.submissions.owner import Work

FILE = "mistake.json"
_ENVIRONMENT = ("HF_HOME", "HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_TOKEN", "SSD_RAY_CACHE")


def circumstances(work: Work, states: Mapping[str, str]) -> str:
    """Return a digest of everything that can correct a mistake.

    It covers the command, the recipe, contents and states of artifacts (`states`), the package and
    its libraries, and the variables of the environment that a run reads.
    """
    # Sixteen digits of a digest tell a changed secret from an old one, and do not reveal it.
    environment = {name: _digest(os.environ[name]) for name in _ENVIRONMENT if name in os.environ}
    parts = [
        work.command,
        work.choices,
        dict(states),
        versions.installed(),
        versions.package_digest(),
        environment,
    ]
    return _digest(json.dumps(parts, sort_keys=True))


@contextmanager
def remembered(out: Path, digest: Callable[[], str], say: Callable[[str], None]) -> Iterator[None]:
    """Refuse to repeat the mistake on record, else record one that ends the block.

    Raises:
        UserError: the last attempt ended with this mistake, in the same circumstances.
    """
    path = out / FILE
    if path.exists():
        before = _read(path)
        if before.get("circumstances") == digest():
            say(
                f"the attempt of {before.get('at')} on {before.get('host')} ended with this "
                "mistake, and recipe, inputs and package are the same; to try all the same, "
                f"delete {path}"
            )
            raise UserError(str(before.get("sentence")))
        path.unlink(missing_ok=True)
    try:
        yield
    except OutsideError:
        raise
    except UserError as error:
        record = {
            "sentence": str(error),
            "circumstances": digest(),
            "at": datetime.now().astimezone().isoformat(timespec="seconds"),
            "host": socket.gethostname(),
        }
        # Without room for the record, the next attempt finds the mistake again by itself.
        with suppress(UserError):
            write_atomic(path, json.dumps(record, indent=1))
        raise


def _read(path: Path) -> Json:
    """Return the record, empty if it is torn: then the mistake is found again."""
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
