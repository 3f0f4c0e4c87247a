"""The launcher's files, as Ray reads them, and their common promises."""

from __future__ import annotations

import functools
import importlib.util
import json
from pathlib import Path
from typing import Any

import jsonschema
import yaml

TOP = Path(__file__).parents[2]
AWS, GCP = "cluster.yaml", "cluster-gcp.yaml"
WORKERS = ("sampler_spot", "sampler", "trainer", "grader")
Yaml = dict[str, Any]


@functools.cache
def text(name: str) -> str:
    return (TOP / name).read_text()


def launcher(name: str) -> Yaml:
    document: Yaml = yaml.safe_load(text(name))
    return document


def node_types(name: str) -> dict[str, Yaml]:
    types: dict[str, Yaml] = launcher(name)["available_node_types"]
    return types


def run_options(name: str, node_type: str) -> list[str]:
    """Return the options of `docker run` on a node of a type."""
    docker = launcher(name)["docker"]
    if node_type == launcher(name)["head_node_type"]:
        return [*docker["run_options"], *docker["head_run_options"]]
    own = node_types(name)[node_type]["docker"]["worker_run_options"]
    return [*docker["run_options"], *docker.get("worker_run_options", []), *own]


def validate(name: str) -> None:
    """Hold a file against Ray's schema for it."""
    spec = importlib.util.find_spec("ray")
    assert spec is not None
    assert spec.submodule_search_locations
    schema = Path(spec.submodule_search_locations[0]) / "autoscaler" / "ray-schema.json"
    jsonschema.Draft7Validator(json.loads(schema.read_text())).validate(launcher(name))
