"""Run commands of `ssd-ray` within the process of a test, faster than in a new one."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from ssd_ray.cli.app import main


def exit_status(*arguments: str | Path) -> int:
    """Return the exit status of a command.

    Exceptions other than SystemExit propagate. The handler of SIGTERM and `sys.argv`, which `main`
    sets, are restored.
    """
    handler, argv = signal.getsignal(signal.SIGTERM), sys.argv
    try:
        with pytest.raises(SystemExit) as ending:
            main([str(argument) for argument in arguments])
    finally:
        signal.signal(signal.SIGTERM, handler)
        sys.argv = argv
    return int(ending.value.code or 0)
