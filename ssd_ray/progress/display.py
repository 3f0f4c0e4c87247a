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
    def figures(self) -> str:
        """Rate, time left and note; during a wait, its reason."""
        if self._reason:
            return self._reason
        return ", ".join(
            part
            for part in (self._rate(*self._throughput.rates), self._time_left(), self._note)
            if part
        )

    @property
    def line(self) -> str:
        """One line of a log; the time in it keeps two lines from being equal."""
        parts = (
            f"{self._stage}: {self._count} {self._unit}",
            clock(time.monotonic() - self._began),
            self.figures,
        )
        return ", ".join(part for part in parts if part)

    @property
    def summary(self) -> str:
        """Time of the task, the waits in it, and the mean rate over its working time."""
        self._end_wait()
        named = [
            f"{clock(seconds)} {reason}"
            for reason, seconds in self._waits.items()
            if seconds >= _NAMED_WAIT_S
        ]
        waits = f" ({', '.join(named)})" if named else ""
        working_s = self._throughput.working_s
        mean = ""
        if working_s > 0 and self.done > self._before:
            mean = self._rate((self.done - self._before) / working_s, self._tokens / working_s)
        return f"in {clock(time.monotonic() - self._began)}{waits}" + (
            f", mean {mean}" if mean else ""
        )

    @property
    def last_line(self) -> str:
        """Last line of a log."""
        return f"{self._stage}: done, {self._count} {self._unit} {self.summary}"

    @property
    def _count(self) -> str:
        return f"{self.done:,}/{self.total:,}" if self.total else f"{self.done:,}"

    def _rate(self, units_per_s: float, tokens_per_s: float) -> str:
        if tokens_per_s > 0:
            return f"{rate(tokens_per_s)} tok/s"
        return f"{rate(units_per_s)} {self._unit}/s" if units_per_s > 0 else ""

    def _time_left(self) -> str:
        units_per_s, tokens_per_s = self._throughput.rates
        units_left = self.total - self.done
        if units_left <= 0:
            return ""
        if self._remaining is not None and tokens_per_s > 0:
            seconds = self._remaining.tokens / tokens_per_s
            return f"{'at most ' if self._remaining.at_most else ''}{clock(seconds)} left"
        return f"{clock(units_left / units_per_s)} left" if units_per_s > 0 else ""
