"""`ray start --head` and `ray job submit` with the tiny model, as the README prints them."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from ssd_ray import recipes
from ssd_ray.errors import InfrastructureError
from ssd_ray.pipeline.run import Run
from ssd_ray.progress import LineProgress, RecordedProgress
from ssd_ray.submissions.turn import turn
from tests.support.processes import descendants, kill_all
from tests.support.tiny_run import RECIPE

pytestmark = pytest.mark.real

ROOT = Path(__file__).parent.parent
RAY = str(Path(sys.executable).parent / "ray")
# The job's `python` is the one that runs this test.
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])


# Clusters require a token: a dashboard without one lets everyone run programs on its machine.
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef0123456789abcdef"}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def head() -> Iterator[str]:
    """Start a Ray head node and yield its dashboard address; it ends with the module."""
    # Sockets have short names: the test's own directory is too deep.
    temporary = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    dashboard = _free_port()
    ports = {
        "port": _free_port(),
        "dashboard-port": dashboard,
        "dashboard-agent-listen-port": _free_port(),
    }
    command = [
        RAY,
        "start",
        "--head",
        "--block",
        "--temp-dir",
        temporary,
        "--num-cpus",
        "2",
        "--disable-usage-stats",
    ]
    command += [f"--{name}={port}" for name, port in ports.items()]
    log = open(f"{temporary}/head.log", "w+")  # noqa: SIM115 - it lives as long as the head
    # Other tests of this process used their own Ray and left its address in the environment.
    inherited = {name: value for name, value in os.environ.items() if name != "RAY_worker_niceness"}
    process = psutil.Popen(
        command,
        stdout=log,
        stderr=log,
        env=inherited | TOKEN | {"PATH": PATH},
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 120
        while socket.socket().connect_ex(("127.0.0.1", dashboard)):
            assert process.poll() is None, Path(log.name).read_text()
            assert time.monotonic() < deadline, "the dashboard did not come up"
            time.sleep(0.2)
        yield f"http://127.0.0.1:{dashboard}"
    finally:
        family = [process, *descendants(process.pid)]
        process.terminate()
        _, alive = psutil.wait_procs(family, timeout=5)
        kill_all(alive)
        log.close()
        shutil.rmtree(temporary, ignore_errors=True)


def test_a_submitted_job_runs_from_prompts_to_report(
    head: str, tmp_path: Path, tiny_llama: Path
) -> None:
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(RECIPE.format(model=tiny_llama))
    out = tmp_path / "run"
    small = [
        "prompts.limit=8",
        "train.steps=2",
        "evaluate.limit=2",
        "evaluate.benchmarks=[builtin]",
    ]
    entry = ["python", "jobs/pipeline.py", str(recipe), "--out", str(out)]
    entry += [part for choice in small for part in ("--set", choice)]
    command = [RAY, "job", "submit", "--address", head, "--working-dir", ".", "--", *entry]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | TOKEN
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "succeeded" in done.stdout
    scores = json.loads((out / "report" / "scores.json").read_text())
    assert scores
    assert (out / "report" / "report.html").stat().st_size > 10_000


def _submission(head: str, entry: list[str]) -> subprocess.Popen[str]:
    """Start `ray job submit` of an entry point in the checkout."""
    command = [RAY, "job", "submit", "--address", head, "--working-dir", ".", "--", *entry]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | TOKEN
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_submitted_job_attaches_and_ends_as_the_owner_does(
    head: str, tmp_path: Path, tiny_llama: Path
) -> None:
    """The owner is this process: it has the work of `jobs/pipeline.py`, and fails."""
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(RECIPE.format(model=tiny_llama))
    out = tmp_path / "run"
    entry = ["python", "jobs/pipeline.py", str(recipe), "--out", str(out)]
    work = Run(recipes.load(recipe), out, LineProgress()).work("report")
    progress = RecordedProgress(LineProgress())

    def own() -> list[str]:
        """Own the directory until a job has attached, and return the log of the job so far."""
        with turn(out, work, progress):
            progress.say("samples: half of them")
            job = _submission(head, entry)
            jobs.append(job)
            assert job.stdout is not None
            for line in job.stdout:
                lines.append(line.rstrip("\n"))
                if line == "samples: half of them\n":
                    other = _submission(head, [*entry, "--set", "sample.temperature=0.5"])
                    refused = other.communicate(timeout=300)[0]
                    assert other.returncode == 1
                    assert f"error: {out} is in use by process {os.getpid()} on " in refused
                    assert "(sample.temperature: 1.2 there, 0.5 here)" in refused
                    raise InfrastructureError("the node is lost")
        raise AssertionError("\n".join(lines))

    jobs: list[subprocess.Popen[str]] = []
    lines: list[str] = []
    with pytest.raises(InfrastructureError):
        own()
    lines += jobs[0].communicate(timeout=300)[0].splitlines()
    begin = lines.index(f"run directory: {out}")
    assert lines[begin + 1].startswith(f"attached to process {os.getpid()} on ")
    resume = f"To resume: ray job submit --working-dir . -- {shlex.join(entry)}"
    end = lines.index("failed: the node is lost")
    assert lines[end + 1] == f"stopped; what is on disk stays. {resume}"
    assert jobs[0].returncode == 1


NICENESS = """
import ray
from ssd_ray import cluster
from ssd_ray.cluster import niceness

def settled():
    return niceness.niceness(), niceness.settle()

with cluster.connected():
    print("niceness", *ray.get(ray.remote(settled).remote()))
"""


def test_workers_set_their_niceness_to_0_if_they_may(head: str) -> None:
    """A raylet reads it from its own environment, so a driver would set it too late."""
    command = [
        RAY,
        "job",
        "submit",
        "--address",
        head,
        "--working-dir",
        ".",
        "--",
        "python",
        "-c",
        NICENESS,
    ]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | TOKEN
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert f"niceness 15 {0 if os.getuid() == 0 else 15}" in done.stdout
