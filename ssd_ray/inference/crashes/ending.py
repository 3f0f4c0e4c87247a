"""End an engine's process and record the reason, even if its storage hangs."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import NoReturn

CRASH_EXIT_CODE = 70
_RECORD_S = 5.0
_writers: list[Callable[[str], None]] = []


def record_reasons(write: Callable[[str], None]) -> None:
    """Register a function to be called with the reason before this process ends."""
    _writers.append(write)


def end_process(reason: str) -> NoReturn:
    """End this process; Ray starts another in its place, and the driver counts a crash.

    Writing the reason may hang on storage without an answer. The process ends nevertheless.
    """
    print(f"engine: {reason}", file=sys.stderr, flush=True)
    writing = threading.Thread(target=lambda: [write(reason) for write in _writers], daemon=True)
    writing.start()
    writing.join(_RECORD_S)
    os._exit(CRASH_EXIT_CODE)
