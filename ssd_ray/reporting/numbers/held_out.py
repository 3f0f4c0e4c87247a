"""Held-out measurements of a training: likelihood and floor, distance to the base, entropy.

Reads `heldout.jsonl` in the directory of a checkpoint into the `held_out` part of scores.json. The
measures are defined in `ssd_ray/training/observe/distributions.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssd_ray.errors import UserError

SHOWN = (
    "nll",
    "floor",
    "cross_entropy",
    "kl_to_base",
    "entropy",
    "entropy_gate",
    "entropy_head",
    "entropy_tail",
    "kept_mass",
    "outside_support",
)


def held_out(checkpoint: Path) -> dict[str, Any] | None:
    """Return measurements as columns by step, and their number of tokens; None without any.

    Raises:
        UserError: a line of the file is not a measurement.
    """
    path = checkpoint / "heldout.jsonl"
    if not path.exists() or not path.read_text().strip():
        return None
    # A step repeated after a crash counts once, as last written.
    by_step: dict[int, Mapping[str, Any]] = {}
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            record = json.loads(line)
            values = {name: float(record[name]) for name in (*SHOWN, "tokens")}
            by_step[int(record["step"])] = values
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}:{number} is not a measurement; delete {path.parent} and train again"
            ) from error
    steps = sorted(by_step)
    columns = {name: [by_step[step][name] for step in steps] for name in SHOWN}
    return {"tokens": int(by_step[steps[0]]["tokens"]), "step": steps, **columns}
