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
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from ssd_ray import recipes
from ssd_ray.artifacts import shards
from ssd_ray.artifacts.audit import audit
from ssd_ray.config import ClusterConfig
from ssd_ray.errors import InfrastructureError
from ssd_ray.pipeline.run import Run
from ssd_ray.progress import LineProgress, RecordedProgress
from ssd_ray.submissions.retries import RETRIED_BY
from ssd_ray.submissions.turn import turn
from tests.support.processes import command_of, descendants, kill_all
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


@dataclass(frozen=True)
class Head:
    """A head node of Ray: the address of its dashboard, the port of Ray, and its process."""

    address: str
    port: int
    process: psutil.Popen

    def job(self, job_id: str) -> dict[str, Any]:
        """Return the record of a job, as the dashboard has it."""
        headers = {"Authorization": f"Bearer {TOKEN['RAY_AUTH_TOKEN']}"}
        request = urllib.request.Request(f"{self.address}/api/jobs/{job_id}", headers=headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            record: dict[str, Any] = json.load(answer)
        return record


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """Start a Ray head node; it ends with the module."""
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
        # As in `k8s/`: a stopped job has time to save its state.
        env=inherited | TOKEN | {"PATH": PATH, "RAY_JOB_STOP_WAIT_TIME_S": "110"},
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 120
        while socket.socket().connect_ex(("127.0.0.1", dashboard)):
            assert process.poll() is None, Path(log.name).read_text()
            assert time.monotonic() < deadline, "the dashboard did not come up"
            time.sleep(0.2)
        yield Head(f"http://127.0.0.1:{dashboard}", ports["port"], process)
    finally:
        family = [process, *descendants(process.pid)]
        process.terminate()
        _, alive = psutil.wait_procs(family, timeout=5)
        kill_all(alive)
        log.close()
        shutil.rmtree(temporary, ignore_errors=True)


def _submission(head: Head, entry: list[str], *options: str) -> subprocess.Popen[str]:
    """Start `ray job submit` of an entry point in the checkout."""
    command = [RAY, "job", "submit", "--address", head.address, "--working-dir", ".", *options]
    return subprocess.Popen(
        [*command, "--", *entry],
        cwd=ROOT,
        env=_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | TOKEN


def _finished(job: subprocess.Popen[str], status: int = 0) -> list[str]:
    """Wait for the end of a submission, and return its lines."""
    output, _ = job.communicate(timeout=500)
    assert job.returncode == status, output[-6000:]
    return output.splitlines()


def test_a_mistake_stops_a_job_that_is_retried(head: Head, tmp_path: Path) -> None:
    """KubeRay makes no cluster for a stopped job. Its RayJob has these metadata."""
    out = tmp_path / "run"
    entry = ["python", "jobs/pipeline.py", "nowhere.yaml", "--out", str(out)]
    metadata = ["--metadata-json", json.dumps({RETRIED_BY: "kuberay"})]
    retried = _submission(head, entry, *metadata, "--submission-id", "retried")
    other = _submission(head, entry, "--submission-id", "other")
    lines, failed = _finished(retried), _finished(other, 1)
    assert head.job("retried")["status"] == "STOPPED"
    assert head.job("other")["status"] == "FAILED"
    begin = lines.index(f"run directory: {out}")
    assert lines[begin + 1] == "this job is stopped, because kuberay would repeat the mistake"
    assert lines[begin + 2].startswith("error: ")
    assert lines[begin + 2] == failed[failed.index(f"run directory: {out}") + 1]


class Submitted:
    """A run of the tiny recipe by jobs: the first one is stopped in sampling, the next goes on."""

    def __init__(self, head: Head, recipe: Path) -> None:
        self.head = head
        self.out = recipe.parent / "run"
        small = [
            "prompts.limit=24",
            "train.steps=2",
            "evaluate.limit=2",
            "evaluate.benchmarks=[builtin]",
        ]
        self.arguments = [str(recipe), "--out", str(self.out)]
        self.arguments += [part for choice in small for part in ("--set", choice)]
        self.entry = ["python", "jobs/pipeline.py", *self.arguments]
        self.stop_s, self.first = self._stopped()
        self.engines = [
            command
            for command in map(command_of, descendants(head.process.pid))
            if "EngineWorker" in command
        ]
        self.kept = audit(self.out / "samples").positions
        self.second = _finished(_submission(head, self.entry))

    def _stopped(self) -> tuple[float, list[str]]:
        """Stop a job between two shards; return the seconds that it took, and its lines."""
        job = _submission(self.head, self.entry, "--submission-id", "stopped")
        deadline = time.monotonic() + 300
        while not shards.shard_paths(self.out / "samples"):
            assert job.poll() is None, job.communicate()[0][-6000:]
            assert time.monotonic() < deadline, "no shard of samples"
            time.sleep(0.02)
        begun = time.monotonic()
        command = [RAY, "job", "stop", "--address", self.head.address, "stopped"]
        subprocess.run(command, env=_environment(), check=True, capture_output=True, timeout=120)
        return time.monotonic() - begun, _finished(job)


@pytest.fixture(scope="module")
def submitted(head: Head, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Submitted:
    recipe = tmp_path_factory.mktemp("submitted") / "tiny.yaml"
    recipe.write_text(RECIPE.format(model=tiny_llama))
    return Submitted(head, recipe)


def test_a_stopped_job_leaves_a_state_within_the_notice(submitted: Submitted) -> None:
    assert submitted.stop_s < ClusterConfig().notice_s
    assert submitted.engines == []
    assert submitted.head.job("stopped")["status"] == "STOPPED"
    begin = submitted.first.index(f"run directory: {submitted.out}")
    assert submitted.first[begin - 1].startswith("Running entrypoint for job stopped: ")
    resume = f"To resume: ray job submit --working-dir . -- {shlex.join(submitted.entry)}"
    assert f"interrupted; what is on disk stays. {resume}" in submitted.first
    assert 0 < submitted.kept < 48


def test_the_next_submission_goes_on_to_the_report(submitted: Submitted) -> None:
    drawn = json.loads((submitted.out / "samples" / "pace.json").read_text())["rows"]
    assert 0 < drawn <= 48 - submitted.kept
    assert audit(submitted.out / "samples", digests=True).positions == 48
    assert json.loads((submitted.out / "report" / "scores.json").read_text())
    page = submitted.out / "report" / "report.html"
    assert page.stat().st_size > 10_000
    assert f"report: {page}" in submitted.second
    assert any("succeeded" in line for line in submitted.second[-4:])


def test_a_finished_run_submitted_again_ends_at_once(submitted: Submitted) -> None:
    again = _finished(_submission(submitted.head, submitted.entry, "--submission-id", "again"))
    assert f"report: {submitted.out / 'report' / 'report.html'}" in again
    record = submitted.head.job("again")
    assert (record["end_time"] - record["start_time"]) / 1000 < 5


def test_grading_and_comparing_are_jobs_too(submitted: Submitted) -> None:
    """The comparison is with a copy of the run."""
    head, out = submitted.head, submitted.out
    other = out.with_name("other")
    shutil.copytree(out, other)
    grade = _submission(head, ["python", "jobs/grade.py", *submitted.arguments])
    compare = _submission(head, ["python", "jobs/compare.py", str(out), str(other)])
    graded, compared = _finished(grade), _finished(compare)
    begin = graded.index(f"run directory: {out}")
    assert graded[begin - 1].startswith("Running entrypoint for job ")
    # The result of the job: the directories of verdicts.
    assert [line for line in graded[begin:] if line.startswith("/")] == [
        str(out / "verdicts" / "base"),
        str(out / "verdicts" / "ssd"),
    ]
    begin = compared.index(f"first run: {out}")
    assert compared[begin - 1].startswith("Running entrypoint for job ")
    assert compared[begin + 1] == f"second run: {other}"


def test_a_submitted_job_attaches_and_ends_as_the_owner_does(
    head: Head, tmp_path: Path, tiny_llama: Path
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


def test_workers_set_their_niceness_to_0_if_they_may(head: Head) -> None:
    """A raylet reads it from its own environment, so a driver would set it too late."""
    lines = _finished(_submission(head, ["python", "-c", NICENESS]))
    assert f"niceness 15 {0 if os.getuid() == 0 else 15}" in lines
