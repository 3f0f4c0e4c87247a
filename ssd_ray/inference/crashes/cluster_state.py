"""Ask Ray's control service about live nodes and engines.

While the service itself is away, no node and no engine is known to be alive. Writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TypeVar

from ssd_ray.cluster import ray_internals

T = TypeVar("T")


def has_node(node: str) -> bool:
    """Return True if a node is alive."""
    import ray

    return _answer(
        lambda: any(entry["NodeID"] == node and entry["Alive"] for entry in ray.nodes()), False
    )


def nodes() -> Collection[str] | None:
    """Return the ids of the live nodes, None while the control service is away."""
    import ray

    return _answer(
        lambda: frozenset(entry["NodeID"] for entry in ray.nodes() if entry["Alive"]), None
    )


def is_draining(node: str) -> bool:
    """Return True if a node is about to be taken away."""
    return _answer(lambda: node in ray_internals.draining_nodes(), False)


def actors() -> Collection[str]:
    """Return the ids of the live actors of this run, a job of Ray."""
    return _answer(ray_internals.live_actors, frozenset())


def _answer(ask: Callable[[], T], otherwise: T) -> T:
    """Return an answer of the control service, `otherwise` while the service is away."""
    try:
        return ask()
    # Errors are of several types while the service restarts. Callers ask again.
    except Exception:
        return otherwise
