"""A root of its own for the processes of a zygote: a read-only file system of bind mounts.

Reads the mount points of this process. Runs in a bare interpreter. Imports the standard library
only.
"""

from __future__ import annotations

import ctypes
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
if TYPE_CHECKING or __name__ != "mounts":
    from ssd_ray.evaluation.sandbox.inside.kernel import LIBC, fail, syscall
else:  # in a sandbox, where there are modules and no packages
    from kernel import LIBC, fail, syscall

_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REMOUNT, _MS_BIND = 1, 2, 4, 8, 32, 4096
_MS_REC, _MS_PRIVATE, _MNT_DETACH = 1 << 14, 1 << 18, 2
_SYS_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE = 442, -100, 0x8000
_SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}


class _MountAttributes(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd")
    ]


def _mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    arguments = [text.encode() if text is not None else None for text in (source, target, kind)]
    if LIBC.mount(*arguments, ctypes.c_ulong(flags), data.encode()):
        fail(f"mount {target}")


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
    syscall("pivot_root", _SYS_PIVOT_ROOT[os.uname().machine], b".", b".")
    if LIBC.umount2(b".", _MNT_DETACH):
        fail("umount")
    os.chdir("/")
    attributes = _MountAttributes(attr_set=_MS_RDONLY | _MS_NOSUID)
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    syscall(
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
