"""Add variables and mounts to the containers of a pod."""

from __future__ import annotations

from typing import Any

from tests.kube.api import Object


def add_env(container: Object, **values: str) -> None:
    """Add variables with values."""
    for name, value in values.items():
        add_variable(container, {"name": name, "value": value})


def add_fields(container: Object, **paths: str) -> None:
    """Add variables with values of fields of the pod."""
    for name, path in paths.items():
        add_variable(container, {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}})


def add_variable(container: Object, variable: Object) -> None:
    """Add a variable unless the container has one of its name."""
    env = container.setdefault("env", [])
    if all(each["name"] != variable["name"] for each in env):
        env.append(variable)


def mount(pod: Object, container: Object, name: str, path: str, empty: Any) -> None:
    """Mount an `emptyDir` unless the container has a mount at the path."""
    mounts = container.setdefault("volumeMounts", [])
    if any(mount["mountPath"] == path for mount in mounts):
        return
    mounts.append({"name": name, "mountPath": path})
    volumes = pod["spec"].setdefault("volumes", [])
    if all(volume["name"] != name for volume in volumes):
        volumes.append({"name": name, "emptyDir": empty})
