"""Bars and logs of a run, from files that it writes anyway.

Reads logs/progress.log, the ends of other logs and the last line of loss.jsonl. A page in a
browser asks once a second while it is open; without one, nothing is read.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from pathlib import Path

from ssd_ray.artifacts.files import names
from ssd_ray.view.rendering import printable
from ssd_ray.view.runs import Run

_PERIOD_S = 1.0
_TAIL_BYTES = 16 << 10
_LOG_LINES = 40
_LINE = re.compile(
    r"(?P<stage>[^:\n]{1,80}): (?P<ended>done, )?"
    r"(?P<done>[\d,]+)(?:/(?P<total>[\d,]+))? .+"
)


@dataclass(frozen=True, kw_only=True)
class Bar:
    """The latest state of a stage."""

    stage: str
    done: int
    total: int
    """0 where it is not known."""
    text: str


@dataclass(frozen=True, kw_only=True)
class Log:
    """The end of a log."""

    name: str
    text: str


def bars(run: Run) -> list[Bar]:
    """Return the latest line of each stage in the order of its first line."""
    latest: dict[str, Bar] = {}
    for line in _tail(run, Path("logs/progress.log")).splitlines():
        match = _LINE.fullmatch(line)
        if match is None:
            continue
        done = int(match["done"].replace(",", ""))
        total = int((match["total"] or "0").replace(",", ""))
        latest[match["stage"]] = Bar(
            stage=match["stage"],
            done=total if match["ended"] else done,
            total=total,
            text=line.partition(": ")[2],
        )
    return list(latest.values())


def logs(run: Run) -> list[Log]:
    """Return the ends of the logs of a run."""
    shown = []
    for name in sorted(names(run.path / "logs")):
        if name.endswith(".log"):
            lines = _tail(run, Path("logs") / name).splitlines()[-_LOG_LINES:]
            shown.append(Log(name=name, text="\n".join(lines)))
    return shown


def _tail(run: Run, place: Path) -> str:
    path = run.inside(*place.parts)
    if path is None:
        return ""
    try:
        with path.open("rb") as handle:
            # Logs of engines may be gigabytes.
            handle.seek(0, 2)
            handle.seek(max(0, handle.tell() - _TAIL_BYTES))
            return handle.read().decode("utf-8", "replace")
    except OSError:
        return ""


def loss(run: Run) -> str:
    """Return the last recorded step of a training as a line, "" without one."""
    line = _tail(run, Path("checkpoint/loss.jsonl")).rstrip("\n").rpartition("\n")[2]
    try:
        step = json.loads(line)
        return f"step {step['step']}: loss {step['loss']:.4g}"
    except (ValueError, KeyError, TypeError):
        return ""


def _stamp(run: Run) -> list[tuple[str, int, int]]:
    """Return name, time and size of each file that the page shows."""
    folder = run.path / "logs"
    stamp = []
    for path in (*(folder / name for name in names(folder)), run.path / "checkpoint/loss.jsonl"):
        try:
            state = path.stat()
        except OSError:
            continue
        stamp.append((path.name, state.st_mtime_ns, state.st_size))
    return sorted(stamp)


def _state(run: Run, with_logs: bool) -> str:
    tails = logs(run) if with_logs else []
    return json.dumps(
        {
            "bars": [asdict(bar) for bar in bars(run)],
            "loss": loss(run),
            "logs": {log.name: printable(log.text) for log in tails},
        }
    )


async def events(run: Run, *, with_logs: bool = False) -> AsyncIterator[str]:
    """Yield server-sent events: `state` where something changed, `end` once the run stopped."""
    last = ""
    read_at: list[tuple[str, int, int]] | None = None
    while True:
        # Files are read only after a change: a watched run keeps its processor.
        stamp = _stamp(run)
        if stamp != read_at:
            read_at = stamp
            text = _state(run, with_logs)
            if text != last:
                last = text
                yield f"event: state\ndata: {text}\n\n"
        if not run.exists or run.state() != "running":
            yield "event: end\ndata: {}\n\n"
            return
        await asyncio.sleep(_PERIOD_S)
