"""The Pod Security Standard `restricted`, for the spec of a pod.

Source: kubernetes.io, Concepts, Security, Pod Security Standards; the profile includes `baseline`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Object = dict[str, Any]
Finding = tuple[str, str]
"""A field and the reason of its refusal."""
_VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim",
    "projected", "secret", "image",
}  # fmt: skip
_SYSCTLS = {
    "kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_unprivileged_port_start", "net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range",
    "net.ipv4.ip_local_reserved_ports", "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl", "net.ipv4.tcp_keepalive_probes",
}  # fmt: skip
_SELINUX_TYPES = {"", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}
_KINDS = ("initContainers", "containers", "ephemeralContainers")


def restricted(spec: Object) -> list[Finding]:
    """Return every finding against a pod; an empty list admits it."""
    shared = spec.get("securityContext") or {}
    findings = list(_of_pod(spec, shared))
    for kind in _KINDS:
        for index, container in enumerate(spec.get(kind) or ()):
            for field, reason in _of_container(container, shared):
                name = container.get("name", index)
                findings.append((f"spec.{kind}[{index}].{field}", f"{reason} (container {name})"))
    return findings


def _of_pod(spec: Object, shared: Object) -> Iterator[Finding]:
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(field):
            yield f"spec.{field}", "must not be set"
    for index, volume in enumerate(spec.get("volumes") or ()):
        for kind in set(volume) - {"name"} - _VOLUMES:
            yield f"spec.volumes[{index}].{kind}", "is no allowed kind of volume"
    for index, sysctl in enumerate(shared.get("sysctls") or ()):
        if sysctl["name"] not in _SYSCTLS:
            yield f"spec.securityContext.sysctls[{index}]", f"{sysctl['name']} is not safe"
    for field, reason in _shared_fields(shared):
        yield f"spec.securityContext.{field}", reason
    if shared.get("runAsNonRoot") is False:
        yield "spec.securityContext.runAsNonRoot", "must not be false"


def _shared_fields(context: Object) -> Iterator[Finding]:
    """Fields of a pod's and of a container's security context with the same rule."""
    if context.get("runAsUser") == 0:
        yield "runAsUser", "must not be 0"
    if (context.get("windowsOptions") or {}).get("hostProcess"):
        yield "windowsOptions.hostProcess", "must not be set"
    options = context.get("seLinuxOptions") or {}
    if options.get("type", "") not in _SELINUX_TYPES:
        yield "seLinuxOptions.type", "is not allowed"
    for field in ("user", "role"):
        if options.get(field):
            yield f"seLinuxOptions.{field}", "must not be set"
    profile = (context.get("appArmorProfile") or {}).get("type", "RuntimeDefault")
    if profile not in ("RuntimeDefault", "Localhost"):
        yield "appArmorProfile.type", f"{profile} is not allowed"


def _of_container(container: Object, shared: Object) -> Iterator[Finding]:
    context = container.get("securityContext") or {}
    where = "securityContext"
    for field, reason in _shared_fields(context):
        yield f"{where}.{field}", reason
    if context.get("privileged"):
        yield f"{where}.privileged", "must not be set"
    if context.get("allowPrivilegeEscalation") is not False:
        yield f"{where}.allowPrivilegeEscalation", "must be false"
    if context.get("runAsNonRoot", shared.get("runAsNonRoot")) is not True:
        yield f"{where}.runAsNonRoot", "must be true here or for the pod"
    if context.get("procMount", "Default") != "Default":
        yield f"{where}.procMount", "must be Default"
    yield from _profiles(context, shared)
    if any(port.get("hostPort") for port in container.get("ports") or ()):
        yield "ports", "must have no hostPort"
    probes = ("livenessProbe", "readinessProbe", "startupProbe")
    for probe in (container.get(name) or {} for name in probes):
        for action in ("httpGet", "tcpSocket"):
            if (probe.get(action) or {}).get("host"):
                yield action, "must name no host"


def _profiles(context: Object, shared: Object) -> Iterator[Finding]:
    """Capabilities and the filter of system calls."""
    where = "securityContext"
    capabilities = context.get("capabilities") or {}
    if "ALL" not in (capabilities.get("drop") or ()):
        yield f"{where}.capabilities.drop", "must have ALL"
    if set(capabilities.get("add") or ()) - {"NET_BIND_SERVICE"}:
        yield f"{where}.capabilities.add", "may have NET_BIND_SERVICE alone"
    profile = context.get("seccompProfile") or shared.get("seccompProfile") or {}
    if profile.get("type") not in ("RuntimeDefault", "Localhost"):
        yield f"{where}.seccompProfile.type", "must be RuntimeDefault or Localhost"
