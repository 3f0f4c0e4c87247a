"""Shortage of memory as programs meet it: the exceptions that stand for it, and stacks that leave room for the rest.

What is limited is address space. A thread reserves its stack at once, so a program that asks for stacks of a gigabyte, as
contest programs do, would have no thread under a limit of a gigabyte. Runs in a bare interpreter; imports the standard library.
"""

from __future__ import annotations

import _thread
import errno
import resource
import sys

_FEW_THREADS = 256
"""Half of what a process may have: with fewer, it is not their number that keeps another one from starting."""
_NOT_MAPPED = ("failed to map segment", "cannot allocate memory")
_NO_THREAD = "can't start new thread"


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if an exception means that there was no memory, or no address space, for what was asked."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    try:
        message = str(error)
    except BaseException:
        return False
    if isinstance(error, RuntimeError):
        return _NO_THREAD in message and _thread._count() < _FEW_THREADS
    return isinstance(error, ImportError) and any(words in message.lower() for words in _NOT_MAPPED)


def bound_stacks() -> None:
    """Give threads of this process stacks of at most a third of its address space, whatever size they ask for.

    A thread that has ended may hold its stack for a moment while the next one, of the next test, takes its own.
    """
    most = resource.getrlimit(resource.RLIMIT_AS)[0] // 3 & -4096
    if most <= 0:  # without a limit
        return
    set_size = _thread.stack_size

    def stack_size(size: int = 0, /) -> int:
        """Set the size of stacks as threading.stack_size does, and return the size until now."""
        return set_size(min(size, most))

    for module in (_thread, sys.modules["threading"]):
        vars(module)["stack_size"] = stack_size
