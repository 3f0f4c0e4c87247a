"""Walls around a grader, as its pod has them.

    python confined.py RUN DIRECTORY... -- COMMAND...

- The interpreter, the system and this checkout can be read.
- Below RUN only benchmark/, eval-prompts/, generations/, samples/, prompts/ and grading/ can be
  read, and only each DIRECTORY and TMPDIR can be written. The kernel checks it (Landlock), in
  every child process too.
- A connection to a network and an import of Ray, torch or vLLM end the process.

COMMAND is one of `ssd-ray`, or `actor SPEC SLICES LOGS`: the graders of a Ray actor, with pickled
arguments, without Ray around them.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ssd_ray.evaluation.sandbox.inside import landlock
from ssd_ray.evaluation.sandbox.inside.kernel import prctl, syscall

READ_ONLY = ("benchmark", "eval-prompts", "generations", "samples", "prompts", "grading")
_SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/etc", "/sys", "/dev")
_PR_SET_NO_NEW_PRIVS = 38
_EXECUTE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 2, 1 << 3
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_FILE_RIGHTS = _EXECUTE | 1 << 1 | _READ_FILE | 1 << 14
_ALL = (1 << 15) - 1
_FORBIDDEN = ("ray", "torch", "vllm", "deepspeed")


def run(command: list[str], temporary: Path) -> subprocess.CompletedProcess[str]:
    """Run a command with walls and a TMPDIR of its own to its end."""
    temporary.mkdir()
    surroundings = {**os.environ, "TMPDIR": str(temporary)}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=surroundings)


def confine(run: Path, writable: list[Path]) -> None:
    """Restrict this process and its children."""
    rights = _ALL if landlock.abi_version() >= 3 else (1 << 13) - 1
    attributes = (ctypes.c_uint64 * 1)(rights)
    ruleset = syscall("landlock", 444, ctypes.byref(attributes), ctypes.c_size_t(8), 0)
    checkout = Path(__file__).resolve().parents[2]
    places = [sys.prefix, sys.base_prefix, checkout, *_SYSTEM, *(run / name for name in READ_ONLY)]
    for place in (Path(name).resolve() for name in places):
        _allow(ruleset, place, _READ & rights)
    # A sandbox writes the user map of its namespaces.
    for place in ("/proc", "/dev/null", tempfile.gettempdir(), *writable):
        _allow(ruleset, Path(place), rights)
    prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1))
    landlock.enter(ruleset)


def _allow(ruleset: int, place: Path, rights: int) -> None:
    if not place.exists():
        return
    handle = os.open(place, os.O_PATH)
    rights = rights if place.is_dir() else rights & _FILE_RIGHTS
    rule = landlock._PathBeneath(rights, handle)
    syscall("landlock rule", 445, ruleset, 1, ctypes.byref(rule), 0)
    os.close(handle)


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    """End the process at a connection, or at an import of a heavy package."""
    is_remote = event == "socket.connect" and isinstance(arguments[1], tuple)
    if is_remote or (event == "import" and arguments[0].partition(".")[0] in _FORBIDDEN):
        sys.stderr.write(f"a grader needs no {event} of {arguments[:2]}\n")
        os._exit(70)


def _grade_as_actor(spec: str, slices: str, logs: str) -> None:
    from ssd_ray.evaluation.grader_actors import GraderActor

    actor = GraderActor(Path(logs))
    assert actor.start() == 0
    for piece in pickle.loads(Path(slices).read_bytes()):
        actor.grade(pickle.loads(Path(spec).read_bytes()), piece)


def main() -> None:
    at = sys.argv.index("--")
    run, *writable = map(Path, sys.argv[1:at])
    command = sys.argv[at + 1 :]
    confine(run, writable)
    if command[0] == "actor":
        _grade_as_actor(*command[1:])
        return
    sys.addaudithook(_refuse)
    from ssd_ray.cli import app

    app.main(command)


if __name__ == "__main__":
    main()
