"""The walls around an untrusted program, raised within its own process before any of its code is compiled.

Used by child.py alone, as a bare stdlib-only file. What is here: namespaces (network, processes, IPC, mounts) where the
kernel grants them, an unprivileged user id where we are root, no capabilities, resource limits. What is not yet: seccomp
and Landlock, so a program may still make any system call and read any file that its user id may. Reads /proc/self.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

SIGKILL = 9
_CLONE_NEWNS = 0x00020000
_CLONE_NEWIPC = 0x08000000
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWPID = 0x20000000
_CLONE_NEWNET = 0x40000000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REC, _MS_PRIVATE = 1, 2, 4, 8, 1 << 14, 1 << 18
_SYS_MOUNT_SETATTR = 442
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_KEEPCAPS, _PR_SET_NO_NEW_PRIVS = 1, 4, 8, 38
_CAPABILITY_VERSION_3 = 0x20080522
_CAP_CHOWN, _CAP_DAC_READ_SEARCH, _CAP_SETGID, _CAP_SETUID, _CAP_SYS_ADMIN = 0, 2, 6, 7, 21
_FIRST_UID, _NUM_UIDS = 60_001, 4_999
_SCRATCH_BYTES, _SCRATCH_FILES = 16 << 20, 1024
_STACK_BYTES = 64 << 20
_MAX_FILES, _MAX_PROCESSES = 64, 64

_libc = ctypes.CDLL(None, use_errno=True)


class _MountAttributes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd")]


class _CapabilityHeader(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _Capabilities(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable")]


def _fail(what: str) -> NoReturn:
    number = ctypes.get_errno()
    raise OSError(number, f"{what}: {os.strerror(number)}")


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)):
        _fail(f"prctl({option})")


def _permitted_capabilities() -> int:
    header, sets = _CapabilityHeader(_CAPABILITY_VERSION_3, 0), (_Capabilities * 2)()
    if _libc.capget(ctypes.byref(header), sets):
        _fail("capget")
    return int(sets[0].permitted) | int(sets[1].permitted) << 32


def _keep_capabilities(mask: int) -> None:
    header, sets = _CapabilityHeader(_CAPABILITY_VERSION_3, 0), (_Capabilities * 2)()
    sets[0].effective = sets[0].permitted = mask & 0xFFFFFFFF
    if _libc.capset(ctypes.byref(header), sets):
        _fail("capset")


def die_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends."""
    _prctl(_PR_SET_PDEATHSIG, SIGKILL)


def hide_memory(hidden: bool) -> None:
    """Whether other processes of the same user are kept from this one's memory and descriptors."""
    _prctl(_PR_SET_DUMPABLE, 0 if hidden else 1)


def unshare(*, mounts: bool) -> None:
    """Leave the network, IPC and (for children forked from now on) process namespace, and the mount namespace if asked.

    Without CAP_SYS_ADMIN this goes through a user namespace in which the user and group id stay what they are.

    Raises:
        OSError: the kernel or the container forbids it.
    """
    flags = _CLONE_NEWPID | _CLONE_NEWNET | _CLONE_NEWIPC | (_CLONE_NEWNS if mounts else 0)
    own_user = not _permitted_capabilities() >> _CAP_SYS_ADMIN & 1
    uid, gid = os.geteuid(), os.getegid()
    if _libc.unshare(flags | (_CLONE_NEWUSER if own_user else 0)):
        _fail("unshare")
    if own_user:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)


def _mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    arguments = [text.encode() if text is not None else None for text in (source, target, kind)]
    if _libc.mount(*arguments, ctypes.c_ulong(flags), data.encode()):
        _fail(f"mount {target}")


def seal_files(directory: str) -> None:
    """In a mount namespace of our own: everything read-only but small scratch file systems on `directory` and /dev/shm.

    A fresh /proc that shows only the program's processes is put in place where the container lets us; where it does not,
    the old one stays, read-only.

    Raises:
        OSError: the kernel or the container forbids it.
    """
    _mount("none", "/", None, _MS_REC | _MS_PRIVATE)
    attributes = _MountAttributes(attr_set=_MS_RDONLY | _MS_NOSUID)
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    if _libc.syscall(_SYS_MOUNT_SETATTR, _AT_FDCWD, b"/", _AT_RECURSIVE, ctypes.byref(attributes), size):
        _fail("mount_setattr")
    for target in (directory, "/dev/shm"):
        if os.path.isdir(target):
            flags = _MS_NOSUID | _MS_NODEV
            _mount("tmpfs", target, "tmpfs", flags, f"size={_SCRATCH_BYTES},nr_inodes={_SCRATCH_FILES},mode=0777")
    with contextlib.suppress(PermissionError):
        _mount("proc", "/proc", "proc", _MS_RDONLY | _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)


def limit_resources(*, memory_bytes: int, cpu_s: int, file_bytes: int, limit_processes: bool) -> None:
    """Hard limits, equal to the soft ones, on address space, CPU time, files; processes only where they are counted for us.

    The stack gets room for deep recursion and no limit of its own: address space bounds it.
    """
    wanted = {
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_CPU: cpu_s,
        resource.RLIMIT_FSIZE: file_bytes,
        resource.RLIMIT_NOFILE: _MAX_FILES,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    if limit_processes:
        wanted[resource.RLIMIT_NPROC] = _MAX_PROCESSES
    for kind, value in wanted.items():
        ceiling = resource.getrlimit(kind)[1]
        bounded = value if ceiling == resource.RLIM_INFINITY else min(value, ceiling)
        resource.setrlimit(kind, (bounded, bounded))
    ceiling = resource.getrlimit(resource.RLIMIT_STACK)[1]
    resource.setrlimit(resource.RLIMIT_STACK, (_STACK_BYTES if ceiling == resource.RLIM_INFINITY else ceiling, ceiling))


def spare_uid(*, interpreter_readable: bool) -> int | None:
    """The user id that a program started by root is given, or None where root's must be kept.

    An interpreter that only root may read (pyenv under /root) needs CAP_DAC_READ_SEARCH to stay behind for its late
    imports. Where that, or the right to change users, is missing, or no other users are mapped, the program runs as root
    without capabilities.
    """
    needed = [_CAP_CHOWN, _CAP_SETGID, _CAP_SETUID] + ([] if interpreter_readable else [_CAP_DAC_READ_SEARCH])
    permitted = _permitted_capabilities()
    if os.geteuid() != 0 or not all(permitted >> capability & 1 for capability in needed):
        return None
    uid = _FIRST_UID + os.getpid() % _NUM_UIDS
    with open("/proc/self/uid_map") as file:
        ranges = [[int(number) for number in line.split()] for line in file]
    return uid if any(first <= uid < first + count for first, _, count in ranges) else None


def drop_privileges(uid: int | None, *, interpreter_readable: bool) -> None:
    """Become `uid` for good, keep no capability but reading where the interpreter needs it, and gain none by exec."""
    kept = 0
    if uid is not None:
        kept = 0 if interpreter_readable else 1 << _CAP_DAC_READ_SEARCH
        _prctl(_PR_SET_KEEPCAPS, 1)
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    _keep_capabilities(kept)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    die_with_parent()
