"""A pod's manifest becomes the environment, mounts and arguments of podman that it states."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.kube.containers import (
    ConfigError,
    Mount,
    Surroundings,
    describe,
    expand,
    image_mounts,
    podman_arguments,
    quantity,
)
from tests.kube.kubelet import log_lines, names
from tests.kube.volumes import Places, make_volumes

Object = dict[str, Any]
OBJECTS: dict[tuple[str, str], Object] = {
    ("secrets", "token"): {"kind": "Secret", "data": {"token": "czNjcmV0"}},
    ("configmaps", "settings"): {"kind": "ConfigMap", "data": {"A": "1", "B": "2"}},
    ("persistentvolumeclaims", "shared"): {"kind": "PersistentVolumeClaim"},
}


def _lookup(plural: str, name: str) -> Object | None:
    return OBJECTS.get((plural, name))


def _around(folder: Path, **volumes: Path) -> Surroundings:
    return Surroundings(
        prefix="ssdk77-abc",
        namespace="ssdk77-abc",
        address="10.89.77.5",
        api_address="10.89.77.1:6443",
        lookup=_lookup,
        volumes=volumes,
        mounts=(),
        scratch=folder / "scratch",
        logs=folder / "logs",
    )


def _pod(container: Object | None = None, **spec: object) -> Object:
    main = {"name": "main", "command": ["run"], **(container or {})}
    return {
        "metadata": {"name": "pod", "namespace": "default", "labels": {"role": "head"}},
        "spec": {"nodeName": "node-1", "containers": [main], **spec},
    }


def _arguments(folder: Path, pod: Object) -> list[str]:
    container = describe(pod, pod["spec"]["containers"][0], _around(folder))
    return podman_arguments(container, "label=x")


def _value(words: list[str], option: str) -> list[str]:
    return [words[index + 1] for index, word in enumerate(words) if word == option]


@pytest.mark.parametrize(
    ("text", "value"), [("500m", 0.5), ("2Gi", 2**31), ("4", 4), (3, 3), ("1k", 1000), ("1e3", 1e3)]
)
def test_quantities(text: str | int, value: float) -> None:
    assert quantity(text) == value


def test_a_quantity_without_a_number_is_refused() -> None:
    with pytest.raises(ConfigError, match="'much' is not a number"):
        quantity("much")


def test_limits_and_identity_become_arguments(tmp_path: Path) -> None:
    limits = {"cpu": "500m", "memory": "64Mi"}
    security = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"], "add": ["CHOWN"]},
        "seccompProfile": {"type": "RuntimeDefault"},
        "readOnlyRootFilesystem": True,
    }
    pod = _pod(
        {"resources": {"limits": limits}, "securityContext": security},
        securityContext={"runAsUser": 1001, "runAsGroup": 7, "fsGroup": 100},
    )
    words = _arguments(tmp_path, pod)
    assert _value(words, "--user") == ["1001:7"]
    assert _value(words, "--group-add") == ["100"]
    assert _value(words, "--cpus") == ["0.5"]
    assert _value(words, "--memory") == [str(64 * 2**20)]
    assert _value(words, "--security-opt") == ["no-new-privileges"]
    assert _value(words, "--cap-drop") == ["ALL"]
    assert _value(words, "--cap-add") == ["CHOWN"]
    assert "--read-only" in words
    assert words[-3:] == ["--rootfs", "/:O", "run"]


def test_without_a_profile_there_is_no_filter(tmp_path: Path) -> None:
    assert _value(_arguments(tmp_path, _pod()), "--security-opt") == ["seccomp=unconfined"]


def test_more_processors_than_the_machine_has_are_no_limit(tmp_path: Path) -> None:
    words = _arguments(tmp_path, _pod({"resources": {"limits": {"cpu": "512"}}}))
    assert _value(words, "--cpus") == [f"{os.cpu_count()}"]


def test_root_is_refused_where_it_must_not_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="runAsNonRoot is set and the user is root"):
        _arguments(tmp_path, _pod(securityContext={"runAsNonRoot": True, "runAsUser": 0}))


def test_variables_come_from_everywhere(tmp_path: Path) -> None:
    pod = _pod(
        {
            "envFrom": [{"configMapRef": {"name": "settings"}, "prefix": "S_"}],
            "env": [
                {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "token", "key": "token"}}},
                {
                    "name": "ABSENT",
                    "valueFrom": {"secretKeyRef": {"name": "no", "key": "k", "optional": True}},
                },
                {
                    "name": "ROLE",
                    "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['role']"}},
                },
                {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
                {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                {
                    "name": "CPUS",
                    "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}},
                },
                {"name": "BOTH", "value": "$(ROLE)-$(IP)-$$(ROLE)-$(NONE)"},
            ],
            "resources": {"limits": {"cpu": "1500m"}},
        }
    )
    env = describe(pod, pod["spec"]["containers"][0], _around(tmp_path)).env
    assert env["S_A"] == "1"
    assert env["TOKEN"] == "s3cret"
    assert "ABSENT" not in env
    assert (env["ROLE"], env["NODE"], env["IP"]) == ("head", "node-1", "10.89.77.5")
    assert env["CPUS"] == "2"
    assert env["BOTH"] == "head-10.89.77.5-$(ROLE)-$(NONE)"
    assert env["KUBERNETES_SERVICE_PORT_HTTPS"] == "6443"


def test_a_missing_secret_is_named(tmp_path: Path) -> None:
    source = {"secretKeyRef": {"name": "absent", "key": "token"}}
    with pytest.raises(ConfigError, match='secrets "absent" not found'):
        _arguments(tmp_path, _pod({"env": [{"name": "X", "valueFrom": source}]}))


def test_a_part_of_a_volume_is_mounted_read_only(tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    volume.chmod(0o770)
    mount = {"name": "v", "mountPath": "/data", "subPath": "runs/one", "readOnly": True}
    pod = _pod({"volumeMounts": [mount]})
    container = describe(pod, pod["spec"]["containers"][0], _around(tmp_path, v=volume))
    part = Mount(source=volume / "runs/one", target="/data", read_only=True)
    assert container.mounts[-1] == part
    assert part.source.stat().st_mode & 0o777 == 0o770
    words = podman_arguments(container, "label=x")
    assert _value(words, "--volume")[-1] == f"{part.source}:/data:ro"


def test_a_part_may_not_lead_out_of_its_volume(tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    (volume / "link").symlink_to(tmp_path)
    for part in ("../other", "link"):
        pod = _pod({"volumeMounts": [{"name": "v", "mountPath": "/data", "subPath": part}]})
        with pytest.raises(ConfigError, match="leads out of its volume"):
            describe(pod, pod["spec"]["containers"][0], _around(tmp_path, v=volume))


def test_volumes_are_directories(tmp_path: Path) -> None:
    pod = _pod(
        volumes=[
            {"name": "empty", "emptyDir": {}},
            {"name": "secret", "secret": {"secretName": "token"}},
            {
                "name": "map",
                "configMap": {"name": "settings", "items": [{"key": "A", "path": "a"}]},
            },
            {"name": "claim", "persistentVolumeClaim": {"claimName": "shared"}},
        ]
    )
    places = Places(pod=tmp_path / "pod", claims=tmp_path / "claims", mounts_memory=False)
    volumes = make_volumes(pod, places, _lookup)
    assert volumes["empty"].stat().st_mode & 0o777 == 0o777
    assert (volumes["secret"] / "token").read_text() == "s3cret"
    assert [path.name for path in volumes["map"].iterdir()] == ["a"]
    assert volumes["claim"] == tmp_path / "claims/default/shared"
    unknown = _pod(volumes=[{"name": "h", "hostPath": {"path": "/"}}])
    with pytest.raises(ConfigError, match="no volumes of kind hostPath"):
        make_volumes(unknown, places, _lookup)


def test_references_in_words() -> None:
    assert expand("$(A)/$$(A)/$(B)", {"A": "x"}) == "x/$(A)/$(B)"


def test_the_image_has_the_checkout_and_the_interpreter(tmp_path: Path) -> None:
    targets = [mount.target for mount in image_mounts(tmp_path)]
    assert "/opt/ssd_ray" in targets
    assert all(mount.read_only for mount in image_mounts(tmp_path) if mount.source != tmp_path)


def test_a_log_is_read_without_its_marks(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("t stdout F one two\nt stdout P par\nt stderr F tial\nt stdout F \n")
    assert log_lines(log, is_cri=True) == ["one two", "partial", ""]


def test_a_service_has_the_address_of_its_pod() -> None:
    pod = _pod()
    pod["metadata"]["creationTimestamp"] = "2026"
    pod["status"] = {"podIP": "10.0.0.2"}
    service = {
        "metadata": {"name": "head-svc", "namespace": "default"},
        "spec": {"selector": {"role": "head"}},
    }
    assert names("default", [pod], [service]) == {
        "pod": "10.0.0.2",
        "head-svc": "10.0.0.2",
        "head-svc.default.svc": "10.0.0.2",
        "head-svc.default.svc.cluster.local": "10.0.0.2",
    }
    assert names("other", [pod], [service]).keys() == {
        "head-svc.default.svc",
        "head-svc.default.svc.cluster.local",
    }
