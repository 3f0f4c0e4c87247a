"""Units of work from shards of prompts, handed on while the prompts are still being written.

Runs in a Ray task beside the driver, which sees neither rows nor keys. Never more than `window` units are handed out and not
yet on record, which bounds rows and bytes in flight whatever the number of prompts. Reads Parquet footers and the ledger.
"""

from __future__ import annotations

import json
import pickle
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssd_ray import artifacts, ledger
from ssd_ray.ledger import Span

if TYPE_CHECKING:
    import pyarrow as pa

_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 0.02, 0.5


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be drawn: `samples` answers to every prompt in a directory, and how that is cut up."""

    prompts: Path
    out: Path
    samples: int
    shard_rows: int
    window: int


def prompt_rows(path: Path) -> int:
    """Rows of a prompt shard, from its footer."""
    import pyarrow.parquet as pq

    rows: int = pq.read_metadata(path).num_rows
    return rows


def growing(prompts: Path) -> Iterator[Path | None]:
    """The shards of a directory in order, as they appear, until its manifest stands; None while there is none to give."""
    seen: set[Path] = set()
    while True:
        whole = (prompts / "manifest.json").exists()  # looked for first: shards come before it
        fresh = [path for path in artifacts.shard_paths(prompts) if path not in seen]
        seen.update(fresh)
        yield from fresh
        if whole:
            return
        yield None


def units(plan: Plan, covered: Mapping[str, list[tuple[int, int]]]) -> Iterator[Span | None]:
    """Every span that is not covered, at most `plan.shard_rows` long; None while there is none to give."""
    for path in growing(plan.prompts):
        if path is None:
            yield None
            continue
        whole = Span(path.stem, 0, prompt_rows(path) * plan.samples)
        yield from ledger.left(whole, covered.get(path.stem, ()), plan.shard_rows)


def paced(plan: Plan, covered: Mapping[str, list[tuple[int, int]]]) -> Iterator[Span]:
    """Units as fast as they are drawn; one that a draining engine gives back comes again."""
    recorded, handed_back = ledger.tail(plan.out), ledger.Tail(plan.out / ".returned", _parse)
    out: set[Span] = set()
    again: deque[Span] = deque()
    pause = _SHORTEST_PAUSE_S
    for _ in (*recorded.new(), *handed_back.new()):
        pass  # what stood there before belongs to earlier attempts

    def look() -> None:
        out.difference_update(record.span for record in recorded.new())
        for span in handed_back.new():
            if span in out:
                out.discard(span)
                again.append(span)

    for span in units(plan, covered):
        look()
        while again or (span is not None and len(out) >= plan.window):
            if again and len(out) < plan.window:
                unit = again.popleft()
                out.add(unit)
                pause = _SHORTEST_PAUSE_S
                yield unit
            else:
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_S)
            look()
        if span is None:
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)
        else:
            out.add(span)
            pause = _SHORTEST_PAUSE_S
            yield span


def give_back(out: Path, engine: str, span: Span) -> None:
    """An engine that takes nothing in any more says that a unit is not begun."""
    (out / ".returned").mkdir(exist_ok=True)
    ledger.append_line(out / ".returned" / f"{engine}.jsonl", json.dumps(asdict(span)).encode(), durable=False)


def _parse(line: bytes) -> Span | None:
    return Span(**json.loads(line))


def emit(batch: pa.Table) -> Iterator[pa.Table]:
    """The task that Ray Data runs: a pickled plan and coverage in, one table of one row a unit out."""
    import pyarrow as pa

    plan, covered = pickle.loads(batch.column("plan")[0].as_py())
    for span in paced(plan, covered):
        yield pa.table({"source": [span.source], "start": [span.start], "stop": [span.stop]})


def span_of(batch: pa.Table) -> Span:
    """The unit that a worker was handed."""
    row: dict[str, Any] = batch.to_pylist()[0]
    return Span(row["source"], row["start"], row["stop"])
