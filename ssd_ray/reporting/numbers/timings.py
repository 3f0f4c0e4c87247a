"""Cost and machine of a run: the contents of timings.json.

They are apart from the results because they never repeat. Reads timing.json and manifest.json of
every artifact; writes nothing.

- Wall seconds of a stage are over all its attempts, without those killed outright.
- Shared time of steps counts once (`ssd_ray.pipeline.seconds`).
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
        steps: names of all steps before the report, in the order of a run.

    Raises:
        UserError: a stage of the run is not complete.
    """
    # Scores are those of the first profile, so its isolation is the one to report.
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
    # Raises if the artifact is not complete.
    manifests.load(path)
    return files.read_json(path / "manifest.json")


def _stage(path: Path, stage: str, manifest: Mapping[str, Any]) -> dict[str, Any]:
    timing = files.read_json(path / "timing.json") if (path / "timing.json").exists() else {}
    seconds = timing.get("seconds")
    tokens = timing.get("tokens")
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
    """Return the versions of each package over all stages; several if stages differ."""
    by_package: dict[str, set[str]] = {}
    for manifest in loaded:
        for name, version in manifest.get("versions", {}).items():
            by_package.setdefault(name, set()).add(version)
    return {name: sorted(versions) for name, versions in sorted(by_package.items())}


def machine() -> dict[str, Any]:
    """Describe this machine, without its name."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }


def _processor() -> str | None:
    """Return the processor's model name, or None if the kernel does not report it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None
    )
