"""Landlock: files to read, to list and to write, and nothing else of the file system.

Runs in a bare interpreter. Imports the standard library only.

Source: Linux, Documentation/userspace-api/landlock.rst.
"""

from __future__ import annotations

import contextlib
import ctypes
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
if TYPE_CHECKING or __name__ != "landlock":
    from ssd_ray.evaluation.sandbox.inside.kernel import LIBC, syscall
else:  # in a sandbox, where there are modules and no packages
    from kernel import LIBC, syscall

_SYS_CREATE_RULESET, _SYS_ADD_RULE, _SYS_RESTRICT_SELF = 444, 445, 446
_RULE_PATH_BENEATH = 1
_WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 1, 1 << 2, 1 << 3
_FS_BITS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""Number of file system rights by version of the ABI; later versions get those of version 5."""


class _RulesetAttributes(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_uint64) for name in ("handled_access_fs", "handled_access_net", "scoped")
    ]


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32)]


def abi_version() -> int:
    """Return the version of the kernel's Landlock ABI, 0 without Landlock."""
    return max(
        0,
        int(
            LIBC.syscall(
                ctypes.c_long(_SYS_CREATE_RULESET),
                None,
                ctypes.c_size_t(0),
                ctypes.c_uint32(1),
            )
        ),
    )


def make_ruleset(readable: Iterable[str], listable: Iterable[str], writable: Iterable[str]) -> int:
    """Return a descriptor of Landlock rules.

    The rules also deny TCP from version 4 of the ABI, and signals and abstract sockets from
    version 6.

    Args:
        readable: Files and directories to read, with everything below.
        listable: Directories to list.
        writable: Files to write.

    Raises:
        OSError: The kernel has no Landlock.
    """
    abi = abi_version()
    # The kernel refuses rights and fields unknown to its version of the ABI.
    rights = (1 << _FS_BITS.get(abi, 16)) - 1
    attributes = _RulesetAttributes(rights, 0b11 if abi >= 4 else 0, 0b11 if abi >= 6 else 0)
    size = next(size for version, size in ((6, 24), (4, 16), (0, 8)) if abi >= version)
    ruleset = syscall(
        "landlock", _SYS_CREATE_RULESET, ctypes.byref(attributes), ctypes.c_size_t(size), 0
    )
    for paths, access in (
        (readable, _READ_FILE | _READ_DIR),
        (listable, _READ_DIR),
        (writable, _READ_FILE | _WRITE_FILE),
    ):
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                _allow(ruleset, path, access)
    return ruleset


def _allow(ruleset: int, path: str, access: int) -> None:
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        # The kernel refuses rights of directories for a file.
        rights = access if os.path.isdir(path) else access & ~_READ_DIR
        rule = _PathBeneath(rights, fd)
        syscall(
            "landlock rule",
            _SYS_ADD_RULE,
            ruleset,
            _RULE_PATH_BENEATH,
            ctypes.byref(rule),
            0,
        )
    finally:
        os.close(fd)


def enter(ruleset: int) -> None:
    """Restrict this process by rules from now on; needs `PR_SET_NO_NEW_PRIVS` first."""
    syscall("landlock", _SYS_RESTRICT_SELF, ruleset, 0)
