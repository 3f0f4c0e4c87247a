"""Promises and validity of cluster.yaml, the file for Ray's launcher on AWS."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import jsonschema
import yaml

TOP = Path(__file__).parents[2]
Yaml = dict[str, Any]


def launcher() -> Yaml:
    document: Yaml = yaml.safe_load((TOP / "cluster.yaml").read_text())
    return document


def test_the_launcher_file_is_valid_for_ray() -> None:
    spec = importlib.util.find_spec("ray")
    assert spec is not None
    assert spec.submodule_search_locations
    schema = Path(spec.submodule_search_locations[0]) / "autoscaler" / "ray-schema.json"
    jsonschema.Draft7Validator(json.loads(schema.read_text())).validate(launcher())
    types = launcher()["available_node_types"]
    assert launcher()["head_node_type"] in types
    assert sum(each.get("max_workers", 0) for each in types.values()) == launcher()["max_workers"]


def test_the_head_takes_no_work_and_is_on_demand() -> None:
    head = launcher()["available_node_types"][launcher()["head_node_type"]]
    assert head["resources"]["CPU"] == 0
    assert "InstanceMarketOptions" not in head["node_config"]


def test_gpu_workers_are_spot_and_scale_to_zero() -> None:
    gpu = launcher()["available_node_types"]["gpu_spot"]
    assert gpu["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
    assert gpu["min_workers"] == 0


def test_the_image_has_a_tag() -> None:
    name, _, tag = launcher()["docker"]["image"].rpartition(":")
    assert name
    assert tag not in ("", "latest")


def test_graders_run_unprivileged() -> None:
    grader = launcher()["available_node_types"]["grader"]
    assert {"--cap-drop=ALL", "--security-opt=no-new-privileges"} <= set(
        grader["docker"]["worker_run_options"]
    )


def test_containers_have_the_volume_the_token_and_the_niceness() -> None:
    """A raylet reads the niceness from its own environment; the driver would set it too late."""
    assert {
        "--volume=/mnt/shared:/mnt/shared",
        "--env=SSD_RAY_RUNS=/mnt/shared/runs",
        "--env=RAY_AUTH_MODE=token",
        "--env=RAY_USAGE_STATS_ENABLED=0",
        "--env=RAY_worker_niceness=0",
    } <= set(launcher()["docker"]["run_options"])
