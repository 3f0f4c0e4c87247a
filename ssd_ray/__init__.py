"""Simple self-distillation of language models: the public names of the package.

    import ssd_ray
    recipe = ssd_ray.load_recipe("quickstart", ["seed=1"])
    (report,) = ssd_ray.Run(recipe, Path("runs/mine"), ssd_ray.LineProgress()).make()

Names load on first use: importing the package costs nothing.
"""

from __future__ import annotations

import os
import sys

# `python -m ssd_ray` puts the working directory first on the import path: a file there, named like
# a library, would be imported instead. The entry stays only if the package itself lies in it.
_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if sys.argv[:1] == ["-m"] and not sys.flags.safe_path and os.path.abspath(sys.path[0]) != _ROOT:
    del sys.path[0]

import importlib  # noqa: E402
from typing import Any  # noqa: E402

__all__ = [
    "InfrastructureError",
    "LineProgress",
    "Recipe",
    "Run",
    "UserError",
    "load_recipe",
    "read_rows",
]

_HOMES = {
    "load_recipe": ("ssd_ray.recipes", "load"),
    "Recipe": ("ssd_ray.config", "Recipe"),
    "Run": ("ssd_ray.pipeline.run", "Run"),
    "LineProgress": ("ssd_ray.progress", "LineProgress"),
    "read_rows": ("ssd_ray.artifacts.shards", "read_rows"),
    "UserError": ("ssd_ray.errors", "UserError"),
    "InfrastructureError": ("ssd_ray.errors", "InfrastructureError"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ssd_ray' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(importlib.import_module(module), attribute)
