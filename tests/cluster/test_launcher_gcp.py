"""cluster-gcp.yaml run by Ray's own provider, with a double of Google's Compute service."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support import gcp_service
from tests.support.launcher import GCP, WORKERS, launcher, node_types


@pytest.fixture(scope="module")
def service() -> gcp_service.Service:
    return gcp_service.Service()


@pytest.fixture(scope="module")
def provider(service: gcp_service.Service) -> Iterator[Any]:
    from googleapiclient.discovery import build
    from ray.autoscaler._private.gcp import node_provider
    from ray.autoscaler._private.gcp.node import GCPCompute

    compute = build("compute", "v1", http=service, static_discovery=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GCPCompute, "get_new_authorized_http", lambda *_: service)
        patch.setattr(
            node_provider,
            "construct_clients_from_provider_config",
            lambda _: (None, None, compute, None),
        )
        document = launcher(GCP)
        yield node_provider.GCPNodeProvider(document["provider"], document["cluster_name"])


@pytest.fixture(scope="module")
def made(provider: Any, service: gcp_service.Service) -> dict[str, dict[str, Any]]:
    """One instance of each type, by type, as the service got it."""
    for name, spec in node_types(GCP).items():
        kind = "worker" if name in WORKERS else "head"
        labels = {"ray-node-name": f"ray-{kind}", "ray-node-type": kind}
        labels["ray-user-node-type"] = name
        provider.create_node(copy.deepcopy(spec["node_config"]), labels, 1)
    return {each["labels"]["ray-user-node-type"]: each for each in service.instances.values()}


def test_the_double_refuses_an_unknown_field_and_a_wrong_value() -> None:
    kinds = gcp_service.schemas()
    body = {"scheduling": {"provisioningModel": "SPOTTY", "preemptable": True}, "disks": {}}
    assert gcp_service.faults(body, kinds["Instance"], kinds, "Instance") == [
        "Instance.scheduling.preemptable is unknown",
        "Instance.scheduling.provisioningModel is SPOTTY, not one of "
        + ", ".join(kinds["Scheduling"]["properties"]["provisioningModel"]["enum"]),
        "Instance.disks is no array",
    ]


def test_each_type_is_the_machine_of_the_file(made: dict[str, dict[str, Any]]) -> None:
    for name, spec in node_types(GCP).items():
        body = made[name]
        assert body["machineType"].endswith(f"/machineTypes/{spec['node_config']['machineType']}")
        assert body["labels"]["ray-cluster-name"] == "ssd-ray"
        model = body.get("scheduling", {}).get("provisioningModel", "STANDARD")
        assert model == ("SPOT" if name == "sampler_spot" else "STANDARD")
        # A machine with GPUs cannot move to another host.
        if spec["resources"].get("GPU"):
            assert body["scheduling"]["onHostMaintenance"] == "TERMINATE"
        assert body["disks"][0]["autoDelete"] is True
    assert made["sampler_spot"]["scheduling"]["instanceTerminationAction"] == "DELETE"


def test_only_the_head_has_an_account(made: dict[str, dict[str, Any]]) -> None:
    (account,) = made["head"]["serviceAccounts"]
    assert account["email"].startswith("ssd-ray-head@")
    assert not [name for name in WORKERS if "serviceAccounts" in made[name]]


def test_every_machine_is_in_a_network_of_its_own(made: dict[str, dict[str, Any]]) -> None:
    """Google's default network is open to SSH from everywhere, and Ray chooses it."""
    for body in made.values():
        (interface,) = body["networkInterfaces"]
        assert interface["subnetwork"].endswith("/subnetworks/ssd-ray")


def test_a_machine_that_is_let_go_is_deleted(
    provider: Any, service: gcp_service.Service, made: dict[str, dict[str, Any]]
) -> None:
    grader = made["grader"]["name"]
    provider.terminate_node(grader)
    assert grader not in service.instances
    assert ("DELETE", f"/instances/{grader}") in service.calls
    assert sorted(provider.non_terminated_nodes({})) == sorted(service.instances)
