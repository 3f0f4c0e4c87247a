"""The lock for GPUs resolves for each Python, from recorded requirements."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LOCK = (ROOT / "requirements/gpu.lock").read_text()
REQUIRES = json.loads((ROOT / "requirements/gpu.requires.json").read_text())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PYTHONS = ("3.11", "3.12", "3.13")
_PIN = re.compile(
    r"^(?P<name>[a-z0-9-]+)==(?P<version>\S+)(?: ; (?P<marker>[^\\\n]+?))? \\\n"
    r"(?P<hashes>(?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)",
    re.MULTILINE,
)


def environment(python: str) -> dict[str, str]:
    return {
        "python_version": python,
        "python_full_version": f"{python}.9",
        "sys_platform": "linux",
        "os_name": "posix",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "extra": "",
    }


def pins(lock: str, python: str) -> dict[str, str]:
    """Return the versions that a lock installs on a Python."""
    versions: dict[str, str] = {}
    for pin in _PIN.finditer(lock):
        line = f"{pin['name']} ; {pin['marker']}" if pin["marker"] else pin["name"]
        marker = Requirement(line).marker
        if marker is None or marker.evaluate(environment(python)):
            assert pin["name"] not in versions, f"{pin['name']} has two versions on {python}"
            versions[pin["name"]] = pin["version"]
    return versions


def unmet(lock: str, python: str) -> tuple[list[str], set[str]]:
    """Return the requirements that a lock does not meet, and its pins that nothing requires."""
    versions = pins(lock, python)
    pending = [
        ("ssd-ray", line)
        for line in (*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["gpu"])
    ]
    problems: list[str] = []
    seen: set[tuple[str, str]] = set()
    while pending:
        origin, line = pending.pop()
        requirement = Requirement(line)
        name = canonicalize_name(requirement.name)
        if name not in versions:
            problems.append(f"{origin} requires {line}, which is not locked")
            continue
        # Pins may be pre-releases, and a pin was chosen on purpose.
        if not requirement.specifier.contains(versions[name], prereleases=True):
            problems.append(f"{origin} requires {line}, and {versions[name]} is locked")
        for extra in {"", *requirement.extras}:
            if (name, extra) not in seen:
                seen.add((name, extra))
                pending += [(name, each) for each in REQUIRES[name] if _holds(each, extra, python)]
    return sorted(set(problems)), versions.keys() - {name for name, _ in seen}


def _holds(line: str, extra: str, python: str) -> bool:
    marker = Requirement(line).marker
    if marker is None:
        return not extra
    return marker.evaluate({**environment(python), "extra": extra})


@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_resolves(python: str) -> None:
    problems, unused = unmet(LOCK, python)
    assert problems == []
    assert unused == set()
    assert len(pins(LOCK, python)) > 200


@pytest.mark.parametrize("name", ["torch", "vllm", "kernels", "nvidia-ml-py", "numpy", "triton"])
def test_a_lock_without_a_pin_does_not_resolve(name: str) -> None:
    (pin,) = [pin for pin in _PIN.finditer(LOCK) if pin["name"] == name][:1]
    problems, _ = unmet(LOCK.replace(pin[0], ""), "3.11")
    assert any(f"requires {name}" in problem for problem in problems)


def test_a_lock_with_another_version_does_not_resolve() -> None:
    problems, _ = unmet(LOCK.replace("transformers==5.19.0", "transformers==5.20.0"), "3.12")
    assert any("5.20.0 is locked" in problem for problem in problems)


def test_every_line_is_a_pin_with_hashes_and_no_address() -> None:
    rest = _PIN.sub("", LOCK).splitlines()
    assert [line for line in rest if line and not line.startswith("#")] == []
    assert "://" not in LOCK
    assert "--index" not in LOCK


def test_the_lock_is_for_cuda_13_and_the_pinned_packages() -> None:
    versions = pins(LOCK, "3.11")
    assert versions["vllm"] == "0.32.0"
    assert "nvidia-nccl-cu13" in versions
    assert (
        versions["torch"].split("+")[0]
        == re.search(
            r'^VERSION = "(.+)"', (ROOT / "requirements/torch_cpu.py").read_text(), re.MULTILINE
        )[1]
    )  # type: ignore[index]


def test_the_kernels_package_is_one_that_transformers_loads() -> None:
    from transformers.utils.import_utils import KERNELS_MAX_VERSION, KERNELS_MIN_VERSION

    allowed = SpecifierSet(f">={KERNELS_MIN_VERSION},<{KERNELS_MAX_VERSION}")
    assert pins(LOCK, "3.11")["kernels"] in allowed
