"""Makes a gVisor sandbox, runs the relay in it on the streams it was given, and clears it away when the relay has ended.

A process of its own beside a grader, so that nothing is left when the grader is killed: the kernel then tells it to terminate,
as the grader does when it is done. Uses `ray.experimental.sandbox`, whose images and bundles lie in /tmp/ray/sandbox.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from types import FrameType

from ray.experimental.sandbox import SandboxError
from ray.experimental.sandbox.runtime import SandboxRuntime

from ssd_ray import wire
from ssd_ray.cluster import ray_internals
from ssd_ray.errors import InfrastructureError, one_line
from ssd_ray.evaluation.sandbox import bootstrap
from ssd_ray.evaluation.sandbox.gvisor import image
from ssd_ray.evaluation.sandbox.inside import walls

START_TIMEOUT_S = 120.0
_CAPABILITIES = ["CAP_KILL", "CAP_SETGID", "CAP_SETUID", "CAP_AUDIT_WRITE", "CAP_NET_BIND_SERVICE"]
"""Towards the sandbox's own kernel: what the zygote needs to give programs user ids of their own, and the last two of runsc's
three defaults, without which it does not start rootless. The zygote keeps none of those, and programs have none at all."""

_SERVE = """
from ssd_ray.evaluation.sandbox.gvisor import guest_agent
try:
    guest_agent.main()
finally:
    os.kill(1, 9)  # the sandbox's first process: all goes with it, also where no keeper is left
"""


class _Keeper:
    """The relay's process as this machine sees it."""

    def __init__(self) -> None:
        self._relay: subprocess.Popen[bytes] | None = None
        signal.signal(signal.SIGTERM, self._end)
        walls.die_with_parent(signal.SIGTERM)
        self._ended = os.getppid() != int(sys.argv[1])

    def _end(self, number: int, frame: FrameType | None) -> None:
        self._ended = True
        if self._relay is not None:
            self._relay.kill()

    def keep(self) -> None:
        """Return when the relay has ended and its sandbox is gone."""
        if self._ended:
            return
        runtime = SandboxRuntime()
        tar = str(image.tar_file())
        environment = {"PATH": "/usr/bin:/bin"}
        name = runtime.create(
            tar, env=environment, capabilities=_CAPABILITIES, timeout_seconds=START_TIMEOUT_S
        )
        try:
            if not self._ended:
                self._relay = subprocess.Popen([*_runsc(runtime, name), *_command()])
                if self._ended:
                    self._relay.kill()
                self._relay.wait()
        finally:
            runtime.delete(name)


def _runsc(runtime: SandboxRuntime, name: str) -> list[str]:
    """Return the command line of `runsc exec` in a sandbox, up to the command to run."""
    arguments = ray_internals.runsc_arguments(runtime, name)
    return [*arguments, "exec", "-cwd", "/", *_environment(), name]


def _environment() -> list[str]:
    return [
        word
        for name, value in bootstrap.environment().items()
        for word in ("-env", f"{name}={value}")
    ]


def _command() -> list[str]:
    """The interpreter within, with the sources and the packages of the image on its path; at last it ends the sandbox."""
    places = [
        image.SOURCES,
        *sorted({os.path.dirname(place) for place in bootstrap.package_paths()}),
    ]
    code = f"import os, sys; sys.path[:0] = {places!r}\n{_SERVE}"
    return [image.interpreter(), "-s", "-P", "-S", "-B", "-X", "utf8", "-c", code]


def main() -> None:
    """Keep one sandbox; say why where none can be made."""
    try:
        _Keeper().keep()
    except (SandboxError, InfrastructureError, OSError) as error:
        print(wire.dumps(["denied", one_line(error)]), flush=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
