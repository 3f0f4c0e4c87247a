"""A job whose scheduler retries every failure: it stops itself at a mistake of the user.

- KubeRay makes another cluster for a failed RayJob, whatever its exit status. A job that was
  stopped gets none.
- The metadata of such a job name its scheduler (`RETRIED_BY`), as the RayJobs in `k8s/` do. Other
  jobs end as FAILED, because `ray job submit` takes a stopped job for a success.
- An `OutsideError` may have passed by the next attempt, so it is left to the scheduler.

Asks the dashboard of the cluster to stop the job of this process.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable

from ssd_ray.errors import LastingError, OutsideError, UserError, first_line

RETRIED_BY = "ssd-ray/retried-by"
"""Key of a job's metadata; the value is the scheduler's name."""
_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Variable that Ray sets in the drivers of submitted jobs."""
_ID = "job_submission_id"
_SIGNAL_S = 15.0
"""Longest wait for the signal of the stop; the process on the head is polled ten times a second."""


def is_submitted() -> bool:
    """Return True in the driver of a submitted job."""
    return _CONFIG in os.environ


def may_pass(error: UserError) -> bool:
    """Return True for a mistake that the next attempt may not find any more."""
    return isinstance(error, OutsideError) and not isinstance(error, LastingError)


def stop_if_retried(say: Callable[[str], None]) -> None:
    """Stop the job of this process if its scheduler retries failures; report the outcome.

    Returns once the job's signal has come, so that the caller ends the process with its status.
    """
    metadata = json.loads(os.environ.get(_CONFIG, "{}")).get("metadata") or {}
    scheduler = metadata.get(RETRIED_BY)
    if not scheduler:
        return
    if reason := _failure_of_stop(metadata[_ID]):
        say(f"this job could not be stopped ({reason}), so {scheduler} will repeat the mistake")
    else:
        say(f"this job is stopped, because {scheduler} would repeat the mistake")


def _failure_of_stop(job_id: str) -> str:
    """Stop a job, and return the reason why this process got no signal, "" if it did."""
    from ray.exceptions import RayError
    from ray.job_submission import JobSubmissionClient

    try:
        JobSubmissionClient().stop_job(job_id)
        time.sleep(_SIGNAL_S)
    except KeyboardInterrupt:
        # The command line makes it of Ray's signal.
        return ""
    except (RayError, OSError, RuntimeError, ValueError) as error:
        return first_line(error)
    return f"no signal came for {_SIGNAL_S:g} s"
