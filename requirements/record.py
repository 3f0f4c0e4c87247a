"""Record the requirements of each package of gpu.lock, for `make lock`: gpu.requires.json.

The test of the lock resolves it from this record, without a network or a wheel. Requirements come
from the metadata in uv's cache, where the resolution has just put them. Those of other platforms,
and of extras that no package asks for, are left out.
"""

from __future__ import annotations

import email
import json
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import msgpack
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HERE = Path(__file__).parent
PYTHONS = ("3.11", "3.12", "3.13")


def environments() -> list[dict[str, str]]:
    """Return the environments of the lock: CPython on Linux and x86-64."""
    fixed = {
        "sys_platform": "linux",
        "os_name": "posix",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
    }
    return [
        {**fixed, "python_version": python, "python_full_version": f"{python}.9"}
        for python in PYTHONS
    ]


def cached(cache: Path) -> dict[tuple[str, str], list[str]]:
    """Return requirements by name and version of every wheel or source in uv's cache."""
    requirements = {}
    for path in cache.glob("wheels-*/pypi/*/*.msgpack"):
        with path.open("rb") as handle:
            # Name, version, requirements; the rest of the file is uv's own.
            name, version, lines, *_ = next(iter(msgpack.Unpacker(handle, strict_map_key=False)))
        requirements[name, str(version)] = lines
    for path in cache.glob("sdists-*/pypi/*/*/*/src/PKG-INFO"):
        fields = email.message_from_string(path.read_text())
        key = canonicalize_name(fields["Name"]), fields["Version"]
        requirements[key] = fields.get_all("Requires-Dist") or []
    return requirements


def needed(requires: dict[str, list[str]]) -> dict[str, list[str]]:
    """Return the requirements that hold somewhere for the extras that are asked for."""
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]
    pending = [*project["dependencies"], *project["optional-dependencies"]["gpu"]]
    kept: dict[str, dict[str, None]] = {name: {} for name in requires}
    seen: set[tuple[str, str]] = set()
    while pending:
        requirement = Requirement(pending.pop())
        name = canonicalize_name(requirement.name)
        for extra in {"", *requirement.extras} - {extra for other, extra in seen if other == name}:
            seen.add((name, extra))
            lines = list(_holding(requires.get(name, ()), extra))
            kept.setdefault(name, {}).update(dict.fromkeys(lines))
            pending += lines
    return {name: sorted(lines) for name, lines in kept.items()}


def _holding(lines: list[str] | tuple[str, ...], extra: str) -> Iterator[str]:
    for line in lines:
        marker = Requirement(line).marker
        if marker is None or any(
            marker.evaluate({**each, "extra": extra}) for each in environments()
        ):
            yield line


def main() -> None:
    """Write the record."""
    cache = Path(
        subprocess.run(
            ["uv", "cache", "dir"], capture_output=True, text=True, check=True
        ).stdout.strip()
    )
    known = cached(cache)
    pins = re.findall(r"^([\w.-]+)==(\S+)", (HERE / "gpu.lock").read_text(), re.MULTILINE)
    # A package with another version for another Python has the requirements of both.
    requires: dict[str, list[str]] = {}
    for name, version in pins:
        requires.setdefault(name, []).extend(known[name, version])
    lines = [f"{json.dumps(name)}: {json.dumps(each)}" for name, each in needed(requires).items()]
    (HERE / "gpu.requires.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
