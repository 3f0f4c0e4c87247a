"""The surroundings of hostile programs: files, a neighbor process, a server and secrets.

`trespasses` lists the effects of a program on them. As a script this tries programs in a separate
process, as another user or under a container's default filter, and prints JSON:
`python scene.py '{"level": "L1", "uid": 65534, "container": true, "names": [...]}'`
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import platform
import resource
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from ssd_ray.evaluation.sandbox import Execution, Limits, Sandbox, best_level, levels, seccomp  # noqa: E402
from tests.support.hostile import SECRETS, Hostile  # noqa: E402
from tests.support.hostile_exhausting import EXHAUSTING  # noqa: E402
from tests.support.hostile_reaching import REACHING  # noqa: E402

PROGRAMS = tuple(
    program
    for program in (*SECRETS, *REACHING, *EXHAUSTING)
    if program.machine in ("", platform.machine())
)
MEMORY_MIB, OUTPUT_KIB = 256, 64
_CONTROL = "print(sum(map(int, input().split())))"
_PLACES = (
    ".",
    "/",
    "/tmp",
    "/var/tmp",
    "/dev/shm",
    "/run",
    "/run/lock",
    "/dev",
    str(Path(os.__file__).parent),
)


class Scene:
    """All targets of hostile programs, created for each group of programs."""

    def __init__(self, directory: Path) -> None:
        self.token, self.secret, self.left = (
            f"{word}-{secrets.token_hex(8)}" for word in ("ssd-ray-hostile", "secret", "left")
        )
        self._directory = directory
        directory.chmod(0o777)
        self._answers, self._mine = directory / "answers.py", directory / "mine"
        for path, text in ((self._answers, f"answers = {self.secret!r}\n"), (self._mine, "mine")):
            path.write_text(text)
            path.chmod(0o666)
        self._resources = contextlib.ExitStack()
        self._server = self._resources.enter_context(socket.create_server(("127.0.0.1", 0)))
        self._server.setblocking(False)
        self._unix = self._resources.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        self._unix.bind(str(directory / "socket"))
        self._unix.setblocking(False)
        os.environ["SSD_RAY_TEST_SECRET"] = self.secret
        self._victim = subprocess.Popen(["sleep", "600"], env=dict(os.environ))
        _adopt(True)
        self.refresh()

    def close(self) -> None:
        _adopt(False)
        self._victim.kill()
        self._victim.wait()
        self._resources.close()
        os.environ.pop("SSD_RAY_TEST_SECRET", None)

    def source(self, program: Hostile) -> str:
        """Return the program with its placeholders filled in."""
        names = set(seccomp.NUMBERS) - set(seccomp._ZYGOTE_ONLY)
        allowed = {seccomp.NUMBERS[name][seccomp.column()] for name in names} - {None}
        site = next(
            (Path(entry) for entry in sys.path if entry.endswith("-packages")), Path("/nonexistent")
        )
        words = {
            "GRADER": os.getpid(),
            "VICTIM": self._victim.pid,
            "ANSWERS": self._answers,
            "MINE": self._mine,
            "HERE": self._directory,
            "SOCKET": self._directory / "socket",
            "PORT": self._server.getsockname()[1],
            "TOKEN": self.token,
            "PACKAGE": ROOT / "ssd_ray",
            "SITE": site,
            "BENCHMARK": site / "data" / "HumanEval.jsonl.gz",
            "ALLOWED": sorted(allowed),
        }
        text = program.program
        for word, value in words.items():
            text = text.replace(f"@{word}@", str(value))
        return text

    def damage(self) -> list[str]:
        """List changes to the scene."""
        now = self._state()
        changes = [
            f"{what}: {self._before[what]} is now {now[what]}"
            for what in now
            if now[what] != self._before[what]
        ]
        processes, deadline = descendants(), time.monotonic() + 2
        while (
            len(processes) != self._num_processes and time.monotonic() < deadline
        ):  # the process for the next program may be starting
            time.sleep(0.01)
            processes = descendants()
        if len(processes) != self._num_processes:
            changes.append(f"{len(processes)} processes where there were {self._num_processes}")
        changes += [
            f"left behind: {place}/{self.token}"
            for place in _PLACES
            if os.path.lexists(f"{place}/{self.token}")
        ]
        for name, act in (
            ("connection", self._server.accept),
            ("datagram", lambda: self._unix.recv(1)),
        ):
            with contextlib.suppress(BlockingIOError):
                act()
                changes.append(f"the server got a {name}")
        return changes

    def _state(self) -> dict[str, object]:
        pid, stat = self._victim.pid, self._mine.stat()
        return {
            "victim": self._victim.poll(),
            "its state": Path(f"/proc/{pid}/stat").read_text().split()[2] in "SR",
            "its limits": Path(f"/proc/{pid}/limits").read_text(),
            "its scheduling": [
                os.getpriority(os.PRIO_PROCESS, pid),
                os.sched_getscheduler(pid),
                os.sched_getaffinity(pid),
            ],
            "own limits": [resource.getrlimit(kind) for kind in range(16)],
            "own scheduling": [
                os.getpriority(os.PRIO_PROCESS, 0),
                os.sched_getscheduler(0),
                os.sched_getaffinity(0),
            ],
            "file": (
                stat.st_mode,
                stat.st_uid,
                stat.st_mtime_ns,
                stat.st_nlink,
                self._mine.read_text(),
                os.listxattr(self._mine),
            ),
            "directory": sorted(os.listdir(self._directory)),
            "answers": self._answers.read_text(),
            "devices": [
                (stat.st_mode, stat.st_uid, stat.st_gid)
                for stat in map(os.stat, ("/dev/null", "/dev/zero"))
            ],
            "shared memory": Path("/proc/sysvipc/shm").read_text().count("\n"),
        }

    def refresh(self) -> None:
        """Record the present state for comparison, once a sandbox has started."""
        self._before = self._state()
        time.sleep(0.1)
        self._num_processes = len(descendants())


def _adopt(orphans: bool) -> None:
    """Become the parent of all orphaned descendants, to keep them in sight."""
    ctypes.CDLL(None).prctl(36, ctypes.c_ulong(orphans), 0, 0, 0)


def descendants(pid: int | None = None) -> set[int]:
    """Return the living descendants of a process, by default of this one."""
    parents = {}
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            with contextlib.suppress(OSError):
                state, parent = (
                    Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[:2]
                )
                if state != "Z":
                    parents[int(entry)] = int(parent)
    family, fresh = set(), {pid or os.getpid()}
    while fresh:
        fresh = {child for child, parent in parents.items() if parent in fresh} - family
        family |= fresh
    return family


def trespasses(program: Hostile, sandbox: Sandbox, scene: Scene) -> list[str]:
    """List forbidden effects of a program, and failing services after it."""
    limits = Limits(time_s=program.time_s, memory_mib=MEMORY_MIB, output_kib=OUTPUT_KIB)
    execution = sandbox.run_program(scene.source(program), program.stdin, limits)
    effects = [line for line in execution.stdout.splitlines() if "ESCAPED" in line]
    if execution.status not in program.ends:
        effects.append(f"its status is {execution.status}: {execution.detail}")
    if program.prelude and program.category not in ("kernel", "counted") and not execution.stdout:
        effects.append(f"it printed nothing: {execution.status} {execution.detail}")
    effects += [f"the secret is in {execution}"] * (
        scene.secret in f"{execution.stdout}{execution.detail}"
    )
    effects += _beyond(execution, limits)
    control = sandbox.run_program(
        _CONTROL, "40 2", Limits(time_s=20, memory_mib=MEMORY_MIB, output_kib=OUTPUT_KIB)
    )
    effects += [f"the next program ended with {control}"] * (control.stdout != "42\n")
    return effects + scene.damage()


def _beyond(execution: Execution, limits: Limits) -> Iterator[str]:
    if execution.time_s > 4 * limits.time_s + 2:
        yield f"it took {execution.time_s:.1f} s"
    if execution.peak_bytes > limits.memory_mib << 20:
        yield f"it had {execution.peak_bytes >> 20} MiB"
    if len(execution.stdout.encode("utf-8", "surrogatepass")) > 4 * (limits.output_kib << 10):
        yield "its output was not cut"
    if not execution.detail.isprintable() or len(execution.detail) > 300:
        yield "its detail is not fit for a reader"


@contextlib.contextmanager
def scene_and_sandbox(level: levels.Level) -> Iterator[tuple[Scene, Sandbox]]:
    """Yield a scene and a running sandbox with a mark in its memory."""
    with tempfile.TemporaryDirectory() as directory, Sandbox(floor="L0", level=level) as sandbox:
        scene = Scene(Path(directory))
        try:
            sandbox.run_program(
                f"# {scene.left}\nprint(input())",
                scene.left,
                Limits(time_s=20, memory_mib=256, output_kib=64),
            )
            scene.refresh()
            yield scene, sandbox
        finally:
            scene.close()


def container_filter() -> bytes:
    """Return a filter like those of container runtimes.

    It forbids namespaces, mounts and tracing, and hides clone3.
    """
    column = seccomp.column()
    refused = {
        *(
            (272, 97),
            (308, 268),
            (165, 40),
            (166, 39),
            (155, 41),
            (101, 117),
            (310, 270),
            (311, 271),
            (250, 219),
            (248, 217),
        ),
        *(
            (321, 280),
            (298, 241),
            (304, 265),
            (246, 104),
            (169, 142),
            (161, 51),
            (323, 282),
            (442, 442),
            (429, 429),
            (430, 430),
        ),
    }
    code = [(0x20, 0, 0, 0)]
    for numbers in sorted(refused):
        code += [(0x15, 0, 1, numbers[column]), (0x06, 0, 0, 0x0005_0001)]
    code += [(0x15, 0, 1, 435), (0x06, 0, 0, 0x0005_0026)]
    code += [
        (0x15, 0, 3, (56, 220)[column]),
        (0x20, 0, 0, 16),
        (0x45, 0, 1, 0x7E02_0000),
        (0x06, 0, 0, 0x0005_0001),
    ]
    return seccomp.assemble([*code, (0x06, 0, 0, 0x7FFF_0000)])


def lower_oneself(uid: int | None, container: bool) -> None:
    """Become an ordinary user, without a capability, as in a container of an unprivileged pod."""
    from ssd_ray.evaluation.sandbox.inside import kernel, walls

    if uid is not None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    if container:
        kernel.prctl(38, ctypes.c_ulong(1))
        walls.seccomp_enter(container_filter())


def main(order: dict[str, object]) -> None:
    """Try the named programs and print the results."""
    lower_oneself(order["uid"], bool(order["container"]))  # type: ignore[arg-type]
    by_name = {level.name: level for level in levels.candidates()}
    level = by_name[str(order["level"])] if order["level"] else best_level()
    names: Iterable[str] = order["names"]  # type: ignore[assignment]
    with scene_and_sandbox(level) as (scene, sandbox):
        chosen = [program for program in PROGRAMS if program.name in set(names)]
        effects = {program.name: trespasses(program, sandbox, scene) for program in chosen}
    print(json.dumps({"level": level.name, "uid": os.getuid(), "found": effects}))


if __name__ == "__main__":
    signal.alarm(120)
    main(json.loads(sys.argv[1]))
