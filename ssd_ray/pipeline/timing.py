"""Cost of an artifact, in its `timing.json`: attempts, times, tokens and versions.

- `wall_seconds` are from the start of a step to its end; `seconds` are its share of the run's time,
  so time of several steps counts once (`seconds.py`).
- Both add up over attempts. A killed attempt lacks at most its last ten seconds.
- `tokens` are those of the artifact, whichever attempts made them.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ssd_ray.artifacts import files, versions
from ssd_ray.artifacts.facts import Facts
from ssd_ray.errors import UserError
from ssd_ray.pipeline.context import RunContext
from ssd_ray.pipeline.seconds import Rank, Seconds, StepTime
from ssd_ray.pipeline.step import Step

_PERIOD_S = 10.0
"""Seconds between two writes of the times while a step is made."""


def timed(step: Step, out: Path, context: RunContext, seconds: Seconds, rank: Rank) -> Facts:
    """Make the step and add its cost to `timing.json`."""
    path = out / "timing.json"
    record = _begun(path)
    # Written before the work: a killed attempt counts, and leaves its versions.
    _write(path, record)
    # A failed attempt has no facts.
    facts = Facts()
    try:
        with seconds.of(rank) as spent, _regularly(lambda: _save(path, record, seconds, spent)):
            facts = step.make(out, context)
    finally:
        _write(path, _with_times(record, spent) | {"tokens": facts.gpu_tokens})
    return facts


def _begun(path: Path) -> dict[str, Any]:
    """Return the record of earlier attempts, and this attempt and its versions in it."""
    record: dict[str, Any] = {"seconds": 0.0, "wall_seconds": 0.0, "attempts": 0, "tokens": 0}
    if path.exists():
        record = files.read_json(path)
    earlier = record.get("versions", [])
    current = versions.installed()
    return {
        **record,
        "attempts": record["attempts"] + 1,
        "versions": earlier if current in earlier else [*earlier, current],
    }


def _with_times(record: dict[str, Any], spent: StepTime) -> dict[str, Any]:
    """Add the times of this attempt to those of earlier ones."""
    # An artifact begun by an earlier version has no wall time to add to.
    wall_before = record.get("wall_seconds")
    return {
        **record,
        "seconds": record["seconds"] + spent.seconds,
        "wall_seconds": None if wall_before is None else wall_before + spent.wall_seconds,
    }


def _save(path: Path, record: dict[str, Any], seconds: Seconds, spent: StepTime) -> None:
    seconds.update(spent)
    _write(path, _with_times(record, spent))


def _write(path: Path, record: dict[str, Any]) -> None:
    files.write_atomic(path, json.dumps(record))


@contextmanager
def _regularly(save: Callable[[], None]) -> Iterator[None]:
    """Call `save` every ten seconds while the block runs."""
    over = threading.Event()

    def repeat() -> None:
        while not over.wait(_PERIOD_S):
            # The write at the end of the attempt raises the same error.
            with suppress(UserError):
                save()

    thread = threading.Thread(target=repeat, name="timing", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
