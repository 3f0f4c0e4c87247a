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
    """What is to be drawn: `samples` answers to every prompt in a directory, and how that is cut up."""

    prompts: Path
    out: Path
    samples: int
    shard_rows: int
    window: int


def prompt_rows(path: Path) -> int:
    """Rows of a prompt shard, from its footer."""
    return sum(row_groups(path))


def growing(prompts: Path) -> Iterator[Path | None]:
    """The shards of a directory in order, as they appear, until its manifest stands; None while there is none to give."""
    seen: set[Path] = set()
    while True:
        whole = (prompts / "manifest.json").exists()  # looked for first: shards come before it
        fresh = [path for path in shards.shard_paths(prompts) if path not in seen]
        seen.update(fresh)
        yield from fresh
        if whole:
            return
        yield None


def units(
    plan: SamplingPlan, covered: Mapping[str, list[tuple[int, int]]]
) -> Iterator[Span | None]:
    """Every span that is not covered, at most `plan.shard_rows` long; None while there is none to give."""
    for path in growing(plan.prompts):
        if path is None:
            yield None
            continue
        whole = Span(path.stem, 0, prompt_rows(path) * plan.samples)
        yield from ledger.uncovered(whole, covered.get(path.stem, ()), plan.shard_rows)


class _Out:
    """Units that are handed out and not on record, at most as many as the window, and those that engines gave back."""

    def __init__(self, plan: SamplingPlan) -> None:
        self._recorded, self._handed_back = (
            ledger.tail(plan.out),
            ledger.Tail(_returned(plan.out), _parse),
        )
        self._units, self._window = set[Span](), plan.window
        self.again: deque[Span] = deque()
        for _ in (*self._recorded.new(), *self._handed_back.new()):
            pass  # what stood there before belongs to earlier attempts

    def look(self) -> None:
        """Take in what came on record and what was given back."""
        self._units.difference_update(record.span for record in self._recorded.new())
        for span in self._handed_back.new():
            if span in self._units:
                self._units.discard(span)
                self.again.append(span)

    @property
    def is_full(self) -> bool:
        """Whether no unit may be handed out."""
        return len(self._units) >= self._window

    def handed(self, unit: Span) -> Span:
        """The unit, which is out from now on."""
        self._units.add(unit)
        return unit

    def rest(self) -> Iterator[None]:
        """None until every unit is on record."""
        while self._units or self.again:
            yield None
            self.look()


def paced(plan: SamplingPlan, covered: Mapping[str, list[tuple[int, int]]]) -> Iterator[Span]:
    """Units as fast as they are drawn, and again those that engines give back, until all are on record."""
    out, pause = _Out(plan), _SHORTEST_PAUSE_S
    for span in chain(units(plan, covered), _end(plan.out), out.rest()):
        out.look()
        while out.again or (span is not None and out.is_full):
            if out.again and not out.is_full:
                pause = _SHORTEST_PAUSE_S
                yield out.handed(out.again.popleft())
            else:
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_S)
            out.look()
        if span is None:
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)
        else:
            pause = _SHORTEST_PAUSE_S
            yield out.handed(span)


def _end(out: Path) -> Iterator[None]:
    """Nothing, and the word that this was all."""
    (_returned(out) / all_out(out).name).touch()
    yield from ()


def give_back(out: Path, engine: str, span: Span) -> None:
    """An engine says that it does not draw a unit, so that another one may."""
    ledger.append_line(
        _returned(out) / f"{engine}.jsonl", json.dumps(asdict(span)).encode(), durable=False
    )


def all_out(out: Path) -> Path:
    """The file that is there once every unit was handed out: what comes after is only what engines give back."""
    return out / _RETURNED / "all-out"


def _returned(out: Path) -> Path:
    directory = out / _RETURNED
    directory.mkdir(exist_ok=True)
    return directory


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
