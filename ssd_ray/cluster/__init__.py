"""Connection to Ray: the cluster at RAY_ADDRESS, else a local Ray for this process alone.

`ray job submit` sets RAY_ADDRESS. Ray is configured to send no usage reports.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

from ssd_ray.cluster import address, import_path, ray_internals, ray_log, short_paths
from ssd_ray.errors import InfrastructureError, UserError, one_line

_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Otherwise a call after `ray.shutdown` starts another Ray, or joins one on this machine.
    "RAY_ENABLE_AUTO_CONNECT": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    # Ray's C++ log would go to the screen of the driver, across the bars.
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    # Ray runs workers at niceness 15. On a small machine, drivers and daemons would delay engines.
    "RAY_worker_niceness": "0",
    # Ray looks for new log files twice a second and measures its node every 5 s. Both cost CPU time
    # and are not used here.
    "LOG_NAME_UPDATE_INTERVAL_S": "30",
    "REPORTER_UPDATE_INTERVAL_MS": "10000",
    # Driver and workers run one environment; Ray's hook for `uv run` would build another.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}

_OWN = threading.Event()


def is_own() -> bool:
    """Return True if this process has started a Ray of its own, which has one node."""
    return _OWN.is_set()


@contextmanager
def connected(logs: Path | None = None, say: Callable[[str], None] = print) -> Iterator[None]:
    """Connect to Ray for the length of a block, with its messages in `logs` if given.

    Raises:
        UserError: another version of Ray is installed, or no Ray answers at RAY_ADDRESS. Or,
            without RAY_ADDRESS: no directory can hold Ray's sockets.
        InfrastructureError: Ray did not start, or the cluster took no driver.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import_path.keep_children_safe()
    with ExitStack() as stack:
        with _signals_delayed():
            import ray

            require_pinned_version()
        # Not delayed: the first signal ends the wait for an answer.
        if address.named() and not ray.is_initialized():
            address.check_answer(say)
        with _signals_delayed():
            stack.enter_context(ray_log.kept_in(logs))
            if not ray.is_initialized():
                stack.callback(_leave)
                _start(say)
        yield


def require_pinned_version() -> None:
    """Refuse a version of Ray whose internals may differ from those in `ray_internals`.

    Raises:
        UserError: another version is installed.
    """
    import ray

    pinned = ray_internals.PINNED
    if ray.__version__ != pinned:
        raise UserError(
            f"ray {ray.__version__} is installed and this version of ssd_ray needs ray {pinned}: "
            f"pip install 'ray[data,default,train]=={pinned}'"
        )


def _leave() -> None:
    import ray

    sys.stdout.flush()
    ray.shutdown()
    _OWN.clear()


def _start(say: Callable[[str], None]) -> None:
    """Connect to the cluster at RAY_ADDRESS, or start a local Ray.

    SIGTERM stays with the command line, whose handler prints the command to resume.
    """
    import ray

    options: dict[str, object] = {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "configure_logging": True,
        "job_config": import_path.job_config(),
    }
    named = address.named()
    if not named:
        options |= {"address": "local", "include_dashboard": False}
        options |= ray_internals.start_options(short_paths.ray_directory(say))
    with (
        warnings.catch_warnings(),
        _silent_stderr(),
        ray_internals.plain_start(),
    ):
        warnings.simplefilter("ignore", FutureWarning)
        try:
            ray.init(**options)
        # Ray raises a bare Exception when a start takes too long.
        except Exception as error:
            where = f"the cluster at RAY_ADDRESS={named}" if named else "a local Ray"
            raise InfrastructureError(
                f"could not reach or start {where}: {one_line(error)}"
            ) from error
    if not named:
        _OWN.set()


@contextmanager
def _signals_delayed() -> Iterator[None]:
    """Delay Ctrl-C and SIGTERM to the end of the block; handle a second one at once.

    An exception raised by a signal handler inside a callback of Ray is lost, and the run goes on.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    current = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    # None is a handler of C code, which Python cannot restore.
    handlers = {number: handler for number, handler in current.items() if handler is not None}
    delayed: list[int] = []

    def delay(number: int, frame: FrameType | None) -> None:
        delayed.append(number)
        if len(delayed) == 1:
            return
        handler = handlers[signal.Signals(number)]
        if callable(handler):
            handler(number, frame)
        else:
            # SIG_DFL or SIG_IGN: the system acts on them, once they are set.
            signal.signal(number, handler)
            signal.raise_signal(number)

    for number in handlers:
        signal.signal(number, delay)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if delayed:
        signal.raise_signal(delayed[0])


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Keep messages of C++ code off the screen; failures still raise exceptions."""
    sys.stderr.flush()
    # C++ writes to the descriptor, so replacing sys.stderr would not help.
    saved = os.dup(2)
    with open(os.devnull, "w") as null:
        os.dup2(null.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
