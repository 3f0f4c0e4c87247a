"""Probe of one round: the first base and a student on one set of contexts.

The contexts are the held-out samples of the first round, so rounds are comparable. Positions are
forks by the support of the first base. Reads a probe's tables.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssd_ray.analysis.collapse import ProbeState
from ssd_ray.artifacts import files
from ssd_ray.artifacts.shards import read_table
from ssd_ray.errors import UserError
from ssd_ray.progress import Progress
from ssd_ray.reporting.numbers.probe_groups import Group
from ssd_ray.standalone.probe import Choices, ProbeJob, probe
from ssd_ray.standalone.probe_models import recipe_of

_LEAST_MASS = 1e-12
_STATES = "states.json"
"""States of a complete probe, so that a finished round is not measured again."""


def probe_round(
    first: Path, run: Path, out: Path, progress: Progress
) -> tuple[ProbeState, ProbeState]:
    """Return the states of the first base and of the student of a run.

    Args:
        first: directory of the first round.
        run: directory of the round, or of the first one.
        out: directory of the probe.
        progress: shows the forward passes.

    Raises:
        UserError: as for `probe`, or no position of the contexts is a fork.
    """
    key = _key(first, run)
    record = out / _STATES
    if record.exists() and (known := files.read_json(record)).get("key") == key:
        return ProbeState(**known["base"]), ProbeState(**known["student"])
    states = _measure(first, run, out, progress)
    base, student = (asdict(each) for each in states)
    files.write_atomic(record, json.dumps({"key": key, "base": base, "student": student}))
    return states


def _key(first: Path, run: Path) -> str:
    """Return a digest of both models and of the contexts, from their manifests."""
    manifests = (first / "checkpoint", run / "checkpoint", first / "dataset")
    sha = hashlib.sha256()
    for directory in manifests:
        sha.update((directory / "manifest.json").read_bytes())
    return sha.hexdigest()[:16]


def _measure(
    first: Path, run: Path, out: Path, progress: Progress
) -> tuple[ProbeState, ProbeState]:
    sample = recipe_of(first).sample
    models = (str(first),) if run == first else (str(first), str(run / "checkpoint"))
    job = ProbeJob(
        models=models,
        contexts=(str(first),),
        out=out,
        # Survivors are counted at the decoding of the samples.
        choices=Choices(
            eval_temperature=sample.temperature,
            eval_top_k=sample.top_k or 0,
            eval_top_p=sample.top_p,
            temperatures=(sample.temperature,),
        ),
    )
    numbers = probe(job, progress)
    base, student = numbers.models[0], numbers.models[-1]
    forks = next((group for group in numbers.views.types if group.name == "fork"), None)
    if forks is None or not forks.positions:
        raise UserError(
            f"the held-out samples of {first} have no fork at the decoding of the samples: raise "
            "train.heldout_samples, or sample.temperature"
        )
    everything = numbers.views.everything
    divergence = kl_to_base(out, student)
    return (
        _state(base, forks, everything, 0.0),
        _state(student, forks, everything, divergence),
    )


def _state(model: str, forks: Group, everything: Group, divergence: float) -> ProbeState:
    means = forks.models[model]
    return ProbeState(
        forks=forks.positions,
        fork_entropy=means.means["entropy"],
        fork_support=means.curves["survivors"][0],
        entropy=everything.models[model].means["entropy"],
        kl_to_base=divergence,
    )


def kl_to_base(out: Path, model: str) -> float:
    """Return the mean KL(model || base) in nats over the sampled positions of a probe.

    Tokens outside of the model's head count as one token, so it is a lower bound.
    """
    table = read_table(out / "heads.parquet")
    table = table.filter(table.column("is_sampled"))
    chosen = [name == model for name in table.column("model").to_pylist()]
    table = table.filter(chosen)
    log_p, log_base = (
        np.array(table.column(name).to_pylist(), dtype=np.float64)
        for name in ("head_log_probabilities", "base_log_probabilities")
    )
    return float(divergence_of_heads(log_p, log_base).mean())


def divergence_of_heads(
    log_p: NDArray[np.float64], log_base: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return KL(p || base) with the rest as one token, from [positions, head] log probabilities."""
    shares = np.exp(log_p)
    head = np.where(shares > 0, shares * (log_p - log_base), 0.0).sum(axis=1)
    rest = np.clip(1 - shares.sum(axis=1), 0.0, None)
    base_rest = np.clip(1 - np.exp(log_base).sum(axis=1), _LEAST_MASS, None)
    # A rest of rounding errors would have a ratio of any size.
    ratio = np.log(np.clip(rest, _LEAST_MASS, None) / base_rest)
    divergence: NDArray[np.float64] = np.clip(head + rest * ratio, 0.0, None)
    return divergence
