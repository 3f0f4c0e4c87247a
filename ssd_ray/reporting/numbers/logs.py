"""Logs of a training: the loss, and the measures of samples that were not trained on.

Reads loss.jsonl and heldout.jsonl in the directory of a checkpoint; writes nothing. A step repeated
after a crash counts once, as last written. The measures are defined in
`ssd_ray/training/observe/distributions.py`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
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
    """Measures of held-out samples by step, in nats; masses and removed parts are shares.

    The columns with a default are missing in logs of earlier versions.
    """

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
    support_compression: Series | None = None
    reshaping: Series | None = None
    alignment: Series | None = None
    constant: Series | None = None
    gap_closed: Series | None = None
    """Share of the way from the base to the sampling distribution; None if the two are equal."""
    temperature_reached: Series | None = None
    """None if no temperature of the base fits."""
    tail_removed: Series | None = None
    """Share of the base's mass outside of the support; None if nothing is outside."""
    sampling_temperature: float | None = None
    """T_train, for comparison with the temperature reached."""


_COLUMNS = [
    field
    for field in fields(HeldOut)
    if field.name not in ("tokens", "step", "sampling_temperature")
]
MEASURES = tuple(field.name for field in _COLUMNS if field.default is MISSING)
LATER_MEASURES = tuple(field.name for field in _COLUMNS if field.default is not MISSING)


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


def held_out(checkpoint: Path, temperature: float | None = None) -> HeldOut | None:
    """Return the measures by step; None without any.

    `temperature` is that of the samples.

    Raises:
        UserError: a line of the file is not a measurement.
    """
    path = checkpoint / "heldout.jsonl"
    if not path.exists() or not path.read_text().strip():
        return None
    by_step = _by_step(path, (*MEASURES, "tokens"), "a measurement", LATER_MEASURES)
    steps = sorted(by_step)
    columns = {
        name: tuple(by_step[step].get(name) for step in steps)
        for name in (*MEASURES, *LATER_MEASURES)
        if any(name in by_step[step] for step in steps)
    }
    tokens = by_step[steps[0]]["tokens"]
    return HeldOut(
        tokens=int(tokens or 0), step=tuple(steps), sampling_temperature=temperature, **columns
    )


def _by_step(
    path: Path, columns: Sequence[str], content: str, optional: Sequence[str] = ()
) -> dict[int, dict[str, float | None]]:
    """Return columns of a log by step; `content` names what a line has to be.

    Optional columns may be missing or null.
    """
    by_step: dict[int, dict[str, float | None]] = {}
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            record = json.loads(line)
            values: dict[str, float | None] = {name: float(record[name]) for name in columns}
            for name in set(optional) & set(record):
                values[name] = None if record[name] is None else float(record[name])
            by_step[int(record["step"])] = values
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}:{number} is not {content}; delete {path.parent} and train again"
            ) from error
    return by_step
