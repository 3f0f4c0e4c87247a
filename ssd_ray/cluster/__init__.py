"""The connection to Ray: an existing cluster where one is named, else one in this machine that ends with this process.

Under `ray job submit` and with RAY_ADDRESS set, the cluster is the one named. Sends no usage reports.
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
from typing import Any

from ssd_ray.cluster import import_path, ray_internals, ray_log, short_paths
from ssd_ray.config import ClusterConfig
from ssd_ray.errors import InfrastructureError, UserError, one_line

_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Else a call after the end of ours would start another Ray, or go to anybody's on this machine.
    "RAY_ENABLE_AUTO_CONNECT": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    # Ray's C++ log goes to the screen of the driver otherwise, across the bars.
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    # Ray runs workers at niceness 15: on a small machine an engine would wait for every driver and daemon beside it.
    "RAY_worker_niceness": "0",
    # Nobody looks at these: new log files twice a second, and the node's figures every 5 s.
    "LOG_NAME_UPDATE_INTERVAL_S": "30",
    "REPORTER_UPDATE_INTERVAL_MS": "10000",
    # Driver and workers run one environment; Ray's hook for `uv run` would build another.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}


@contextmanager
def connected(
    cluster: ClusterConfig, logs: Path | None = None, say: Callable[[str], None] = print
) -> Iterator[None]:
    """Connect to Ray for the length of a block; what Ray says goes to `logs` where they are given.

    Raises:
        UserError: the cluster has no device that the recipe asks for.
        InfrastructureError: Ray did not start, or the named cluster did not answer.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import_path.keep_children_safe()
    with ExitStack() as stack:
        with _signals_held():
            import ray

            ray_internals.require_pinned_version()
            stack.enter_context(ray_log.kept_in(logs))
            if not ray.is_initialized():
                stack.callback(_leave)
                _start(say)
        _check_devices(cluster)
        yield


def _leave() -> None:
    import ray

    sys.stdout.flush()
    ray.shutdown()


def _start(say: Callable[[str], None]) -> None:
    """Connect to the named cluster or start Ray here, leaving SIGTERM to the command line, which says how to resume.

    A Ray of our own has no monitor of its log files, whose lines nobody is sent: it reads them all ten times a second.
    """
    import ray

    options: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "configure_logging": True,
        "job_config": import_path.job_config(),
    }
    named = os.environ.get("RAY_ADDRESS")
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
        except Exception as error:  # a start that takes too long is a bare Exception to Ray
            where = f"the cluster at RAY_ADDRESS={named}" if named else "a local Ray"
            raise InfrastructureError(
                f"could not reach or start {where}: {one_line(error)}"
            ) from error


@contextmanager
def _signals_held() -> Iterator[None]:
    """Answer Ctrl-C and SIGTERM at the end of the block, a second one at once.

    An exception out of a signal's handler is lost where it meets one of Ray's callbacks, and then the run goes on.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    answers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    usual = {
        number: answer for number, answer in answers.items() if answer is not None
    }  # None: not Python's to restore
    held: list[int] = []

    def hold(number: int, frame: FrameType | None) -> None:
        held.append(number)
        answer = usual[signal.Signals(number)]
        if len(held) == 1:
            return
        if callable(answer):
            answer(number, frame)
        else:  # the default, which ends the process, or to ignore it
            signal.signal(number, answer)
            signal.raise_signal(number)

    for number in usual:
        signal.signal(number, hold)
    try:
        yield
    finally:
        for number, answer in usual.items():
            signal.signal(number, answer)
    if held:
        signal.raise_signal(held[0])


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Keep what C++ code prints at start off the screen; failures come back as exceptions."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _check_devices(cluster: ClusterConfig) -> None:
    """Refuse a recipe for GPUs on a cluster that neither has nor can start one."""
    import ray

    if (
        cluster.device == "cuda"
        and os.environ.get("RAY_ADDRESS") is None
        and ray.cluster_resources().get("GPU", 0) == 0
    ):
        raise UserError(
            "cluster.device is 'cuda' and this machine has no GPU: use --set cluster.device=cpu, or a cluster with GPUs"
        )
