"""Keep files of the working directory out of the imports of every process of a command.

A user's notes may be called `vllm.py`, `queue.py` or `json.py`. Python's console scripts do not
import them, but three mechanisms behind an installed command would:

- Ray puts the driver's working directory first on the path of every worker.
- `python -m` and `python -c` do the same; vLLM inspects models in this way, and
  multiprocessing starts processes in this way.
- Scripts put their own directory first, and Ray passes it on.

Directories of PYTHONPATH stay. So does the working directory of a submitted job
(`ray job submit --working-dir`): it is the job's code, and Ray adds it to PYTHONPATH.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from ssd_ray.cluster import ray_internals

SAFE = {"PYTHONSAFEPATH": "1"}
"""Environment by which Python processes leave the working directory out of their path."""


def keep_children_safe() -> None:
    """Make child processes leave the working directory out of their path."""
    for name, value in SAFE.items():
        os.environ.setdefault(name, value)


def job_config() -> Any:
    """Return a configuration of a Ray job whose workers get no directory of the driver's.

    One exception: in a checkout without an installation, this package's own directory is passed.
    """
    return ray_internals.job_config(_package_path)


def _package_path() -> list[str]:
    """Return the directory of this package if workers would not find it by themselves."""
    # Without -P, the first entry is the directory of the script or the working directory.
    implicit = 0 if sys.flags.safe_path else 1
    if PathFinder.find_spec("ssd_ray", sys.path[implicit:]) is not None or _has_finder():
        return []
    return [str(Path(__file__).resolve().parents[2])]


def _has_finder() -> bool:
    """Return True if a finder of an editable installation knows this package."""
    others = (finder for finder in sys.meta_path if finder is not PathFinder)
    return any(finder.find_spec("ssd_ray", None) is not None for finder in others)
