"""Which nodes and engines are there, as Ray's control service says; where it is away itself, none are known to be.

Talks to Ray; writes nothing.
"""

from __future__ import annotations

from collections.abc import Collection

from ssd_ray.cluster import ray_internals


def has_node(node: str) -> bool:
    """Whether a node is there."""
    import ray

    try:
        return any(there["NodeID"] == node and there["Alive"] for there in ray.nodes())
    except Exception:
        return False


def is_draining(node: str) -> bool:
    """Whether a node is about to go."""
    try:
        return node in ray_internals.draining_nodes()
    except (
        Exception
    ):  # of several kinds while the control service is started anew; whoever asks, asks again
        return False


def actors() -> Collection[str]:
    """The actors of this job that are up, by id."""
    try:
        return ray_internals.live_actors()
    except Exception:
        return frozenset()
