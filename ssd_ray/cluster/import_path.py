"""Keep what lies in the working directory out of the imports of every process of a command.

A user's notes are called `vllm.py`, `queue.py` or `json.py`. Python's own console scripts do not
import them, but three mechanisms behind an installed command would:

- Ray puts the driver's working directory first on the path of every worker.
- `python -m` and `python -c` do the same: vLLM inspects models so, multiprocessing starts so.
- Scripts put their own directory first, and Ray passes that on as well.

What PYTHONPATH names is respected, and so is the working directory of a submitted job
(`ray job submit --working-dir`), which Ray puts there: it is the job's code.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from ssd_ray.cluster import ray_internals

SAFE = {"PYTHONSAFEPATH": "1"}
"""Environment of Python processes that are to leave the working directory out of their path."""


def keep_children_safe() -> None:
    """Have processes that this one starts leave the working directory out of their path."""
    for name, value in SAFE.items():
        os.environ.setdefault(name, value)


def job_config() -> Any:
    """Return a configuration of a Ray job whose workers get no directory of the driver's.

    The exception is a package that only a script's or the working directory provides, as in a
    checkout that is not installed.
    """
    return ray_internals.job_config(_package_path)


def _package_path() -> list[str]:
    """Return the directory of this package where workers would not find it by themselves."""
    implicit = 0 if sys.flags.safe_path else 1
    if PathFinder.find_spec("ssd_ray", sys.path[implicit:]) is not None or _has_finder():
        return []
    return [str(Path(__file__).resolve().parents[2])]


def _has_finder() -> bool:
    """Return True if a finder of an editable installation knows this package."""
    others = (finder for finder in sys.meta_path if finder is not PathFinder)
    return any(finder.find_spec("ssd_ray", None) is not None for finder in others)
