"""The scheduler of Ray's autoscaler, asked for the machines that a demand starts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

Bundle = tuple[dict[str, float], str]
"""Resources, and the role of the selector."""


def launches(
    types: Mapping[str, Any], demand: Sequence[Bundle], availability: Mapping[str, float] = {}
) -> dict[str, int]:
    """Return the number of machines of each type that an empty cluster starts for a demand."""
    from ray.autoscaler.v2.instance_manager.config import NodeTypeConfig
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.utils import ResourceRequestUtil
    from ray.core.generated.common_pb2 import LabelSelectorOperator

    within = LabelSelectorOperator.Value("LABEL_OPERATOR_IN")
    requests = [
        ResourceRequestUtil.make(resources, label_selectors=[[("ssd-ray/role", within, [role])]])
        for resources, role in demand
    ]
    configs = {
        name: NodeTypeConfig(
            name=name,
            min_worker_nodes=each.get("min_workers", 0),
            max_worker_nodes=each.get("max_workers", 0),
            priority=each.get("priority", 0),
            resources=each["resources"],
            labels=each["labels"],
        )
        for name, each in types.items()
    }
    request = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs=configs,
        max_num_nodes=sum(each.get("max_workers", 0) for each in types.values()),
        resource_requests=ResourceRequestUtil.group_by_count(requests),
        recoverable_resource_availabilities=dict(availability),
    )
    reply = ResourceDemandScheduler(None).schedule(request)
    assert not reply.infeasible_resource_requests
    counts: Counter[str] = Counter()
    for launch in reply.to_launch:
        counts[launch.instance_type] += launch.count
    return dict(counts)
