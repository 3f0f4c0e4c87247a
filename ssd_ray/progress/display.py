"""State of one task, and its text: count, rate, time left, waits."""

from __future__ import annotations

import time

from ssd_ray.quantities import clock, rate
from ssd_ray.throughput import Remaining, Throughput

_NAMED_WAIT_S = 1.0
"""Shorter waits are not named in the last line."""


class Display:
    """State of one task, and its text for a screen."""

    def __init__(self, stage: str, total: int, unit: str, done: int) -> None:
        self.total = total
        self.done = done
        self._stage = stage
        self._unit = unit
        self._before = done
        self._tokens = 0
        self._note = ""
        self._remaining: Remaining | None = None
        self._throughput = Throughput(done)
        self._began = time.monotonic()
        self._waits: dict[str, float] = {}
        self._reason = ""
        self._waiting_since = self._began

    def update(
        self,
        done: int,
        tokens: int = 0,
        note: str = "",
        total: int | None = None,
        remaining: Remaining | None = None,
    ) -> None:
        """Record the state of the work; see `Task.update`."""
        self._end_wait()
        self.done = done
        self.total = self.total if total is None else total
        self._tokens = tokens
        self._note = note
        self._remaining = remaining
        self._throughput.mark(done, tokens)

    def wait(self, reason: str) -> None:
        """Begin or continue to wait for something."""
        if reason != self._reason:
            self._end_wait()
            self._reason = reason
            self._waiting_since = time.monotonic()
            self._throughput.pause()

    def _end_wait(self) -> None:
        if self._reason:
            waited_s = time.monotonic() - self._waiting_since
            self._waits[self._reason] = self._waits.get(self._reason, 0.0) + waited_s
            self._reason = ""

    @property
    def figures(self) -> tuple[str, ...]:
        """Rate, time left and note, or the reason of a wait; shorter forms follow."""
        if self._reason:
            return (self._reason,)
        rate = self._rate(*self._throughput.rates)
        left, then = self._time_left()
        forms = ((rate, left, then, self._note), (rate, left, self._note), (rate, left), (left,))
        return tuple(", ".join(filter(None, form)) for form in forms)

    @property
    def line(self) -> str:
        """One line of a log; the time in it keeps two lines from being equal."""
        parts = (
            f"{self._stage}: {self._count} {self._unit}",
            clock(time.monotonic() - self._began),
            self.figures[0],
        )
        return ", ".join(part for part in parts if part)

    @property
    def summary(self) -> tuple[str, ...]:
        """Time, waits in it, and mean rate over the working time; shorter forms follow."""
        self._end_wait()
        waits = {name: seconds for name, seconds in self._waits.items() if seconds >= _NAMED_WAIT_S}
        named = ", ".join(f"{clock(seconds)} {reason}" for reason, seconds in waits.items())
        working_s = self._throughput.working_s
        mean = ""
        if working_s > 0 and self.done > self._before:
            rate = self._rate((self.done - self._before) / working_s, self._tokens / working_s)
            mean = f"mean {rate}" if rate else ""
        spent = f"in {clock(time.monotonic() - self._began)}"
        forms = [(spent, mean), (mean or spent,)]
        if named:
            total = clock(sum(waits.values()))
            forms = [(f"{spent} ({named})", mean), (f"{spent} ({total} waiting)", mean), *forms]
        return tuple(", ".join(filter(None, form)) for form in forms)

    @property
    def last_line(self) -> str:
        """Last line of a log."""
        return f"{self._stage}: done, {self._count} {self._unit} {self.summary[0]}"

    @property
    def _count(self) -> str:
        return f"{self.done:,}/{self.total:,}" if self.total else f"{self.done:,}"

    def _rate(self, units_per_s: float, tokens_per_s: float) -> str:
        if tokens_per_s > 0:
            return f"{rate(tokens_per_s)} tok/s"
        return f"{rate(units_per_s)} {self._unit}/s" if units_per_s > 0 else ""

    def _time_left(self) -> tuple[str, str]:
        """Return the time left, and the work after it."""
        units_per_s, tokens_per_s = self._throughput.rates
        units_left = self.total - self.done
        remaining = self._remaining
        if units_left <= 0:
            return "", ""
        # Speed changes, most of all while the last units end, so no time is exact or a bound.
        if remaining is not None and tokens_per_s > 0:
            most = "up to " if remaining.at_most else ""
            then = f"then {remaining.then}" if remaining.then else ""
            return f"{most}about {clock(remaining.tokens / tokens_per_s)} left", then
        return f"about {clock(units_left / units_per_s)} left" if units_per_s > 0 else "", ""
