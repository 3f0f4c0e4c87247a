"""The launcher of a gVisor sandbox: it makes one, runs the guest agent in it, removes it.

- The guest agent serves on the launcher's own standard streams.
- The launcher is a process of its own, so a killed grader leaves nothing. The kernel then sends
  SIGTERM to the launcher, as a grader does itself to end it.

Uses `ray.experimental.sandbox`, whose images and bundles are in /tmp/ray/sandbox.
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
"""Capabilities in the sandbox's own kernel.

- The zygote needs the first three to give programs user ids of their own.
- The last two are defaults of runsc, which does not start rootless without them. The zygote keeps
  neither.
- Programs have no capability at all.
"""

_SERVE = """
from ssd_ray.evaluation.sandbox.gvisor import guest_agent
try:
    guest_agent.main()
finally:
    os.kill(1, 9)  # the sandbox's first process: all others end with it, even without a launcher
"""


class _Launcher:
    """A sandbox and the process of its guest agent, as seen on this machine."""

    def __init__(self) -> None:
        self._agent: subprocess.Popen[bytes] | None = None
        signal.signal(signal.SIGTERM, self._end)
        walls.die_with_parent(signal.SIGTERM)
        # A grader that died before the line above sends no signal.
        self._ended = os.getppid() != int(sys.argv[1])

    def _end(self, number: int, frame: FrameType | None) -> None:
        self._ended = True
        if self._agent is not None:
            self._agent.kill()

    def run(self) -> None:
        """Make a sandbox, run its guest agent to its end, and remove the sandbox."""
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
                self._agent = subprocess.Popen([*_runsc(runtime, name), *_command()])
                # The signal may have come before the assignment above.
                if self._ended:
                    self._agent.kill()
                self._agent.wait()
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
    """Return the command of the guest agent, with the modules of the image on its path."""
    places = [
        image.SOURCES,
        *sorted({os.path.dirname(place) for place in bootstrap.package_paths()}),
    ]
    code = f"import os, sys; sys.path[:0] = {places!r}\n{_SERVE}"
    return [image.interpreter(), "-s", "-P", "-S", "-B", "-X", "utf8", "-c", code]


def main() -> None:
    """Run one sandbox; answer `denied` with the reason if none can be made."""
    try:
        _Launcher().run()
    except (SandboxError, InfrastructureError, OSError) as error:
        print(wire.dumps(["denied", one_line(error)]), flush=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
