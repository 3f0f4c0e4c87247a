"""Surroundings that end careless programs: files named like libraries, long paths, no user."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

COMMAND = str(Path(sys.executable).parent / "ssd-ray")
LIBRARIES = (
    *(
        "vllm",
        "torch",
        "numpy",
        "ray",
        "pyarrow",
        "yaml",
        "emoji",
        "ssd_ray",
        "deepspeed",
        "datasets",
        "typer",
    ),
    *(
        "random",
        "queue",
        "json",
        "socket",
        "pickle",
        "statistics",
        "logging",
        "select",
        "struct",
        "tokenize",
        "secrets",
    ),
)
LONG = (
    "users/jobs/1355700.cluster-batch-04/node-local/tmp.t0016/and/more/of/it/until/no/socket/fits"
)
NO_USER = """
import pwd

def getpwuid(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")

pwd.getpwuid = getpwuid
"""


def folder_of_traps(parent: Path) -> Path:
    """Make a folder of files named like libraries; each would end its importer."""
    folder = parent / "notes"
    (folder / "transformers").mkdir(parents=True)
    for name in (*LIBRARIES, "transformers/__init__"):
        (folder / f"{name}.py").write_text(
            f"raise SystemExit('{name} was imported from the working directory')\n"
        )
    return folder


def odd_environment(parent: Path) -> dict[str, str]:
    """Make a long TMPDIR and a home below `parent`, in an environment without a user's name."""
    (parent / LONG).mkdir(parents=True)
    (parent / "path").mkdir()
    (parent / "path" / "sitecustomize.py").write_text(NO_USER)
    environment = {
        "TMPDIR": str(parent / LONG),
        "PYTHONPATH": str(parent / "path"),
        "HOME": str(parent / "home"),
    }
    return environment | dict.fromkeys(("USER", "LOGNAME", "LNAME", "USERNAME"), "")


def run(
    command: list[str], folder: Path, timeout: float = 120, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder without this process's import paths."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONSAFEPATH", "PYTHONPATH")
    }
    return subprocess.run(
        command,
        cwd=folder,
        env=inherited | environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
