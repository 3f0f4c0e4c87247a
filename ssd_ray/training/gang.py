"""Report a gang of training workers that waits for nodes; end it at a deadline.

- Ray Train reserves all workers in one placement group: all start, or none.
- A line a minute names the missing workers, and the time since which they are.
- A gang may also wait in the middle of a training, after the loss of a node.

Reads the state of the cluster; writes nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from ray.exceptions import RayError
from ray.util import placement_group_table

from ssd_ray.cluster.room import Need
from ssd_ray.cluster.waiting import Waiting, interrupt_main
from ssd_ray.errors import InfrastructureError

_POLL_S = 10.0
_END_TIMEOUT_S = 5.0


@contextmanager
def reported(need: Need, say: Callable[[str], None], limit_s: float | None) -> Iterator[None]:
    """Report the missing workers of a gang while the block runs.

    Raises:
        InfrastructureError: the gang has waited for `limit_s`.
    """
    over = threading.Event()
    failures: list[InfrastructureError] = []

    def follow() -> None:
        watch = GangWatch(need, say, limit_s)
        while not over.wait(_POLL_S):
            try:
                watch.look()
            except (RayError, RuntimeError):
                # The head is away. The training itself ends or waits, and says so.
                continue
            except InfrastructureError as failure:
                failures.append(failure)
                # Ray's own wait in the main thread ends at a signal alone.
                interrupt_main()
                return

    thread = threading.Thread(target=follow, name="gang", daemon=True)
    thread.start()
    try:
        yield
    except KeyboardInterrupt:
        if failures:
            raise failures[0] from None
        raise
    finally:
        over.set()
        # A call to a lost head may take a minute.
        thread.join(_END_TIMEOUT_S)


class GangWatch:
    """A gang, and the time since which it waits."""

    def __init__(self, need: Need, say: Callable[[str], None], limit_s: float | None) -> None:
        self._need = need
        self._waiting = Waiting(need, say, limit_s)

    def look(self) -> None:
        """Say a line if the gang has had no placement for another minute.

        Raises:
            InfrastructureError: it has had none until the deadline.
        """
        self._waiting.look(is_met=self._is_placed())

    def _is_placed(self) -> bool:
        """Return True if a placement group of these workers has all its nodes."""
        groups = placement_group_table().values()
        return any(group["state"] == "CREATED" and self._is_gang(group) for group in groups)

    def _is_gang(self, group: Mapping[str, Mapping[int, Mapping[str, float]]]) -> bool:
        bundles = list(group["bundles"].values())
        is_alike = all(bundle == self._need.bundle for bundle in bundles)
        return is_alike and len(bundles) >= self._need.workers
