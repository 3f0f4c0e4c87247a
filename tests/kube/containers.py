"""From a pod's manifest to one container: environment, identity, limits, mounts; for podman.

The image is the machine's own root as a read-only layer with this checkout in it, so nothing is
pulled. Homes the user 1000 may not enter are replaced by the parts that programs need.
"""

from __future__ import annotations

import base64
import math
import os
import re
import resource
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Object = dict[str, Any]
Lookup = Callable[[str, str], "Object | None"]
"""A config map or secret of the pod's namespace, by plural name and name."""
CHECKOUT = Path(__file__).resolve().parents[2]
WORKDIR = "/opt/ssd_ray"
IMAGE_USER = (1000, 100)
"""User and group of the images in k8s/."""
_SUFFIXES = {"": 1.0, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 2.0**10}
_SUFFIXES |= {"Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}


class ConfigError(Exception):
    """A container cannot be made from its manifest yet, for example without its secret."""


@dataclass(frozen=True, kw_only=True)
class Mount:
    """A host path in a container."""

    source: Path
    target: str
    read_only: bool = False


@dataclass(frozen=True, kw_only=True)
class Container:
    """One container, ready to start."""

    name: str
    command: tuple[str, ...]
    env: Mapping[str, str]
    mounts: tuple[Mount, ...]
    log: Path
    namespace: str
    """Network namespace; empty for the machine's own."""
    hostname: str
    workdir: str = WORKDIR
    user: tuple[int, int] = IMAGE_USER
    groups: tuple[int, ...] = ()
    cpus: float = 0.0
    """0 without a limit."""
    memory_bytes: int = 0
    """0 without a limit."""
    security: Object = field(default_factory=dict)
    """The container's security context, merged with the pod's."""


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """Facts about a pod that its manifest does not hold."""

    prefix: str
    """Start of the containers' names."""
    namespace: str
    address: str
    api_address: str
    """Address and port of the API server; empty without one."""
    lookup: Lookup
    volumes: Mapping[str, Path]
    """Host directories by the volume's name."""
    mounts: tuple[Mount, ...]
    """Mounts of every container: the image, hosts file, service account."""
    scratch: Path
    """Folder for the directories below; each container has its own."""
    logs: Path


def quantity(text: str | float) -> float:
    """Return the number of a Kubernetes quantity such as `500m` or `2Gi`."""
    match = re.fullmatch(r"([0-9.]+(?:e[0-9]+)?)(m|k|M|G|T|Ki|Mi|Gi|Ti|)", str(text))
    if not match:
        raise ConfigError(f"quantity {text!r} is not a number with a suffix such as m or Gi")
    return float(match[1]) * _SUFFIXES[match[2]]


def describe(pod: Object, spec: Object, around: Surroundings) -> Container:
    """Return the container of an entry of `containers` or `initContainers`."""
    env = environment(pod, spec, around)
    words = [*spec.get("command", []), *spec.get("args", [])]
    if not words:
        raise ConfigError(f"container {spec['name']}: the image of the double has no command")
    security = security_of(pod, spec)
    limits = spec.get("resources", {}).get("limits", {})
    user = (security.get("runAsUser", IMAGE_USER[0]), security.get("runAsGroup", IMAGE_USER[1]))
    if security.get("runAsNonRoot") and user[0] == 0:
        raise ConfigError(f"container {spec['name']}: runAsNonRoot is set and the user is root")
    pod_security = pod["spec"].get("securityContext", {})
    groups = [*pod_security.get("supplementalGroups", []), pod_security.get("fsGroup")]
    return Container(
        name=f"{around.prefix}-{spec['name']}",
        command=tuple(expand(word, env) for word in words),
        env=env,
        mounts=(
            *around.mounts,
            *_scratch(around.scratch / spec["name"]),
            *_mounts(spec, env, around.volumes),
        ),
        log=around.logs / f"{spec['name']}.log",
        namespace=around.namespace,
        hostname=pod["metadata"]["name"],
        workdir=spec.get("workingDir", WORKDIR),
        user=user,
        groups=tuple(group for group in groups if group is not None),
        cpus=quantity(limits.get("cpu", 0)),
        memory_bytes=int(quantity(limits.get("memory", 0))),
        security=security,
    )


def security_of(pod: Object, spec: Object) -> Object:
    """Return a container's security context over the pod's."""
    shared = ("runAsUser", "runAsGroup", "runAsNonRoot", "seccompProfile")
    context: Object = pod["spec"].get("securityContext", {})
    merged = {k: v for k, v in context.items() if k in shared}
    merged.update(spec.get("securityContext", {}))
    return merged


def environment(pod: Object, spec: Object, around: Surroundings) -> dict[str, str]:
    """Return a container's variables; later ones may refer to earlier ones."""
    env = {"HOME": "/home/ray", "PATH": f"{CHECKOUT}/.venv/bin:/usr/local/bin:/usr/bin:/bin"}
    if around.api_address:
        host, _, port = around.api_address.rpartition(":")
        env |= {"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port}
        env["KUBERNETES_SERVICE_PORT_HTTPS"] = port
    for each in spec.get("envFrom", []):
        source, plural = each.get("secretRef"), "secrets"
        if source is None:
            source, plural = each["configMapRef"], "configmaps"
        prefix = each.get("prefix", "")
        data = _data(plural, source, around.lookup) or {}
        env |= {prefix + name: value.decode() for name, value in data.items()}
    for each in spec.get("env", []):
        if "valueFrom" in each:
            value = _value_from(each["valueFrom"], pod, spec, around)
        else:
            value = expand(each.get("value", ""), env)
        if value is not None:
            env[each["name"]] = value
    return env


def expand(text: str, env: Mapping[str, str]) -> str:
    """Replace `$(NAME)` by a variable; unknown names stay and `$$` is one dollar."""

    def value(match: re.Match[str]) -> str:
        return "$" if match[0] == "$$" else env.get(match[1], match[0])

    return re.sub(r"\$\$|\$\(([A-Za-z_][\w.-]*)\)", value, text)


def _value_from(source: Object, pod: Object, spec: Object, around: Surroundings) -> str | None:
    for kind, plural in (("secretKeyRef", "secrets"), ("configMapKeyRef", "configmaps")):
        if kind in source:
            data = _data(plural, source[kind], around.lookup)
            key = source[kind]["key"]
            if data is not None and key in data:
                return data[key].decode()
            if source[kind].get("optional"):
                return None
            raise ConfigError(f"{plural} {source[kind]['name']} has no key {key}")
    if "fieldRef" in source:
        return field_of(pod, source["fieldRef"]["fieldPath"], around.address)
    reference = source["resourceFieldRef"]
    kind, _, name = reference["resource"].partition(".")
    value = spec.get("resources", {}).get(kind, {}).get(name, os.cpu_count() or 1)
    return str(math.ceil(quantity(value) / quantity(reference.get("divisor") or 1)))


def field_of(pod: Object, path: str, address: str) -> str:
    """Return a field for the downward API, such as `metadata.labels['app']`."""
    if path in ("status.podIP", "status.hostIP"):
        return address
    match = re.fullmatch(r"metadata\.(labels|annotations)\['(.+)'\]", path)
    if match:
        return str(pod["metadata"].get(match[1], {}).get(match[2], ""))
    value: Any = pod
    for name in path.split("."):
        value = value.get(name, "")
    return str(value)


def data_of(obj: Object) -> dict[str, bytes]:
    """Return the files of a secret or config map."""
    binary = obj.get("data", {}) if obj["kind"] == "Secret" else obj.get("binaryData", {})
    data = {name: base64.b64decode(text) for name, text in binary.items()}
    if obj["kind"] == "ConfigMap":
        data |= {name: text.encode() for name, text in obj.get("data", {}).items()}
    return data


def _data(plural: str, source: Object, lookup: Lookup) -> dict[str, bytes] | None:
    obj = lookup(plural, source["name"])
    if obj is None and not source.get("optional"):
        raise ConfigError(f'{plural} "{source["name"]}" not found')
    return data_of(obj) if obj else None


def _scratch(folder: Path) -> list[Mount]:
    """Return the directories of an image that programs write to: home and temporary files."""
    mounts = []
    for name, target in (("home", "/home/ray"), ("tmp", "/tmp")):
        path = folder / name
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(0o1777)
        mounts.append(Mount(source=path, target=target))
    return mounts


def _mounts(spec: Object, env: Mapping[str, str], volumes: Mapping[str, Path]) -> list[Mount]:
    mounts = []
    for each in spec.get("volumeMounts", []):
        if each["name"] not in volumes:
            raise ConfigError(f"container {spec['name']} mounts {each['name']}, not a volume")
        source = volumes[each["name"]]
        part = each.get("subPath") or expand(each.get("subPathExpr", ""), env)
        if part:
            source = _below(source, part)
        target, read_only = each["mountPath"], each.get("readOnly", False)
        mounts.append(Mount(source=source, target=target, read_only=read_only))
    return mounts


def _below(volume: Path, part: str) -> Path:
    """Return a `subPath`, made with the volume's mode; links may not lead out of the volume."""
    path = (volume / part).resolve()
    if ".." in Path(part).parts or not path.is_relative_to(volume.resolve()):
        raise ConfigError(f"subPath {part!r} leads out of its volume")
    owner = volume.stat()
    for folder in (*reversed(path.parents), path):
        if folder.is_relative_to(volume.resolve()) and not folder.exists():
            folder.mkdir()
            folder.chmod(owner.st_mode & 0o7777)
            os.chown(folder, -1, owner.st_gid)
    return path


def image_mounts(empty: Path) -> tuple[Mount, ...]:
    """Return the mounts that make the machine's root an image with this checkout.

    `empty` is an empty directory for all to enter. It covers each home closed to other users.
    """
    needed = (CHECKOUT, (CHECKOUT / ".venv").resolve(), Path(sys.base_prefix).resolve())
    closed = {
        parent
        for path in needed
        for parent in (path, *path.parents)
        if not parent.stat().st_mode & 0o001
    }
    covers = [Mount(source=empty, target=str(path)) for path in sorted(closed)]
    inside = [Mount(source=path, target=str(path), read_only=True) for path in needed]
    return (*covers, *inside, Mount(source=CHECKOUT, target=WORKDIR, read_only=True))


def podman_arguments(container: Container, label: str) -> list[str]:
    """Return the arguments of `podman` that start a container in the background."""
    words = ["run", "--detach", "--runtime", "runc", "--name", container.name, "--label", label]
    words += ["--hostname", container.hostname, "--no-hosts", "--workdir", container.workdir]
    words += [
        "--network",
        f"ns:/run/netns/{container.namespace}" if container.namespace else "none",
    ]
    words += ["--user", f"{container.user[0]}:{container.user[1]}"]
    words += [word for group in container.groups for word in ("--group-add", str(group))]
    words += ["--log-driver", "k8s-file", "--log-opt", f"path={container.log}"]
    # Without the capability to raise limits, runc fails at podman's own defaults.
    for name, number, most in (("nofile", resource.RLIMIT_NOFILE, 65536), ("nproc", 6, 30000)):
        hard = resource.getrlimit(number)[1]
        limit = most if hard == resource.RLIM_INFINITY else min(most, hard)
        words += ["--ulimit", f"{name}={limit}:{limit}"]
    if container.cpus:
        words += ["--cpus", f"{min(container.cpus, os.cpu_count() or 1):g}"]
    if container.memory_bytes:
        words += ["--memory", str(container.memory_bytes)]
        words += ["--memory-swap", str(container.memory_bytes)]
    words += _security_arguments(container.security)
    words += [
        word for name, value in container.env.items() for word in ("--env", f"{name}={value}")
    ]
    words += [word for mount in container.mounts for word in ("--volume", _volume(mount))]
    return [*words, "--rootfs", "/:O", *container.command]


def _security_arguments(security: Object) -> list[str]:
    words = []
    if security.get("allowPrivilegeEscalation") is False:
        words += ["--security-opt", "no-new-privileges"]
    if security.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        words += ["--security-opt", "seccomp=unconfined"]
    if security.get("readOnlyRootFilesystem"):
        words += ["--read-only", "--read-only-tmpfs=false"]
    capabilities: Mapping[str, Sequence[str]] = security.get("capabilities", {})
    words += [word for name in capabilities.get("drop", []) for word in ("--cap-drop", name)]
    words += [word for name in capabilities.get("add", []) for word in ("--cap-add", name)]
    return words


def _volume(mount: Mount) -> str:
    return f"{mount.source}:{mount.target}" + (":ro" if mount.read_only else ":rw")
