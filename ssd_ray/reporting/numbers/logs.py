"""Logs of a training: the loss, and the measures of samples that were not trained on.

Reads loss.jsonl and heldout.jsonl in the directory of a checkpoint; writes nothing. A step repeated
after a crash counts once, as last written. The measures are defined in
`ssd_ray/training/observe/distributions.py`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from ssd_ray.errors import UserError

Series = tuple[float | None, ...]
"""A value by step; None if it is not finite."""


@dataclass(frozen=True, kw_only=True)
class Loss:
    """The loss of each optimizer step."""

    step: tuple[int, ...]
    loss: Series


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Measures of held-out samples by step, in nats; the last two are shares."""

    tokens: int
    """Answer tokens measured at each step."""
    step: tuple[int, ...]
    nll: Series
    floor: Series
    cross_entropy: Series
    kl_to_base: Series
    entropy: Series
    entropy_gate: Series
    entropy_head: Series
    entropy_tail: Series
    kept_mass: Series
    outside_support: Series


MEASURES = tuple(field.name for field in fields(HeldOut) if field.name not in ("tokens", "step"))


def loss(checkpoint: Path) -> Loss | None:
    """Return the loss of each step; None if it was not recorded.

    Raises:
        UserError: a line of the file is not a JSON object with `step` and `loss`.
    """
    path = checkpoint / "loss.jsonl"
    if not path.exists():
        return None
    by_step = _by_step(path, ("loss",), "a line with step and loss")
    steps = sorted(by_step)
    return Loss(step=tuple(steps), loss=tuple(by_step[step]["loss"] for step in steps))


def held_out(checkpoint: Path) -> HeldOut | None:
    """Return the measures by step; None without any.

    Raises:
        UserError: a line of the file is not a measurement.
    """
    path = checkpoint / "heldout.jsonl"
    if not path.exists() or not path.read_text().strip():
        return None
    by_step = _by_step(path, (*MEASURES, "tokens"), "a measurement")
    steps = sorted(by_step)
    columns = {name: tuple(by_step[step][name] for step in steps) for name in MEASURES}
    return HeldOut(tokens=int(by_step[steps[0]]["tokens"]), step=tuple(steps), **columns)


def _by_step(path: Path, columns: Sequence[str], content: str) -> dict[int, dict[str, float]]:
    """Return columns of a log by step; `content` names what a line has to be."""
    by_step: dict[int, dict[str, float]] = {}
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            record = json.loads(line)
            values = {name: float(record[name]) for name in columns}
            by_step[int(record["step"])] = values
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}:{number} is not {content}; delete {path.parent} and train again"
            ) from error
    return by_step
