"""Count failures of a pool in a row; any finished answer of any job ends the row.

Accesses no files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from ssd_ray.inference.crashes.attribution import CrashHistory
from ssd_ray.inference.crashes.engine_status import EngineStatus, Suspect


class Streak:
    """Failures in a row, without any finished answer between them.

    - `crashes`: crashes of the engine with the most. A lost node crashes many engines once each.
      Crashes with groups of suspects are counted separately, those of faulty engines not at all.
    - `prompts`: quarantined prompts.
    """

    def __init__(self, history: CrashHistory) -> None:
        self._known = {status.engine for status in history.statuses if status.crashed}
        self._quarantined = history.quarantined()
        self._answers = sum(status.rows for status in history.statuses)
        self.prompts = 0
        self._crashes: Counter[tuple[str, bool]] = Counter()
        self.engines: set[str] = set()

    @property
    def crashes(self) -> int:
        """Crashes of the engine with the most."""
        return max(self._crashes.values(), default=0)

    def update(self, history: CrashHistory) -> frozenset[Suspect]:
        """Count new failures and return the newly quarantined prompts."""
        statuses, quarantined = history.statuses, history.quarantined()
        crashed = [
            status for status in statuses if status.crashed and status.engine not in self._known
        ]
        added = quarantined - self._quarantined
        # Any finished answer ends the streak: engines and prompts work in principle.
        answers = sum(status.rows for status in statuses)
        if answers > self._answers:
            self.prompts = 0
            self._crashes.clear()
            self.engines.clear()
        self.engines |= {status.engine for status in crashed}
        # A quarantined prompt explains the crashes before it.
        if added:
            self._crashes.clear()
        self._crashes.update(
            (status.actor, status.testing) for status in crashed if not status.alone
        )
        # A faulty engine must not stop the stage while others answer.
        for actor in history.faulty:
            self._crashes.pop((actor, False), None)
            self._crashes.pop((actor, True), None)
        self.prompts += len(added)
        self._known |= {status.engine for status in crashed}
        self._quarantined |= quarantined
        self._answers = answers
        return added


class Refusals:
    """Units of each job in a row without a single answer, although the engine is alive.

    Only an answer of the same job ends a row: another job has another decoding.
    """

    def __init__(self, statuses: Iterable[EngineStatus]) -> None:
        self._before = _by_job(statuses)
        self.in_a_row: Counter[str] = Counter()

    def update(self, statuses: Iterable[EngineStatus]) -> None:
        """Count new units without an answer."""
        now = _by_job(statuses)
        for job, (rows, refused) in now.items():
            rows_before, refused_before = self._before.get(job, (0, 0))
            if rows > rows_before:
                self.in_a_row[job] = 0
            else:
                self.in_a_row[job] += refused - refused_before
        self._before = now


def _by_job(statuses: Iterable[EngineStatus]) -> Mapping[str, tuple[int, int]]:
    """Return finished answers and refused units of each job."""
    rows: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    for status in statuses:
        for job, counts in status.jobs.items():
            rows[job] += counts.rows
            refused[job] += counts.refused
    return {job: (rows[job], refused[job]) for job in rows}
