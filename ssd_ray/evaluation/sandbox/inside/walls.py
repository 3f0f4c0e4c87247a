"""Walls around an untrusted program, raised before any of its code is compiled.

- Once, by the zygote: namespaces, a root of its own, Landlock, the allow-list of system calls.
- By every program's process: limits, an unprivileged user id, a second filter.

Calls the kernel by ctypes, and reads /proc/self. Runs in a bare interpreter. Imports the standard
library only.
"""

from __future__ import annotations

import ctypes
import os
import resource

TYPE_CHECKING = False
if TYPE_CHECKING or __name__ != "walls":
    from ssd_ray.evaluation.sandbox.inside.kernel import LIBC, fail, prctl
else:  # in a sandbox, where there are modules and no packages
    from kernel import LIBC, fail, prctl

SIGKILL = 9
_CLONE_NEWNS, _CLONE_NEWUTS, _CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
_CLONE_NEWUSER, _CLONE_NEWPID, _CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_KEEPCAPS, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = (
    1,
    4,
    8,
    22,
    38,
)
_SECCOMP_MODE_FILTER = 2
_CAPABILITY_VERSION_3 = 0x20080522
_CAP_DAC_READ_SEARCH, _CAP_KILL, _CAP_SETGID, _CAP_SETUID, _CAP_SYS_ADMIN = 2, 5, 6, 7, 21
FIRST_UID, NUM_UIDS = 60_001, 4_999
_STACK_BYTES = 64 << 20
_MAX_FILES = 64


class _CapabilityHeader(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _Capabilities(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable")]


class _FilterProgram(ctypes.Structure):
    _fields_ = [("length", ctypes.c_uint16), ("instructions", ctypes.c_char_p)]


def permitted_capabilities() -> int:
    """Return the capabilities of this process, as a bit mask."""
    header, sets = _CapabilityHeader(_CAPABILITY_VERSION_3, 0), (_Capabilities * 2)()
    if LIBC.capget(ctypes.byref(header), sets):
        fail("capget")
    return int(sets[0].permitted) | int(sets[1].permitted) << 32


def _keep_capabilities(mask: int) -> None:
    header, sets = _CapabilityHeader(_CAPABILITY_VERSION_3, 0), (_Capabilities * 2)()
    sets[0].effective = sets[0].permitted = mask & 0xFFFFFFFF
    if LIBC.capset(ctypes.byref(header), sets):
        fail("capset")


_NOT_DUMPABLE = (_PR_SET_DUMPABLE, ctypes.c_ulong(0))


def die_with_parent(signal: int = SIGKILL) -> None:
    """Have the kernel send this process a signal at the end of the thread that started it."""
    prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal))


def hide_memory() -> None:
    """Keep other processes of the same user from this one's memory and descriptors."""
    prctl(*_NOT_DUMPABLE)


def unshare(*, mounts: bool) -> None:
    """Move this process to new network, IPC and UTS namespaces.

    Children forked later are in a new process namespace.

    Without CAP_SYS_ADMIN, this makes a user namespace too. The user and group ids stay the same.

    Args:
        mounts: Move to a new mount namespace as well.

    Raises:
        OSError: The kernel or the container forbids it.
    """
    flags = (
        _CLONE_NEWPID
        | _CLONE_NEWNET
        | _CLONE_NEWIPC
        | _CLONE_NEWUTS
        | (_CLONE_NEWNS if mounts else 0)
    )
    own_user = not permitted_capabilities() >> _CAP_SYS_ADMIN & 1
    uid, gid = os.geteuid(), os.getegid()
    if LIBC.unshare(flags | (_CLONE_NEWUSER if own_user else 0)):
        fail("unshare")
    if own_user:
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{uid} {uid} 1"),
            ("gid_map", f"{gid} {gid} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)


def limit_resources(
    *, memory_bytes: int, cpu_s: int, file_bytes: int, num_threads: int | None
) -> None:
    """Set hard limits, equal to the soft ones, on address space, CPU time and files.

    - The stack gets room for deep recursion. Address space bounds it.
    - The kernel counts threads over all processes of a user id. `num_threads` is None unless the
      program has a user id to itself.
    """
    wanted = {
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_CPU: cpu_s,
        resource.RLIMIT_FSIZE: file_bytes,
        resource.RLIMIT_NOFILE: _MAX_FILES,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
    }
    if num_threads is not None:
        wanted[resource.RLIMIT_NPROC] = num_threads
    # A hard limit that the grader has itself, as in a container, cannot be raised.
    for kind, value in wanted.items():
        ceiling = resource.getrlimit(kind)[1]
        bounded = value if ceiling == resource.RLIM_INFINITY else min(value, ceiling)
        resource.setrlimit(kind, (bounded, bounded))
    ceiling = resource.getrlimit(resource.RLIMIT_STACK)[1]
    resource.setrlimit(
        resource.RLIMIT_STACK,
        (_STACK_BYTES if ceiling == resource.RLIM_INFINITY else ceiling, ceiling),
    )


def may_change_user(*, interpreter_readable: bool) -> bool:
    """Return True if this process can give programs user ids of their own.

    It has to run as root, with the capabilities, in a namespace that maps these user ids. If only
    root may read the interpreter, late imports need CAP_DAC_READ_SEARCH.
    """
    needed = [_CAP_KILL, _CAP_SETGID, _CAP_SETUID] + (
        [] if interpreter_readable else [_CAP_DAC_READ_SEARCH]
    )
    permitted = permitted_capabilities()
    if os.geteuid() != 0 or not all(permitted >> capability & 1 for capability in needed):
        return False
    with open("/proc/self/uid_map") as file:
        ranges = [[int(number) for number in line.split()] for line in file]
    return any(
        first <= FIRST_UID and first + count >= FIRST_UID + NUM_UIDS for first, _, count in ranges
    )


def bound_privileges(*, own_users: bool, interpreter_readable: bool) -> None:
    """Drop all capabilities but those to become another user; exec cannot gain any."""
    # CAP_KILL: the kernel sends the signal at a parent's death only if the parent may signal the
    # child.
    kept = [_CAP_KILL, _CAP_SETGID, _CAP_SETUID] if own_users else []
    kept += [] if interpreter_readable or not own_users else [_CAP_DAC_READ_SEARCH]
    _keep_capabilities(sum(1 << capability for capability in kept))
    prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1))


def become(uid: int, *, interpreter_readable: bool) -> None:
    """Become another user for good; drop all capabilities, except, if needed, to read any file."""
    if not interpreter_readable:
        prctl(_PR_SET_KEEPCAPS, ctypes.c_ulong(1))
    # Groups first: after the user id they could no longer be changed.
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    if not interpreter_readable:
        _keep_capabilities(1 << _CAP_DAC_READ_SEARCH)


def seccomp_enter(instructions: bytes) -> None:
    """Filter the system calls of this process from now on.

    `instructions` are those of `seccomp.compile_filters`, with the process id filled in.
    """
    program = _FilterProgram(len(instructions) // 8, instructions)
    if LIBC.prctl(
        _PR_SET_SECCOMP, ctypes.c_ulong(_SECCOMP_MODE_FILTER), ctypes.byref(program), 0, 0
    ):
        fail("seccomp")
