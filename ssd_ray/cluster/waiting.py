"""A need that waits for nodes of Ray: a line a minute, and an end at a deadline.

- The caller knows if the need is met. This module counts the time until it is.
- Without a deadline the wait never ends, as Ray's own.

Reads the state of the cluster; writes nothing.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

from ssd_ray import roles
from ssd_ray.cluster import room
from ssd_ray.cluster.room import Need
from ssd_ray.errors import InfrastructureError

LINE_S = 60.0
"""Seconds between two lines, and before the first."""


class Waiting:
    """A need, the time since which it waits, and the time of the next line.

    `limit_s` is `cluster.nodes_timeout_s`.
    """

    def __init__(self, need: Need, say: Callable[[str], None], limit_s: float | None) -> None:
        self._need = need
        self._say = say
        self._limit_s = limit_s
        self._since = 0.0
        self._next_line = 0.0

    def look(self, *, is_met: bool) -> None:
        """Say a line if the need has not been met for another minute.

        Raises:
            InfrastructureError: it has not been met until the deadline.
        """
        now = time.time()
        if is_met:
            self._since = 0.0
            return
        if not self._since:
            self._since = now
            self._next_line = now + LINE_S
        if self._limit_s is not None and now - self._since >= self._limit_s:
            raise InfrastructureError(
                f"{self._missing(now)}, the deadline of cluster.nodes_timeout_s "
                f"{self._limit_s:g}: start nodes, or raise it"
            )
        if now >= self._next_line:
            self._next_line = now + LINE_S
            self._say(self._missing(now))

    def _missing(self, now: float) -> str:
        """Return a sentence about the missing workers."""
        need = self._need
        labels = roles.selector(need.role, need.roles)
        held = room.room_for(need.bundle, labels).now
        where = f"nodes of role {need.role}" if labels else "the nodes"
        together = ", all or none" if need.workers > 1 else ""
        begun = time.strftime("%H:%M", time.localtime(self._since))
        waited = f"since {begun} ({(now - self._since) / 60:.0f} min)"
        if held >= need.workers:
            return f"{need}{together}: {where} hold {held}, and are in use {waited}"
        lacking = need.workers - held
        verb = "is" if lacking == 1 else "are"
        return f"{need}{together}: {where} hold {held}, {lacking} {verb} missing {waited}"


def interrupt_main() -> None:
    """Raise KeyboardInterrupt in the main thread, as Ctrl-C does.

    Ray blocks SIGINT in the drivers of jobs, so SIGTERM is sent where it has a handler.
    """
    is_handled = callable(signal.getsignal(signal.SIGTERM))
    os.kill(os.getpid(), signal.SIGTERM if is_handled else signal.SIGINT)
