"""Cost and machine of a run: the contents of timings.json.

They are apart from the results because they never repeat. Reads timing.json, devices.json and
manifest.json of every artifact; writes nothing.

- Times of a stage are over all its attempts.
- Stages overlap, so each has two times: its own wall time, and its share of the run's time
  (`ssd_ray.pipeline.seconds`). Shares add up to the run.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ssd_ray.artifacts import files, manifests
from ssd_ray.artifacts.device_use import StageUse, read_use
from ssd_ray.artifacts.facts import Isolation, VerdictFacts
from ssd_ray.artifacts.manifests import Manifest
from ssd_ray.config import Recipe, arms
from ssd_ray.planner.assumptions import Assumptions

USD_PER_GPU_HOUR = Assumptions().usd_per_gpu_hour
"""The planner's round figure, not a quotation."""
Number = TypeVar("Number", int, float)


@dataclass(frozen=True, kw_only=True)
class StageTiming:
    """Cost of one stage; None where it was not recorded."""

    stage: str
    seconds: float | None
    """Share of the run's time: time of several stages is divided among them."""
    wall_seconds: float | None
    """Time from the start of the stage to its end, as on the screen."""
    attempts: int | None
    tokens: int | None
    tokens_per_second: float | None
    """Over the wall time; None also for a stage without tokens."""
    finished_at: str | None
    """In UTC."""
    use: StageUse | None = None
    """Use of each engine or training worker."""
    usd: float | None = None
    """Price of its GPU time, busy and idle, by the planner's assumed price; None without GPUs."""


@dataclass(frozen=True, kw_only=True)
class Total:
    """Cost of all stages, without those of unknown cost."""

    seconds: float | None
    tokens: int | None
    busy_gpu_s: float | None = None
    """Seconds of GPUs at work; None where no stage recorded it."""
    idle_gpu_s: float | None = None
    """Seconds of reserved GPUs without work."""
    usd: float | None = None


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The machine that wrote the report, without its name."""

    system: str
    processor: str | None
    """None if the kernel does not report it."""
    cpus: int | None
    memory_bytes: int


@dataclass(frozen=True, kw_only=True)
class Timings:
    """The contents of timings.json."""

    stages: tuple[StageTiming, ...]
    total: Total
    isolation: Mapping[str, Isolation | None]
    """Isolation of the programs of each arm; None if it was not recorded."""
    versions: Mapping[str, tuple[str, ...]]
    """Versions of each package over all stages; several if stages differ."""
    machine: Machine


def timings(recipe: Recipe, run: Path, steps: Sequence[str]) -> Timings:
    """Collect time, tokens, isolation, versions and the machine.

    Args:
        recipe: the recipe of the run.
        run: the run directory.
        steps: names of all steps before the report, in the order of a run.

    Raises:
        UserError: a stage of the run is not complete.
    """
    # Scores are those of the first profile, so its isolation is the one to report.
    first = arms.VERDICTS[recipe.evaluate.profiles[0]]
    loaded = {stage: _manifest(run / stage) for stage in steps}
    stages = tuple(_stage(run / stage, stage, manifest) for stage, manifest in loaded.items())
    uses = [stage.use for stage in stages if stage.use is not None]
    return Timings(
        stages=stages,
        total=Total(
            seconds=_total(stage.seconds for stage in stages),
            tokens=_total(stage.tokens for stage in stages),
            busy_gpu_s=_total(use.busy_gpu_s for use in uses),
            idle_gpu_s=_total(use.idle_gpu_s for use in uses),
            usd=_total(stage.usd for stage in stages),
        ),
        isolation={
            arm: manifests.load_facts(run / first / arm, VerdictFacts).isolation
            for arm in arms.arms(recipe)
        },
        versions=_versions(loaded.values()),
        machine=machine(),
    )


def _manifest(path: Path) -> Manifest:
    # Raises if the artifact is not complete.
    manifests.load(path)
    return manifests.read_manifest(path)


def _stage(path: Path, stage: str, manifest: Manifest) -> StageTiming:
    timing = files.read_json(path / "timing.json") if (path / "timing.json").exists() else {}
    wall_seconds = timing.get("wall_seconds")
    tokens = timing.get("tokens")
    use = read_use(path)
    gpu_s = use.busy_gpu_s + use.idle_gpu_s if use else 0.0
    return StageTiming(
        stage=stage,
        seconds=timing.get("seconds"),
        wall_seconds=wall_seconds,
        attempts=timing.get("attempts"),
        tokens=tokens,
        tokens_per_second=tokens / wall_seconds if tokens and wall_seconds else None,
        finished_at=manifest.finished_at,
        use=use,
        usd=gpu_s / 3600 * USD_PER_GPU_HOUR if gpu_s else None,
    )


def _total(values: Iterable[Number | None]) -> Number | None:
    known = [value for value in values if value is not None]
    # The start has the type of the values: seconds are not integers.
    return sum(known[1:], start=known[0]) if known else None


def _versions(loaded: Iterable[Manifest]) -> dict[str, tuple[str, ...]]:
    """Return the versions of each package over all stages; several if stages differ."""
    by_package: dict[str, set[str]] = {}
    for manifest in loaded:
        for name, version in manifest.versions.items():
            by_package.setdefault(name, set()).add(version)
    return {name: tuple(sorted(versions)) for name, versions in sorted(by_package.items())}


def machine() -> Machine:
    """Describe this machine."""
    return Machine(
        system=f"{platform.system()} {platform.machine()}",
        processor=_processor(),
        cpus=os.cpu_count(),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    )


def _processor() -> str | None:
    """Return the processor's model name, or None if the kernel does not report it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None
    )
