"""Which nodes and engines are there, as Ray's control service says; where it is away itself, none are known to be.

The pinned Ray has no public names for these questions. Talks to Ray; writes nothing.
"""

from __future__ import annotations

from collections.abc import Collection


def has_node(node: str) -> bool:
    """Whether a node is there."""
    import ray

    try:
        return any(there["NodeID"] == node and there["Alive"] for there in ray.nodes())
    except Exception:
        return False


def is_draining(node: str) -> bool:
    """Whether a node is about to go."""
    import ray

    try:
        return node in ray._private.state.state.get_draining_nodes()
    except (
        Exception
    ):  # of several kinds while the control service is started anew; whoever asks, asks again
        return False


def actors() -> Collection[str]:
    """The actors of this job that are up, by id."""
    import ray

    try:
        job = ray.JobID.from_hex(ray.get_runtime_context().get_job_id())
        return frozenset(ray._private.state.state.actor_table(None, job, "ALIVE"))
    except Exception:
        return frozenset()
