"""Report a gang of training workers that waits for nodes, once a minute.

- Ray Train reserves all workers in one placement group: all start, or none.
- Each line names the missing workers, and the time since which they are.
- A gang may also wait in the middle of a training, after the loss of a node.

Reads the state of the cluster; writes nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from ray.exceptions import RayError
from ray.util import placement_group_table

from ssd_ray import roles
from ssd_ray.cluster import room
from ssd_ray.cluster.room import Need

LINE_S = 60.0
"""Seconds between two lines, and before the first."""
_POLL_S = 10.0
_END_TIMEOUT_S = 5.0


@contextmanager
def reported(need: Need, say: Callable[[str], None]) -> Iterator[None]:
    """Report the missing workers of a gang while the block runs."""
    over = threading.Event()

    def follow() -> None:
        watch = GangWatch(need, say)
        while not over.wait(_POLL_S):
            try:
                watch.look()
            except (RayError, RuntimeError):
                # The head is away. The training itself ends or waits, and says so.
                continue

    thread = threading.Thread(target=follow, name="gang", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        # A call to a lost head may take a minute.
        thread.join(_END_TIMEOUT_S)


class GangWatch:
    """A gang, the time since which it waits, and the time of the next line."""

    def __init__(self, need: Need, say: Callable[[str], None]) -> None:
        self._need = need
        self._say = say
        self._since = 0.0
        self._next_line = 0.0

    def look(self) -> None:
        """Say a line if the gang has had no placement for another minute."""
        now = time.time()
        if self._is_placed():
            self._since = 0.0
            return
        if not self._since:
            self._since = now
            self._next_line = now + LINE_S
        if now >= self._next_line:
            self._next_line = now + LINE_S
            self._say(self._missing(now))

    def _is_placed(self) -> bool:
        """Return True if a placement group of these workers has all its nodes."""
        groups = placement_group_table().values()
        return any(group["state"] == "CREATED" and self._is_gang(group) for group in groups)

    def _is_gang(self, group: Mapping[str, Mapping[int, Mapping[str, float]]]) -> bool:
        bundles = list(group["bundles"].values())
        is_alike = all(bundle == self._need.bundle for bundle in bundles)
        return is_alike and len(bundles) >= self._need.workers

    def _missing(self, now: float) -> str:
        """Return a sentence about the missing workers."""
        need = self._need
        labels = roles.selector(need.role, need.roles)
        held = room.room_for(need.bundle, labels).now
        where = f"nodes of role {need.role}" if labels else "the nodes"
        begun = time.strftime("%H:%M", time.localtime(self._since))
        waited = f"since {begun} ({(now - self._since) / 60:.0f} min)"
        if held >= need.workers:
            return f"{need}, all or none: {where} hold {held}, and are in use {waited}"
        lacking = need.workers - held
        verb = "is" if lacking == 1 else "are"
        return f"{need}, all or none: {where} hold {held}, {lacking} {verb} missing {waited}"
