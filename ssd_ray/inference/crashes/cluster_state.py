"""Ask Ray's control service about live nodes and engines.

While the service itself is away, no node and no engine is known to be alive. Writes nothing.
"""

from __future__ import annotations

from collections.abc import Collection

from ssd_ray.cluster import ray_internals


def has_node(node: str) -> bool:
    """Return True if a node is alive."""
    import ray

    try:
        return any(there["NodeID"] == node and there["Alive"] for there in ray.nodes())
    except Exception:
        return False


def is_draining(node: str) -> bool:
    """Return True if a node is about to be taken away."""
    # Errors are of several kinds while the control service restarts. Callers ask again.
    try:
        return node in ray_internals.draining_nodes()
    except Exception:
        return False


def actors() -> Collection[str]:
    """Return the ids of this job's live actors."""
    try:
        return ray_internals.live_actors()
    except Exception:
        return frozenset()
