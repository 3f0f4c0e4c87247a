"""A cluster of cluster.yaml in a stand-in for AWS, made by Ray's own provider.

- The security group and the head's instance profile are those of docs/cluster.md.
- The head starts as `ray up` starts it, workers as the autoscaler starts them.
- Every call to AWS is recorded.
"""

from __future__ import annotations

import copy
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import yaml

from tests.support.launcher import AWS, TOP, WORKERS, launcher, node_types

SSH_FROM = "198.51.100.7/32"
PROFILE = "ssd-ray-head"
WAIT_S = 300


@dataclass(kw_only=True)
class Cluster:
    """A running cluster, and the calls that made it."""

    config: dict[str, Any]
    provider: Any
    adapter: Any
    ec2: Any
    calls_of_up: list[str]
    calls_of_autoscaler: list[str] = field(default_factory=list)
    """Complete before the first test."""

    def instances(self) -> list[dict[str, Any]]:
        reservations = self.ec2.describe_instances()["Reservations"]
        return [each for reservation in reservations for each in reservation["Instances"]]

    def of_type(self, node_type: str) -> list[dict[str, Any]]:
        return [each for each in self.instances() if tags(each)["ray-user-node-type"] == node_type]


def tags(instance: dict[str, Any]) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in instance["Tags"]}


def head_policy() -> dict[str, Any]:
    """Return the policy of the head's role, a JSON block of docs/cluster.md."""
    page = (TOP / "docs" / "cluster.md").read_text()
    block = re.search(r"```json\n(.*?)```", page, re.DOTALL)
    assert block is not None
    document: dict[str, Any] = json.loads(block[1])
    return document


def prepared(ec2: Any, iam: Any) -> dict[str, Any]:
    """Create what docs/cluster.md creates, and return the file with its names."""
    vpc = ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
    group = ec2.create_security_group(GroupName="ssd-ray", Description="nodes", VpcId=vpc)
    inside = {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group["GroupId"]}]}
    ssh = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": SSH_FROM}]}
    ec2.authorize_security_group_ingress(GroupId=group["GroupId"], IpPermissions=[inside, ssh])
    trust = {"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}}
    document = {"Version": "2012-10-17", "Statement": [{**trust, "Action": "sts:AssumeRole"}]}
    iam.create_role(RoleName=PROFILE, AssumeRolePolicyDocument=json.dumps(document))
    policy = json.dumps(head_policy())
    iam.put_role_policy(RoleName=PROFILE, PolicyName=PROFILE, PolicyDocument=policy)
    iam.create_instance_profile(InstanceProfileName=PROFILE)
    iam.add_role_to_instance_profile(InstanceProfileName=PROFILE, RoleName=PROFILE)
    config = launcher(AWS)
    for node_type in config["available_node_types"].values():
        node_type["node_config"]["SecurityGroupIds"] = [group["GroupId"]]
        node_type["node_config"]["ImageId"] = ec2.describe_images()["Images"][0]["ImageId"]
    return config


@contextmanager
def recorded(calls: list[str]) -> Iterator[None]:
    """Append the name of every call to AWS, as `ec2:RunInstances`."""
    from botocore.client import BaseClient

    original = BaseClient._make_api_call

    def call(client: Any, name: str, parameters: Any) -> Any:
        calls.append(f"{client.meta.service_model.service_name}:{name}")
        return original(client, name, parameters)

    with mock.patch.object(BaseClient, "_make_api_call", call):
        yield


@contextmanager
def small_catalog() -> Iterator[None]:
    """Limit the stand-in to one image and the file's machines: it reads its catalogs slowly."""
    from moto.ec2.models import amis, instance_types

    kinds = {each["node_config"]["InstanceType"] for each in node_types(AWS).values()}
    catalog = {kind: instance_types.INSTANCE_TYPES[kind] for kind in kinds}
    with (
        mock.patch.dict(instance_types.INSTANCE_TYPES, catalog, clear=True),
        mock.patch.object(amis, "AMIS", amis.AMIS[:1]),
        # With it, the stand-in adds no other image; the file was to be read by the import.
        mock.patch.dict(os.environ, {"MOTO_AMIS_PATH": os.devnull}),
    ):
        yield


@contextmanager
def running(home: Path) -> Iterator[Cluster]:
    """Start one node of each type."""
    import boto3
    from moto import mock_aws
    from ray.autoscaler._private import commands
    from ray.autoscaler._private.providers import _get_node_provider
    from ray.autoscaler._private.util import prepare_config, validate_config
    from ray.autoscaler.v2.instance_manager.config import FileConfigReader
    from ray.autoscaler.v2.instance_manager.node_provider import NodeProviderAdapter

    for folder, name in ((".ssh", ""), (".ray", "auth_token")):
        (home / folder).mkdir()
        if name:
            (home / folder / name).write_text("token")
    calls: list[str] = []
    with small_catalog(), mock_aws(), recorded(calls):
        region = launcher(AWS)["provider"]["region"]
        ec2, iam = boto3.client("ec2", region), boto3.client("iam", region)
        config = prepared(ec2, iam)
        calls.clear()
        config = prepare_config(config)
        validate_config(config)
        config = commands._bootstrap_config(config, no_config_cache=True)
        provider = _get_node_provider(config["provider"], config["cluster_name"])
        head = {**config.get("head_node", {}), **node_types_of(config)["head"]["node_config"]}
        labels = {"ray-node-type": "head", "ray-node-name": "head", "ray-user-node-type": "head"}
        provider.create_node(copy.deepcopy(head), labels, 1)
        calls_of_up = [*calls]
        calls.clear()
        path = home / "ray_bootstrap_config.yaml"
        path.write_text(yaml.safe_dump(config))
        adapter = NodeProviderAdapter(provider, FileConfigReader(str(path)))
        cluster = Cluster(
            config=config,
            provider=provider,
            adapter=adapter,
            ec2=ec2,
            calls_of_up=calls_of_up,
        )
        adapter.launch(dict.fromkeys(WORKERS, 1), "request")
        wait_for(lambda: len(adapter.get_non_terminated()) == 1 + len(WORKERS), adapter)
        cluster.calls_of_autoscaler.extend(calls)
        yield cluster


def node_types_of(config: dict[str, Any]) -> dict[str, Any]:
    types: dict[str, Any] = config["available_node_types"]
    assert types.keys() == node_types(AWS).keys()
    return types


def wait_for(condition: Any, adapter: Any) -> None:
    """Wait for the threads of the provider."""
    until = time.monotonic() + WAIT_S
    while not condition():
        errors = adapter.poll_errors()
        assert not errors, [repr(error.__cause__) for error in errors]
        assert time.monotonic() < until
        time.sleep(0.2)
