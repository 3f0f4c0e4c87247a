"""Calls of the kernel without a wrapper in the standard library, by ctypes.

Runs in a bare interpreter. Imports the standard library only.
"""

from __future__ import annotations

import ctypes
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

LIBC = ctypes.CDLL(None, use_errno=True)
ZERO = ctypes.c_ulong(0)


def fail(what: str) -> NoReturn:
    """Raise the error of the last call.

    Raises:
        OSError: always; the message begins with `what`.
    """
    number = ctypes.get_errno()
    raise OSError(number, f"{what}: {os.strerror(number)}")


def prctl(option: int, value: object) -> None:
    """Set an attribute of this process.

    Raises:
        OSError: The kernel refuses it.
    """
    if LIBC.prctl(option, value, ZERO, ZERO, ZERO):
        fail(f"prctl({option})")


def syscall(what: str, number: int, *arguments: object) -> int:
    """Return the result of a system call by its number.

    Raises:
        OSError: The call failed; the message begins with `what`.
    """
    result = int(LIBC.syscall(ctypes.c_long(number), *arguments))
    if result < 0:
        fail(what)
    return result
