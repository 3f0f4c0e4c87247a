"""Shortage of memory: its exceptions, and a bound on the stacks of threads.

The limit is on address space, and a thread reserves its stack at once. Contest programs ask for
stacks of a gigabyte. Under a limit of a gigabyte they could start no thread.

Runs in a bare interpreter. Imports the standard library only.
"""

from __future__ import annotations

import _thread
import errno
import resource
import sys
import time
from collections.abc import Callable

_FEW_THREADS = 256
"""Half the limit of threads. Below it, a thread that cannot start lacks memory."""
_TRIES = 5
_PAUSE_S = 0.01
_STARTS = {
    "start_new",
    "start_new_thread",
    "start_joinable_thread",
    "_start_new_thread",
    "_start_joinable_thread",
}
"""Names of the functions that start a thread, in any version of Python."""
_NOT_MAPPED = ("failed to map segment", "cannot allocate memory")
_NO_THREAD = "can't start new thread"


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if an exception means a shortage of memory or of address space."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    try:
        message = str(error)
    # An exception of the program's own class may raise anything here.
    except BaseException:
        return False
    if isinstance(error, RuntimeError):
        return _NO_THREAD in message and _thread._count() < _FEW_THREADS
    return isinstance(error, ImportError) and any(words in message.lower() for words in _NOT_MAPPED)


_set_stack_size = _thread.stack_size


def stack_size(size: int = 0, /) -> int:
    """Set the size of stacks as threading.stack_size does, and return the size before."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    # A third and not all: a thread that ended may hold its stack while the next one takes its own.
    return _set_stack_size(size if limit <= 0 else min(size, limit // 3 & -4096))


def _patient(start: Callable[..., object]) -> Callable[..., object]:
    """Return a function starting a thread that waits a moment for the stacks of ended threads.

    A joined thread holds its stack until the kernel has ended it.
    """

    def start_thread(*arguments: object, **named: object) -> object:
        for _ in range(_TRIES):
            try:
                return start(*arguments, **named)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                time.sleep(_PAUSE_S)
        return start(*arguments, **named)

    return start_thread


def bound_stacks() -> None:
    """Bound the stacks of threads to a third of the address space of their process.

    The zygote calls it once before it forks, so that no child copies memory pages for it.
    """
    for module in (_thread, sys.modules["threading"]):
        vars(module)["stack_size"] = stack_size
        for name in _STARTS & vars(module).keys():
            vars(module)[name] = _patient(vars(module)[name])
