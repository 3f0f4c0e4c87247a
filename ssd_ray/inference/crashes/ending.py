"""End an engine's process with its reason on record, whatever state its storage is in."""

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
    """Have `write` called with the reason before this process is ended."""
    _writers.append(write)


def end_process(reason: str) -> NoReturn:
    """End this process; Ray starts another in its place and the driver counts.

    Writing the reason may hang, as on storage that does not answer, and must not keep the process.
    """
    print(f"engine: {reason}", file=sys.stderr, flush=True)
    writing = threading.Thread(target=lambda: [write(reason) for write in _writers], daemon=True)
    writing.start()
    writing.join(_RECORD_S)
    os._exit(CRASH_EXIT_CODE)
