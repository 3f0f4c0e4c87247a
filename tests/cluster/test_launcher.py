"""Promises of the launcher's files, and cluster.yaml run by Ray's own provider for AWS."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from ssd_ray import recipes
from ssd_ray.models import architecture
from ssd_ray.planner.assumptions import Assumptions
from ssd_ray.planner.clusters import host_bytes, plan_training
from tests.support import aws_cluster, scheduler
from tests.support.launcher import AWS, GCP, TOP, WORKERS, launcher, node_types, run_options, text
from tests.support.launcher import validate as validate_file

FILES = (AWS, GCP)
ROLES = {
    "head": "driver",
    "sampler_spot": "sampler",
    "sampler": "sampler",
    "trainer": "trainer",
    "grader": "grader",
}
GIB = 1 << 30


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[aws_cluster.Cluster]:
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_CONFIG_FILE"):
            patch.delenv(name, raising=False)
        patch.setenv("AWS_DEFAULT_REGION", launcher(AWS)["provider"]["region"])
        patch.setenv("HOME", str(home))
        with aws_cluster.running(home) as running:
            yield running


@pytest.mark.parametrize("name", FILES)
def test_the_file_is_valid_for_ray(name: str) -> None:
    validate_file(name)
    types = node_types(name)
    assert launcher(name)["head_node_type"] == "head"
    assert set(types) == set(ROLES)
    assert (
        sum(each.get("max_workers", 0) for each in types.values()) == launcher(name)["max_workers"]
    )


@pytest.mark.parametrize("name", FILES)
def test_each_type_has_the_label_of_its_role_and_begins_at_none(name: str) -> None:
    types = node_types(name)
    assert {each: types[each]["labels"]["ssd-ray/role"] for each in types} == ROLES
    assert [types[each]["min_workers"] for each in WORKERS] == [0] * 4
    assert types["head"]["resources"] == {"CPU": 0}
    spot = {each for each in types if types[each]["labels"].get("ray.io/market-type") == "spot"}
    assert spot == {"sampler_spot"}


@pytest.mark.parametrize("name", FILES)
def test_every_node_asks_for_a_token_and_reports_nothing(name: str) -> None:
    for node_type in ROLES:
        assert {
            "--env=RAY_AUTH_MODE=token",
            "--env=RAY_USAGE_STATS_ENABLED=0",
            "--env=RAY_worker_niceness=0",
            "--env=SSD_RAY_RUNS=/mnt/shared/runs",
        } <= set(run_options(name, node_type))
    assert launcher(name)["file_mounts"] == {"/home/ray/.ray/auth_token": "~/.ray/auth_token"}


@pytest.mark.parametrize("name", FILES)
def test_graders_have_neither_the_hubs_token_nor_the_models(name: str) -> None:
    """`hf auth login` writes the token into HF_HOME."""
    for node_type in ROLES:
        options = run_options(name, node_type)
        volumes = [option for option in options if option.startswith("--volume=/mnt/")]
        is_grader = node_type == "grader"
        assert volumes == [
            f"--volume={path}:{path}"
            for path in (["/mnt/shared/runs"] if is_grader else ["/mnt/shared"])
        ]
        assert any("HF_HOME" in option for option in options) != is_grader
        assert not any("HF_TOKEN" in option for option in options)
    graders = run_options(name, "grader")
    assert {"--cap-drop=ALL", "--security-opt=no-new-privileges"} <= set(graders)
    assert "HF_TOKEN" not in text(name)


@pytest.mark.parametrize("name", FILES)
def test_images_have_a_tag_and_the_ports_of_the_head_stay_closed(name: str) -> None:
    docker = launcher(name)["docker"]
    images = [docker["image"], node_types(name)["grader"]["docker"]["worker_image"]]
    assert all(re.fullmatch(r"[\w./-]+:\d+\.\d+\.\d+", image) for image in images)
    assert {image.rpartition(":")[2] for image in images} == {version("ssd-ray")}
    (start,) = [line for line in launcher(name)["head_start_ray_commands"] if "--head " in line]
    assert "--dashboard-host" not in start  # Ray's default is the loopback device


@pytest.mark.parametrize("name", FILES)
def test_every_watch_is_a_command_that_exists(name: str) -> None:
    document = launcher(name)
    commands = document["head_start_ray_commands"] + document["worker_start_ray_commands"]
    watches = [line for line in commands if "ssd_ray.cluster.watch" in line]
    assert len(watches) == 3
    for line in watches:
        subprocess.run(["bash", "-n", "-c", line], check=True)
        words = shlex.split(line.partition(" >> ")[0])
        arguments = words[words.index("ssd_ray.cluster.watch") + 1 :]
        assert "--spot=" in line or "--off=/run/ssd-ray/off" in arguments
    assert [line for line in watches if f"--spot={document['provider']['type']}" in line]
    off = "--path-property=PathExists=/run/ssd-ray/off"
    assert [line for line in document["initialization_commands"] if off in line]
    for line in document["initialization_commands"]:
        subprocess.run(["bash", "-n", "-c", line], check=True)


@pytest.mark.parametrize("name", FILES)
def test_demand_goes_to_the_type_of_its_role(name: str) -> None:
    """Ray's own scheduler of its autoscaler decides."""
    engine, worker, grader = {"CPU": 1, "GPU": 1}, {"CPU": 1, "GPU": 1}, {"CPU": 1}
    types = node_types(name)
    assert scheduler.launches(types, [(engine, "sampler")] * 9) == {"sampler_spot": 2}
    assert scheduler.launches(types, [(worker, "trainer")] * 16) == {"trainer": 2}
    assert scheduler.launches(types, [(grader, "grader")] * 20) == {"grader": 2}
    # After a failed start for lack of spot capacity, samplers come on demand.
    lacking = {"sampler_spot": 0.0}
    assert scheduler.launches(types, [(engine, "sampler")], lacking) == {"sampler": 1}


@pytest.mark.slow
def test_the_trainers_are_what_the_30b_recipe_asks_for(cluster: aws_cluster.Cluster) -> None:
    recipe = recipes.load("qwen3-30b-instruct", [])
    trainer = cluster.config["available_node_types"]["trainer"]
    gpus = trainer["resources"]["GPU"]
    assert gpus == 8
    assert gpus * trainer["max_workers"] == recipe.cluster.train_workers
    kind = trainer["node_config"]["InstanceType"]
    (facts,) = cluster.ec2.describe_instance_types(InstanceTypes=[kind])["InstanceTypes"]
    (gpu,) = facts["GpuInfo"]["Gpus"]
    assert gpu["Count"] == gpus
    memory = {
        "gpu_memory_gib": gpu["MemoryInfo"]["SizeInMiB"] / 1024,
        "gpus_per_node": gpus,
        "host_memory_gib": facts["MemoryInfo"]["SizeInMiB"] / 1024,
    }
    model = architecture.shipped(recipe.model.source)
    assert model is not None
    plan = plan_training(recipe, model, Assumptions.model_validate(memory))
    assert plan.requested.fits, plan.requested.refusal
    assert host_bytes(plan.requested.memory, gpus) < memory["host_memory_gib"] * GIB
    assert facts["VCpuInfo"]["DefaultVCpus"] == trainer["resources"]["CPU"]


@pytest.mark.slow
def test_each_type_is_the_machine_of_the_file(cluster: aws_cluster.Cluster) -> None:
    for name, spec in node_types(AWS).items():
        (instance,) = cluster.of_type(name)
        assert instance["InstanceType"] == spec["node_config"]["InstanceType"]
        is_spot = name == "sampler_spot"
        assert instance.get("InstanceLifecycle") == ("spot" if is_spot else None)
        assert instance["MetadataOptions"]["HttpTokens"] == "required"
        assert aws_cluster.tags(instance)["ray-cluster-name"] == "ssd-ray"


@pytest.mark.slow
def test_only_the_head_has_an_instance_profile(cluster: aws_cluster.Cluster) -> None:
    (head,) = cluster.of_type("head")
    assert head["IamInstanceProfile"]["Arn"].endswith(f"/{aws_cluster.PROFILE}")
    for name in WORKERS:
        assert all("IamInstanceProfile" not in each for each in cluster.of_type(name))


@pytest.mark.slow
def test_ray_makes_no_role_and_no_security_group(cluster: aws_cluster.Cluster) -> None:
    assert not [call for call in cluster.calls_of_up if call.startswith("iam:")]
    assert not [
        call for call in cluster.calls_of_up if "SecurityGroup" in call and "Describe" not in call
    ]
    groups = {group["GroupId"] for each in cluster.instances() for group in each["SecurityGroups"]}
    described = cluster.ec2.describe_security_groups(GroupIds=sorted(groups))["SecurityGroups"]
    ranges = [
        (rule.get("FromPort"), allowed["CidrIp"])
        for group in described
        for rule in group["IpPermissions"]
        for allowed in rule["IpRanges"]
    ]
    assert ranges == [(22, aws_cluster.SSH_FROM)]


@pytest.mark.slow
def test_the_head_may_do_what_its_autoscaler_does_and_no_more(
    cluster: aws_cluster.Cluster,
) -> None:
    statements = aws_cluster.head_policy()["Statement"]
    allowed = {action for each in statements for action in _listed(each["Action"])}
    used = {call for call in cluster.calls_of_autoscaler if call.startswith("ec2:")}
    assert {"ec2:RunInstances", "ec2:DescribeInstances"} <= used
    assert used | {"ec2:TerminateInstances", "ec2:CreateTags"} == allowed
    assert not [action for action in allowed if "*" in action]
    for each in statements:
        limited = each["Resource"] != "*" or "Condition" in each
        assert limited or all("Describe" in action for action in _listed(each["Action"]))


def _listed(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


@pytest.mark.slow
def test_a_machine_that_is_let_go_is_terminated(cluster: aws_cluster.Cluster) -> None:
    """Also one that powers itself off; the provider would only stop it by Ray's default."""
    for instance in cluster.instances():
        answer = cluster.ec2.describe_instance_attribute(
            InstanceId=instance["InstanceId"], Attribute="instanceInitiatedShutdownBehavior"
        )
        assert answer["InstanceInitiatedShutdownBehavior"]["Value"] == "terminate"
    ids = [each["InstanceId"] for each in cluster.of_type("grader")]
    cluster.adapter.terminate(ids, "request")
    aws_cluster.wait_for(
        lambda: not set(ids) & set(cluster.adapter.get_non_terminated()), cluster.adapter
    )
    states = {each["InstanceId"]: each["State"]["Name"] for each in cluster.instances()}
    assert [states[each] for each in ids] == ["terminated"]


def test_the_page_and_the_files_name_each_other() -> None:
    page = (TOP / "docs" / "cluster.md").read_text()
    for name in FILES:
        assert f"ray up {name}" in page
        assert "docs/cluster.md" in text(name)
        for path in re.findall(r"tests/[\w/]+\.py|k8s/Dockerfile[\w.]*", text(name)):
            assert (TOP / path).is_file(), path
    assert Path(TOP / "ssd_ray/cluster/watch.py").is_file()
