"""What a run cost and where it ran: the contents of timings.json, kept apart from the results because they never repeat.

Reads timing.json and manifest.json of every artifact; writes nothing. Wall seconds are over all attempts of a stage that
ended in an orderly way; one that was killed outright is not in them. Time that steps share counts once
(`ssd_ray.pipeline.seconds`).
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ssd_ray.artifacts import files, manifests
from ssd_ray.config import Recipe, arms


def timings(recipe: Recipe, run: Path, steps: Sequence[str]) -> dict[str, Any]:
    """Collect time, tokens, isolation, versions and the machine as plain JSON.

    Args:
        recipe: the recipe of the run.
        run: the run directory.
        steps: names of all steps that precede the report, in the order in which they are made.

    Raises:
        UserError: a stage of the run is not complete.
    """
    first = arms.VERDICTS[recipe.evaluate.profiles[0]]
    loaded = {stage: _manifest(run / stage) for stage in steps}
    rows = [_stage(run / stage, stage, manifest) for stage, manifest in loaded.items()]
    return {
        "stages": rows,
        "total": {name: _total(row[name] for row in rows) for name in ("seconds", "tokens")},
        "isolation": {
            arm: loaded[f"{first}/{arm}"]["facts"].get("isolation") for arm in arms.arms(recipe)
        },
        "versions": _versions(loaded.values()),
        "machine": machine(),
    }


def _manifest(path: Path) -> dict[str, Any]:
    manifests.load(path)
    return files.read_json(path / "manifest.json")


def _stage(path: Path, stage: str, manifest: Mapping[str, Any]) -> dict[str, Any]:
    timing = files.read_json(path / "timing.json") if (path / "timing.json").exists() else {}
    seconds, tokens = timing.get("seconds"), timing.get("tokens")
    return {
        "stage": stage,
        "seconds": seconds,
        "attempts": timing.get("attempts"),
        "tokens": tokens,
        "tokens_per_second": tokens / seconds if tokens and seconds else None,
        "finished_at": manifest.get("finished_at"),
    }


def _total(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _versions(loaded: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """The versions of each package over all stages; more than one means that the stages differ."""
    found: dict[str, set[str]] = {}
    for manifest in loaded:
        for name, version in manifest.get("versions", {}).items():
            found.setdefault(name, set()).add(version)
    return {name: sorted(versions) for name, versions in sorted(found.items())}


def machine() -> dict[str, Any]:
    """The machine that this runs on, without its name."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }


def _processor() -> str | None:
    """The processor's model name, where the kernel tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None
    )
