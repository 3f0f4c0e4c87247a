"""Render the manifests of k8s/ as users do; their pods come from the double's operator."""

from __future__ import annotations

import copy
import functools
import itertools
import os
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.kube.ray_pods import head_pod, worker_pod
from tests.kube.schemas import fill_defaults

TOP = Path(__file__).parents[2]
K8S = TOP / "k8s"
OVERLAYS = tuple(sorted(path.name for path in (K8S / "overlays").iterdir()))
JOBS = tuple(
    sorted(str(path.parent.relative_to(K8S)) for path in K8S.glob("jobs/*/*/kustomization.yaml"))
)
COMPONENTS = tuple(
    name
    for path in sorted((K8S / "components").rglob("kustomization.yaml"))
    if not (name := str(path.parent.relative_to(K8S / "components"))).startswith("job")
)
"""Components for a user to add; those of jobs are parts of every RayJob."""
RECIPES = {
    "overlays/local": ["quickstart"],
    "overlays/4b-spot": ["qwen3-4b-instruct", "qwen3-4b-thinking"],
    "overlays/spot-only": ["qwen3-4b-instruct", "qwen3-4b-thinking"],
    "overlays/30b": ["qwen3-30b-instruct", "qwen3-30b-instruct-8gpu", "qwen3-30b-thinking-8gpu"],
}
"""Recipes that each overlay is for."""
Yaml = dict[str, Any]


@functools.cache
def render(root: str, components: tuple[str, ...] = (), *, is_job: bool = False) -> list[Yaml]:
    """Return the objects of a directory of k8s/, with components added as an overlay would.

    With `is_job`, a RayJob takes the place of the standing cluster.
    """
    if not components and not is_job:
        return _kustomize(K8S / root)
    parts = ["job", *components, "job-cluster"] if is_job else [*components]
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder).resolve()
        kustomization = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "resources": [os.path.relpath(K8S / root, here)],
            "components": [os.path.relpath(K8S / "components" / each, here) for each in parts],
        }
        (here / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
        return _kustomize(here)


def _kustomize(folder: Path) -> list[Yaml]:
    kubectl = Path(sysconfig.get_path("scripts")) / "kubectl"
    # Without a configuration of the user's, and so without any cluster. Go's collector would take a
    # third of the time of so short a program.
    environment = {**os.environ, "KUBECONFIG": os.devnull, "GOGC": "off"}
    done = subprocess.run(
        [kubectl, "kustomize", folder], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return list(yaml.load_all(done.stdout, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))


def of_kind(objects: Sequence[Yaml], *kinds: str) -> list[Yaml]:
    """Return the objects of some kinds."""
    return [each for each in objects if each["kind"] in kinds]


def cluster_specs(objects: Sequence[Yaml]) -> list[Yaml]:
    """Return the specs of all Ray clusters, those of RayJobs included."""
    return [each["spec"] for each in of_kind(objects, "RayCluster")] + [
        each["spec"]["rayClusterSpec"] for each in of_kind(objects, "RayJob")
    ]


def groups(spec: Yaml) -> dict[str, Yaml]:
    """Return the groups of workers of a cluster by name."""
    return {each["groupName"]: each for each in spec["workerGroupSpecs"]}


def group(root: str, name: str) -> Yaml:
    """Return a group of the cluster of a directory."""
    (spec,) = cluster_specs(render(root))
    return groups(spec)[name]


def templates(objects: Sequence[Yaml]) -> Iterator[tuple[str, Yaml]]:
    """Yield the owner's name and the template of every pod, as written."""
    for spec in cluster_specs(objects):
        yield "head", spec["headGroupSpec"]["template"]
        for name, each in groups(spec).items():
            yield name, each["template"]
    for job in of_kind(objects, "RayJob"):
        yield "submitter", job["spec"]["submitterPodTemplate"]
    for owner in of_kind(objects, "Job", "StatefulSet", "Deployment"):
        yield owner["metadata"]["name"], owner["spec"]["template"]


def clusters(objects: Sequence[Yaml]) -> list[Yaml]:
    """Return all Ray clusters with their defaults, those of RayJobs as KubeRay makes them."""
    made = []
    for each in of_kind(objects, "RayCluster", "RayJob"):
        spec = each["spec"].get("rayClusterSpec", each["spec"])
        metadata = {"namespace": "default", **each["metadata"], "uid": "1"}
        cluster = {"apiVersion": "ray.io/v1", "kind": "RayCluster", "spec": spec}
        made.append(fill_defaults({**cluster, "metadata": metadata}))
    return made


def pods(objects: Sequence[Yaml]) -> Iterator[tuple[str, Yaml]]:
    """Yield the owner's name and every pod, as KubeRay's operator makes it."""
    made = {}
    for cluster in clusters(objects):
        made["head"] = head_pod(cluster)
        for name, group in groups(cluster["spec"]).items():
            made[name] = worker_pod(cluster, group)
    for name, template in templates(objects):
        pod = copy.deepcopy(made.get(name, template))
        pod["metadata"] = {"name": name, **pod.get("metadata", {})}
        yield name, {"apiVersion": "v1", "kind": "Pod", **pod}


def containers(pod: Yaml) -> list[Yaml]:
    """Return all containers of a pod or template."""
    return list(itertools.chain(pod["spec"].get("initContainers", ()), pod["spec"]["containers"]))


def environment(container: Yaml) -> dict[str, Any]:
    """Return the variables of a container; None for values from elsewhere."""
    return {entry["name"]: entry.get("value") for entry in container.get("env", ())}


def changed(obj: Yaml, path: str, value: Any) -> Yaml:
    """Return a copy with the field of a dotted path replaced, or removed if `value` is None."""
    result = copy.deepcopy(obj)
    inner: Any = result
    *parents, last = path.split(".")
    for key in parents:
        inner = inner[int(key)] if isinstance(inner, list) else inner[key]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return result


def ray_types(spec: Yaml) -> dict[str, Any]:
    """Return the node types that Ray's own autoscaler reads from a cluster."""
    from ray.autoscaler._private.kuberay import autoscaling_config

    cluster = {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": {"name": "ssd-ray", "namespace": "default"},
        "spec": spec,
    }
    read = autoscaling_config._derive_autoscaling_config_from_ray_cr(fill_defaults(cluster))
    types: dict[str, Any] = read["available_node_types"]
    return types
