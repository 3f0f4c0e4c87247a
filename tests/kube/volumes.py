"""A pod's volumes as host directories: emptyDir, memory, secrets, config maps, claims."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.kube.containers import ConfigError, Lookup, data_of, field_of, quantity

Object = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Places:
    """Directories that the kubelet keeps volumes in."""

    pod: Path
    """Of one pod, removed with it."""
    claims: Path
    """Of persistent volume claims, kept until the claim goes."""
    mounts_memory: bool
    """False for plain processes: memory volumes are directories then."""


def make_volumes(pod: Object, places: Places, lookup: Lookup) -> dict[str, Path]:
    """Make a pod's volumes. Return their directories by name."""
    group = pod["spec"].get("securityContext", {}).get("fsGroup")
    volumes = {}
    for volume in pod["spec"].get("volumes", []):
        path = places.pod / "volumes" / volume["name"]
        if "persistentVolumeClaim" in volume:
            claim = volume["persistentVolumeClaim"]["claimName"]
            path = claim_directory(pod["metadata"]["namespace"], claim, places, lookup)
        elif "emptyDir" in volume:
            _empty_directory(path, volume["emptyDir"] or {}, places)
        else:
            _write_files(path, _files(volume, pod, lookup))
        if group is not None and os.geteuid() == 0:
            _give_to_group(path, group)
        volumes[volume["name"]] = path
    return volumes


def claim_directory(namespace: str, claim: str, places: Places, lookup: Lookup) -> Path:
    """Return the directory of a claim, which has to exist as an object."""
    if lookup("persistentvolumeclaims", claim) is None:
        raise ConfigError(f'persistentvolumeclaim "{claim}" not found')
    path = places.claims / namespace / claim
    if not path.exists():
        path.mkdir(parents=True)
        path.chmod(0o777)
    return path


def _empty_directory(path: Path, source: Object, places: Places) -> None:
    if path.is_dir():
        return
    path.mkdir(parents=True)
    path.chmod(0o777)
    if source.get("medium") == "Memory" and places.mounts_memory:
        size = f",size={int(quantity(source['sizeLimit']))}" if "sizeLimit" in source else ""
        arguments = ["mount", "-t", "tmpfs", "-o", f"mode=1777{size}", "tmpfs", str(path)]
        subprocess.run(arguments, check=True, capture_output=True)


def _files(volume: Object, pod: Object, lookup: Lookup) -> dict[str, bytes]:
    if "projected" in volume:
        files: dict[str, bytes] = {}
        for source in volume["projected"]["sources"]:
            files |= _files(source, pod, lookup)
        return files
    if "downwardAPI" in volume:
        items = volume["downwardAPI"]["items"]
        return {
            item["path"]: field_of(pod, item["fieldRef"]["fieldPath"], "").encode()
            for item in items
        }
    for kind, plural, key in (
        ("secret", "secrets", "secretName"),
        ("configMap", "configmaps", "name"),
    ):
        if kind in volume:
            source = volume[kind]
            name = source.get(key) or source["name"]
            obj = lookup(plural, name)
            if obj is None and not source.get("optional"):
                raise ConfigError(f'{plural} "{name}" not found')
            data = data_of(obj) if obj else {}
            if "items" not in source:
                return data
            return {item["path"]: data[item["key"]] for item in source["items"]}
    kinds = ", ".join(sorted(volume.keys() - {"name"}))
    raise ConfigError(f"volume {volume.get('name')}: the double has no volumes of kind {kinds}")


def _write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.parent.chmod(0o755)
        path.write_bytes(data)
        path.chmod(0o644)


def _give_to_group(path: Path, group: int) -> None:
    """Change the volume's root only, as under `fsGroupChangePolicy: OnRootMismatch`."""
    if path.stat().st_gid != group:
        os.chown(path, -1, group)
        path.chmod(path.stat().st_mode & 0o7777 | 0o2770)


def unmount_below(folder: Path) -> None:
    """Unmount the memory volumes of a folder, the last one first."""
    lines = Path("/proc/self/mounts").read_text().splitlines()
    points = [line.split()[1].replace("\\040", " ") for line in lines]
    for point in reversed(points):
        if Path(point).is_relative_to(folder):
            subprocess.run(["umount", "--lazy", point], check=True, capture_output=True)


def remove_folder(folder: Path) -> None:
    """Remove a pod's folder with its volumes."""
    unmount_below(folder)
    shutil.rmtree(folder, ignore_errors=True)
