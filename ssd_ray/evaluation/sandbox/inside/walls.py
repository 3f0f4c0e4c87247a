"""Walls around an untrusted program, raised before any of its code is compiled.

- Once, by the zygote: namespaces, a root of its own, Landlock, the allow-list of system calls.
- By every program's process: limits, an unprivileged user id, a second filter.

Calls the kernel by ctypes, and reads /proc/self. Runs in a bare interpreter. Imports the standard
library only.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import NoReturn

SIGKILL = 9
_CLONE_NEWNS, _CLONE_NEWUTS, _CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
_CLONE_NEWUSER, _CLONE_NEWPID, _CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REMOUNT, _MS_BIND = 1, 2, 4, 8, 32, 4096
_MS_REC, _MS_PRIVATE, _MNT_DETACH = 1 << 14, 1 << 18, 2
_SYS_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE = 442, -100, 0x8000
_SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_SYS_LANDLOCK_CREATE_RULESET, _SYS_LANDLOCK_ADD_RULE, _SYS_LANDLOCK_RESTRICT_SELF = 444, 445, 446
_LANDLOCK_RULE_PATH_BENEATH = 1
_LANDLOCK_WRITE_FILE, _LANDLOCK_READ_FILE, _LANDLOCK_READ_DIR = 1 << 1, 1 << 2, 1 << 3
_LANDLOCK_FS_BITS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""Number of file system rights by version of the ABI; later versions get those of version 5."""
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

_libc = ctypes.CDLL(None, use_errno=True)
_ZERO = ctypes.c_ulong(0)


class _MountAttributes(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd")
    ]


class _CapabilityHeader(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _Capabilities(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable")]


class _RulesetAttributes(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_uint64) for name in ("handled_access_fs", "handled_access_net", "scoped")
    ]


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32)]


class _FilterProgram(ctypes.Structure):
    _fields_ = [("length", ctypes.c_uint16), ("instructions", ctypes.c_char_p)]


def _fail(what: str) -> NoReturn:
    number = ctypes.get_errno()
    raise OSError(number, f"{what}: {os.strerror(number)}")


def _prctl(option: int, value: object) -> None:
    if _libc.prctl(option, value, _ZERO, _ZERO, _ZERO):
        _fail(f"prctl({option})")


def _syscall(what: str, number: int, *arguments: object) -> int:
    result = int(_libc.syscall(ctypes.c_long(number), *arguments))
    if result < 0:
        _fail(what)
    return result


def permitted_capabilities() -> int:
    """Return the capabilities of this process, as a bit mask."""
    header, sets = _CapabilityHeader(_CAPABILITY_VERSION_3, 0), (_Capabilities * 2)()
    if _libc.capget(ctypes.byref(header), sets):
        _fail("capget")
    return int(sets[0].permitted) | int(sets[1].permitted) << 32


def _keep_capabilities(mask: int) -> None:
    header, sets = _CapabilityHeader(_CAPABILITY_VERSION_3, 0), (_Capabilities * 2)()
    sets[0].effective = sets[0].permitted = mask & 0xFFFFFFFF
    if _libc.capset(ctypes.byref(header), sets):
        _fail("capset")


_NOT_DUMPABLE = (_PR_SET_DUMPABLE, ctypes.c_ulong(0))


def die_with_parent(signal: int = SIGKILL) -> None:
    """Have the kernel send this process a signal at the end of the thread that started it."""
    _prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal))


def hide_memory() -> None:
    """Keep other processes of the same user from this one's memory and descriptors."""
    _prctl(*_NOT_DUMPABLE)


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
    if _libc.unshare(flags | (_CLONE_NEWUSER if own_user else 0)):
        _fail("unshare")
    if own_user:
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{uid} {uid} 1"),
            ("gid_map", f"{gid} {gid} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)


def _mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    arguments = [text.encode() if text is not None else None for text in (source, target, kind)]
    if _libc.mount(*arguments, ctypes.c_ulong(flags), data.encode()):
        _fail(f"mount {target}")


def enter_root(directory: str, paths: Iterable[str], devices: Iterable[str]) -> None:
    """Make `directory` the root of a read-only file system of `paths`, `devices` and /proc.

    /proc shows the processes of our own namespace. Symbolic links on the way to a path, such as
    /lib, are copied. Needs a mount namespace of our own.

    Raises:
        OSError: The kernel or the container forbids it.
    """
    os.umask(0o022)
    _mount("none", "/", None, _MS_REC | _MS_PRIVATE)
    _mount("tmpfs", directory, "tmpfs", _MS_NOSUID | _MS_NODEV, "size=1m,mode=0755")
    # Links last: their targets may be in a directory that is bound already.
    for path in sorted((*paths, *devices), key=os.path.islink):
        _bind(path, directory)
    os.mkdir(f"{directory}/proc")
    _mount("proc", f"{directory}/proc", "proc", _MS_RDONLY | _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        os.symlink(f"/proc/self/fd/{number}", f"{directory}/dev/{name}")
    os.chdir(directory)
    _syscall("pivot_root", _SYS_PIVOT_ROOT[os.uname().machine], b".", b".")
    if _libc.umount2(b".", _MNT_DETACH):
        _fail("umount")
    os.chdir("/")
    attributes = _MountAttributes(attr_set=_MS_RDONLY | _MS_NOSUID)
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    _syscall(
        "mount_setattr",
        _SYS_MOUNT_SETATTR,
        _AT_FDCWD,
        b"/",
        _AT_RECURSIVE,
        ctypes.byref(attributes),
        size,
    )


def _bind(path: str, root: str) -> None:
    """Mount `path` at the same place under `root`, with the directories and links on the way."""
    place = ""
    for part in path.strip("/").split("/"):
        place = f"{place}/{part}"
        if os.path.lexists(root + place):
            if os.path.islink(root + place):
                return _bind(os.path.realpath(path), root)
        elif os.path.islink(place):
            os.symlink(os.readlink(place), root + place)
            return _bind(os.path.realpath(path), root)
        elif place != path:
            os.mkdir(root + place)
    if os.path.lexists(root + path):
        return None
    if os.path.isdir(path):
        os.mkdir(root + path)
    else:
        os.close(os.open(root + path, os.O_CREAT | os.O_WRONLY, 0o644))
    return _mount(path, root + path, None, _MS_BIND | _MS_REC)


def limit_resources(
    *, memory_bytes: int, cpu_s: int, file_bytes: int, num_threads: int | None
) -> None:
    """Set hard limits, equal to the soft ones, on address space, CPU time and files.

    - The stack gets room for deep recursion. Address space bounds it.
    - The kernel counts threads over all processes of a user id. `num_threads` is None unless the
      program has one to itself.
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
    # A hard limit of the grader's own, of a container perhaps, cannot be raised.
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
    """Drop all capabilities but those to become another user, forever, and gain none by exec."""
    # CAP_KILL, because the signal at a parent's death needs the parent's right to send it.
    kept = [_CAP_KILL, _CAP_SETGID, _CAP_SETUID] if own_users else []
    kept += [] if interpreter_readable or not own_users else [_CAP_DAC_READ_SEARCH]
    _keep_capabilities(sum(1 << capability for capability in kept))
    _prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1))


def become(uid: int, *, interpreter_readable: bool) -> None:
    """Become another user forever, and lose all capabilities but, if needed, reading any file."""
    if not interpreter_readable:
        _prctl(_PR_SET_KEEPCAPS, ctypes.c_ulong(1))
    # Groups first: after the user id they could no longer be changed.
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    if not interpreter_readable:
        _keep_capabilities(1 << _CAP_DAC_READ_SEARCH)


def landlock_abi() -> int:
    """Return the version of the kernel's Landlock ABI, 0 without Landlock."""
    return max(
        0,
        int(
            _libc.syscall(
                ctypes.c_long(_SYS_LANDLOCK_CREATE_RULESET),
                None,
                ctypes.c_size_t(0),
                ctypes.c_uint32(1),
            )
        ),
    )


def landlock_ruleset(
    readable: Iterable[str], listable: Iterable[str], writable: Iterable[str]
) -> int:
    """Return a descriptor of Landlock rules.

    The rules also deny TCP from version 4 of the ABI, and signals and abstract sockets from
    version 6.

    Args:
        readable: Files and directories to read, with everything below.
        listable: Directories to list.
        writable: Files to write.

    Raises:
        OSError: The kernel has no Landlock.

    Source: Linux, Documentation/userspace-api/landlock.rst.
    """
    abi = landlock_abi()
    # The kernel refuses rights and fields unknown to its version of the ABI.
    rights = (1 << _LANDLOCK_FS_BITS.get(abi, 16)) - 1
    attributes = _RulesetAttributes(rights, 0b11 if abi >= 4 else 0, 0b11 if abi >= 6 else 0)
    size = next(size for version, size in ((6, 24), (4, 16), (0, 8)) if abi >= version)
    ruleset = _syscall(
        "landlock", _SYS_LANDLOCK_CREATE_RULESET, ctypes.byref(attributes), ctypes.c_size_t(size), 0
    )
    for paths, access in (
        (readable, _LANDLOCK_READ_FILE | _LANDLOCK_READ_DIR),
        (listable, _LANDLOCK_READ_DIR),
        (writable, _LANDLOCK_READ_FILE | _LANDLOCK_WRITE_FILE),
    ):
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                _allow(ruleset, path, access)
    return ruleset


def _allow(ruleset: int, path: str, access: int) -> None:
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        # The kernel refuses rights of directories for a file.
        rights = access if os.path.isdir(path) else access & ~_LANDLOCK_READ_DIR
        rule = _PathBeneath(rights, fd)
        _syscall(
            "landlock rule",
            _SYS_LANDLOCK_ADD_RULE,
            ruleset,
            _LANDLOCK_RULE_PATH_BENEATH,
            ctypes.byref(rule),
            0,
        )
    finally:
        os.close(fd)


def landlock_enter(ruleset: int) -> None:
    """Restrict this process by rules from now on; needs the bit against new privileges."""
    _syscall("landlock", _SYS_LANDLOCK_RESTRICT_SELF, ruleset, 0)


def seccomp_enter(instructions: bytes) -> None:
    """Filter the system calls of this process from now on.

    `instructions` are those of `seccomp.compile_filters`, with the process id filled in.
    """
    program = _FilterProgram(len(instructions) // 8, instructions)
    if _libc.prctl(
        _PR_SET_SECCOMP, ctypes.c_ulong(_SECCOMP_MODE_FILTER), ctypes.byref(program), 0, 0
    ):
        _fail("seccomp")
