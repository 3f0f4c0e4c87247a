"""Nodes of a cluster see the run directory of the driver and run the same software.

- The driver writes a nonce into the run directory. A task on each node reads it, once, and tries
  the lock that the driver holds.
- The same task compares the versions of Python, Ray and this package, and the package's digest.
- Nodes that join later are examined too. A fault there ends the run as Ctrl-C does.

Writes and deletes `.nonce` in the run directory and in its `generations/`.
"""

from __future__ import annotations

import fcntl
import os
import platform
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ssd_ray.artifacts import files, versions
from ssd_ray.cluster import address
from ssd_ray.errors import OutsideError, first_line

_LATE_S = 5.0
"""Longest wait for the nonce: network storage may show a new file late."""
_ANSWER_S = 120.0
"""Longest wait for the answer of a node; a busy one may take minutes to start a process."""
_POLL_S = 2.0
_NONCE = ".nonce"
_SEEN_BY_GRADERS = "generations"
"""A directory of the run that pods of graders mount. They see no file next to it."""


@dataclass(frozen=True, kw_only=True)
class Expected:
    """Observations of the driver, for comparison on another node."""

    run: Path
    nonce: str
    software: dict[str, str]
    """Versions by name, for a reader."""


def software() -> dict[str, str]:
    """Return versions that driver and nodes must share."""
    installed = versions.installed()
    return {
        "Python": platform.python_version(),
        "Ray": installed.get("ray", "none"),
        "ssd-ray": f"{installed.get('ssd-ray', 'none')} ({versions.package_digest()})",
    }


def fault(expected: Expected, node: str) -> str:
    """Return the reason why this node cannot work for a driver, "" if it can."""
    here = software()
    for name, there in expected.software.items():
        if here[name] != there:
            return (
                f"node {node} runs {name} {here[name]} and the driver {name} {there}: use one "
                "state of image and package for all nodes"
            )
    run = expected.run
    if not _reads_nonce(expected):
        state = "differs" if run.is_dir() else "does not exist"
        return (
            f"{run} {state} on node {node}: mount the same shared volume there, or give --out on "
            "storage that every node sees"
        )
    if _grants_lock(run / ".lock"):
        return (
            f"node {node} is granted the lock of {run} that the driver holds: mount the volume "
            "with locks shared by all nodes (NFS without nolock and local_lock)"
        )
    return ""


def _nonces(run: Path) -> tuple[Path, Path]:
    """Return the places of the nonce: for nodes with the run, and for those with parts of it."""
    return run / _NONCE, run / _SEEN_BY_GRADERS / _NONCE


def _reads_nonce(expected: Expected) -> bool:
    until = time.monotonic() + _LATE_S
    while True:
        for path in _nonces(expected.run):
            with suppress(OSError):
                if path.read_text() == expected.nonce:
                    return True
        if time.monotonic() > until:
            return False
        time.sleep(0.2)


def _grants_lock(path: Path) -> bool:
    """Return True if a lock is granted here; False without the file, or on a read-only volume.

    Pods of graders see parts of the run directory alone, and no lock.
    """
    try:
        with path.open("r+") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except OSError:
        return False


@contextmanager
def required(run: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Examine all nodes of a connected cluster, and those that join within the block.

    The caller holds the lock of `run`. A local Ray is left alone. `say` gets a line when Ray's
    control service does not answer; the examination goes on once it does.

    Raises:
        OutsideError: a node cannot work for this driver.
    """
    if not address.named():
        yield
        return
    nonce = uuid.uuid4().hex
    for path in _nonces(run):
        files.make_directory(path.parent)
        files.write_atomic(path, nonce)
    expected = Expected(run=run.absolute(), nonce=nonce, software=software())
    watch = _Watch(lambda nodes: _ask(expected, nodes), say)
    try:
        if reason := watch.examine_new():
            raise OutsideError(reason)
        watch.start()
        yield
    except KeyboardInterrupt:
        if watch.fault:
            raise OutsideError(watch.fault) from None
        raise
    finally:
        watch.stop()
        for path in _nonces(run):
            path.unlink(missing_ok=True)


class _Watch:
    """Thread that examines each node once, as it joins."""

    def __init__(self, ask: Callable[[dict[str, str]], str], say: Callable[[str], None]) -> None:
        self.fault = ""
        self._ask = ask
        self._say = say
        self._examined: set[str] = set()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="nodes", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(timeout=_POLL_S)

    def examine_new(self) -> str:
        """Return the first fault of the nodes not yet examined, "" if there is none."""
        import ray

        nodes = {
            node["NodeID"]: node["NodeManagerHostname"]
            for node in ray.nodes()
            if node["Alive"] and node["NodeID"] not in self._examined
        }
        reason = self._ask(nodes)
        self._examined |= nodes.keys()
        return reason

    def _loop(self) -> None:
        import ray

        away = False
        while not self._stopped.wait(_POLL_S):
            try:
                reason = self.examine_new()
            # The control service restarts, or the cluster ends and the run with it.
            except (ray.exceptions.RayError, ConnectionError, TimeoutError) as error:
                if not away and not self._stopped.is_set():
                    self._say(f"nodes that join wait for their examination: {first_line(error)}")
                away = True
                continue
            away = False
            if reason and not self._stopped.is_set():
                self.fault = reason
                os.kill(os.getpid(), _stop_signal())
                return


def _stop_signal() -> signal.Signals:
    """Return the signal that raises KeyboardInterrupt here; shells let jobs ignore SIGINT."""
    return signal.SIGTERM if callable(signal.getsignal(signal.SIGTERM)) else signal.SIGINT


def _ask(expected: Expected, nodes: dict[str, str]) -> str:
    """Return the first fault of nodes, by id and name; a node lost before its answer has none."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asked = []
    for node, name in nodes.items():
        # Without a core of its own, it also runs on a node whose cores are taken.
        examine = ray.remote(fault).options(
            num_cpus=0,
            max_retries=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
        )
        asked.append((name, examine.remote(expected, name)))
    for name, answer in asked:
        try:
            if reason := ray.get(answer, timeout=_ANSWER_S):
                return str(reason)
        except ray.exceptions.RayTaskError as error:
            # An earlier version of the package lacks this module, another image all of it.
            return (
                f"node {name} does not run the driver's package ({first_line(error)}): use one "
                "state of image and package for all nodes"
            )
        except (ray.exceptions.RayError, TimeoutError):
            continue
    return ""
