"""A job that is retried at every failure stops itself at a mistake of the user."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ssd_ray.errors import LastingError, OutsideError, UserError
from ssd_ray.submissions import retries
from tests.support.job_service import JOB_ID, JobService, job_service

RETRIED = {retries.RETRIED_BY: "kuberay"}
MISTAKEN = ["python", "jobs/pipeline.py", "nowhere.yaml"]


@pytest.fixture
def service() -> Iterator[JobService]:
    with job_service() as served:
        yield served


@pytest.mark.slow
def test_a_mistake_stops_a_job_that_is_retried(service: JobService) -> None:
    status, log = service.run(MISTAKEN, RETRIED)
    assert (status, service.stopped) == ("STOPPED", [JOB_ID])
    assert service.process is not None
    assert service.process.returncode == 2
    assert log[-2] == "this job is stopped, because kuberay would repeat the mistake"
    assert log[-1].startswith("error: ")
    assert "nowhere.yaml" in log[-1]


def test_refused_arguments_stop_it_too(service: JobService) -> None:
    status, log = service.run(["python", "jobs/train.py", "quickstart", "--sett=a"], RETRIED)
    assert status == "STOPPED"
    assert "No such option: --sett" in "\n".join(log)


def test_other_jobs_fail(service: JobService) -> None:
    """`ray job submit` ends with status 0 for a stopped job."""
    status, log = service.run(MISTAKEN, {})
    assert (status, service.stopped) == ("FAILED", [])
    assert log[-1].startswith("error: ")
    assert "would repeat" not in "\n".join(log)


def test_a_stop_that_fails_is_reported(
    service: JobService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "_SIGNAL_S", 0.1)
    service.is_deaf = True
    lines: list[str] = []
    for address in (service.address, "http://127.0.0.1:9"):
        service.address = address
        for name, value in service.environment(RETRIED).items():
            monkeypatch.setenv(name, value)
        retries.stop_if_retried(lines.append)
    assert lines[0] == (
        "this job could not be stopped (no signal came for 0.1 s), so kuberay will repeat the "
        "mistake"
    )
    assert lines[1].startswith("this job could not be stopped (ConnectionError: Failed to connect")


def test_a_mistake_that_may_pass_is_left_to_the_scheduler() -> None:
    assert retries.may_pass(OutsideError("the hub does not answer"))
    assert not retries.may_pass(LastingError("no token"))
    assert not retries.may_pass(UserError("no such recipe"))
