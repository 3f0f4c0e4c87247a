"""Hand out work units while their prompts are still being rendered.

- Runs in a Ray task next to the driver. The driver sees neither rows nor keys.
- At most `window` units are in flight. This bounds memory, whatever the number of prompts.

Reads Parquet footers and the ledger.
"""

from __future__ import annotations

import json
import pickle
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssd_ray.artifacts import ledger, shards
from ssd_ray.artifacts.ledger import Span
from ssd_ray.artifacts.shards import row_groups

if TYPE_CHECKING:
    import pyarrow as pa

_RETURNED = ".returned"
_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 0.02, 0.5


@dataclass(frozen=True, kw_only=True)
class SamplingPlan:
    """Answers to draw to every prompt of a directory, and how they are cut into units."""

    prompts: Path
    out: Path
    samples: int
    shard_rows: int
    window: int


def prompt_rows(path: Path) -> int:
    """Return the number of rows of a prompt shard, from its footer."""
    return sum(row_groups(path))


def growing(prompts: Path) -> Iterator[Path | None]:
    """Yield the shards of a growing directory in order, until its manifest exists.

    Yields None while there is no new shard.
    """
    seen: set[Path] = set()
    while True:
        # Checked before the shards are listed, since the manifest is written after them.
        complete = (prompts / "manifest.json").exists()
        fresh = [path for path in shards.shard_paths(prompts) if path not in seen]
        seen.update(fresh)
        yield from fresh
        if complete:
            return
        yield None


def units(
    plan: SamplingPlan, covered: Mapping[str, list[tuple[int, int]]]
) -> Iterator[Span | None]:
    """Yield every uncovered span, at most `plan.shard_rows` long; None while there is none."""
    for path in growing(plan.prompts):
        if path is None:
            yield None
            continue
        shard = Span(path.stem, 0, prompt_rows(path) * plan.samples)
        yield from ledger.uncovered(shard, covered.get(path.stem, ()), plan.shard_rows)


class _InFlight:
    """Units handed out and not on record yet, and units given back by engines."""

    def __init__(self, plan: SamplingPlan) -> None:
        self._recorded = ledger.tail(plan.out)
        self._handed_back = ledger.Tail(_returned(plan.out), _parse)
        self._units: set[Span] = set()
        self._window = plan.window
        self.again: deque[Span] = deque()
        # Earlier lines belong to earlier attempts.
        for _ in (*self._recorded.new(), *self._handed_back.new()):
            pass

    def look(self) -> None:
        """Read new records and units given back."""
        self._units.difference_update(record.span for record in self._recorded.new())
        for span in self._handed_back.new():
            if span in self._units:
                self._units.discard(span)
                self.again.append(span)

    @property
    def is_full(self) -> bool:
        """True if no unit may be handed out."""
        return len(self._units) >= self._window

    def handed(self, unit: Span) -> Span:
        """Count a unit as in flight and return it."""
        self._units.add(unit)
        return unit

    def rest(self) -> Iterator[None]:
        """Yield None until every unit is on record."""
        while self._units or self.again:
            yield None
            self.look()


def paced(plan: SamplingPlan, covered: Mapping[str, list[tuple[int, int]]]) -> Iterator[Span]:
    """Yield units as fast as they are drawn, and those given back, until all are on record."""
    in_flight = _InFlight(plan)
    pause = _SHORTEST_PAUSE_S
    for span in chain(units(plan, covered), _end(plan.out), in_flight.rest()):
        in_flight.look()
        # Units given back go first, and none goes out while the window is full.
        while in_flight.again or (span is not None and in_flight.is_full):
            if in_flight.again and not in_flight.is_full:
                pause = _SHORTEST_PAUSE_S
                yield in_flight.handed(in_flight.again.popleft())
            else:
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_S)
            in_flight.look()
        if span is None:
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)
        else:
            pause = _SHORTEST_PAUSE_S
            yield in_flight.handed(span)


def _end(out: Path) -> Iterator[None]:
    """Yield nothing, and mark all units as handed out."""
    (_returned(out) / all_out(out).name).touch()
    yield from ()


def give_back(out: Path, engine: str, span: Span) -> None:
    """Give a unit back, for another engine to draw."""
    ledger.append_line(
        _returned(out) / f"{engine}.jsonl", json.dumps(asdict(span)).encode(), durable=False
    )


def all_out(out: Path) -> Path:
    """Return the file marking all units as handed out.

    Once it exists, only units given back by engines are handed out.
    """
    return out / _RETURNED / "all-out"


def _returned(out: Path) -> Path:
    directory = out / _RETURNED
    directory.mkdir(exist_ok=True)
    return directory


def _parse(line: bytes) -> Span | None:
    return Span(**json.loads(line))


def emit(batch: pa.Table) -> Iterator[pa.Table]:
    """Run as a task of Ray Data: pickled plan and coverage in, one table row for each unit out."""
    import pyarrow as pa

    plan, covered = pickle.loads(batch.column("plan")[0].as_py())
    for span in paced(plan, covered):
        yield pa.table({"source": [span.source], "start": [span.start], "stop": [span.stop]})


def span_of(batch: pa.Table) -> Span:
    """Return the unit in a batch."""
    row: dict[str, Any] = batch.to_pylist()[0]
    return Span(row["source"], row["start"], row["stop"])
