"""A watch on each machine of a launcher's cluster: spot notices, and idle machines.

`python -m ssd_ray.cluster.watch` ends by itself once it has acted.

- `--spot aws|gcp`: at the cloud's notice before it takes this machine, drain its Ray node. Engines
  then take no more work, and their prompts go to others.
- `--idle-minutes N` on the head: without a job and without another node for N minutes, write the
  file `--off`. The machine's service manager waits for this file and powers the machine off.
- `--idle-minutes N` on a worker: the same once the head has not answered for N minutes. Only the
  head would have ended this machine.

Reads the cloud's metadata service, and Ray at `--head`. Writes the file `--off`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ssd_ray.cluster import address, ray_internals
from ssd_ray.errors import one_line

METADATA = {"aws": "http://169.254.169.254", "gcp": "http://metadata.google.internal"}
"""The metadata service of each cloud."""
DASHBOARD = "http://127.0.0.1:8265"
"""The dashboard, on the head alone."""
POLL_S = 5.0
GCP_NOTICE_S = 30.0
"""Seconds from Google's notice to the end of a machine. AWS states the time of the end."""
_MARGIN_S = 5.0
"""Seconds of a notice that Ray does not get, for its own end."""
_ANSWER_S = 3.0


@dataclass(frozen=True, kw_only=True)
class Watched:
    """The state of a cluster as its head sees it."""

    answers: bool
    num_nodes: int = 0
    """Live nodes, the head included."""
    num_jobs: int = 0
    """Jobs that wait or run."""

    @property
    def is_idle(self) -> bool:
        """True if only the head is left, without a job; also if Ray does not answer."""
        return not self.answers or (self.num_nodes <= 1 and self.num_jobs == 0)


def spot_notice_s(cloud: str, service: str = "") -> float | None:
    """Return the seconds until the cloud takes this machine, None without a notice.

    `service` is the URL of the metadata service, the cloud's own by default.
    """
    service = service or METADATA[cloud]
    if cloud == "gcp":
        url = f"{service}/computeMetadata/v1/instance/preempted"
        taken = _answer(url, {"Metadata-Flavor": "Google"}).strip() == "TRUE"
        return GCP_NOTICE_S - _MARGIN_S if taken else None
    lifetime = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
    token = _answer(f"{service}/latest/api/token", lifetime, method="PUT")
    url = f"{service}/latest/meta-data/spot/instance-action"
    notice = _answer(url, {"X-aws-ec2-metadata-token": token})
    if not notice:
        return None
    end = datetime.fromisoformat(json.loads(notice)["time"])
    return max(1.0, (end - datetime.now(UTC)).total_seconds() - _MARGIN_S)


def _answer(url: str, headers: dict[str, str], method: str = "GET") -> str:
    """Return the answer of the metadata service, "" without one or with an error such as 404."""
    request = urllib.request.Request(url, headers=headers, method=method)
    # A proxy of the environment does not reach the machine's own service.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=_ANSWER_S) as answer:
            text: str = answer.read().decode()
            return text
    except (OSError, urllib.error.HTTPError):
        return ""


def wait_for_notice(cloud: str, drain: Callable[[float], None], service: str = "") -> None:
    """Wait for the cloud's notice, then call `drain` with the seconds that remain."""
    while (remaining := spot_notice_s(cloud, service)) is None:
        time.sleep(POLL_S)
    drain(remaining)


def wait_for_idleness(look: Callable[[], Watched], minutes: float, poll_s: float = 30.0) -> None:
    """Return once `look` has seen an idle cluster for `minutes` without a break."""
    since = time.monotonic()
    while time.monotonic() - since < 60 * minutes:
        time.sleep(poll_s)
        if not look().is_idle:
            since = time.monotonic()


def look_from_head(target: str) -> Watched:
    """Return the state of the cluster whose head is at HOST:PORT, on this machine."""
    from ray.job_submission import JobStatus, JobSubmissionClient
    from ray.util.state import list_nodes

    if address.silence(target):
        return Watched(answers=False)
    try:
        nodes = list_nodes(DASHBOARD, filters=[("state", "=", "ALIVE")])
        jobs = JobSubmissionClient(DASHBOARD).list_jobs()
    except Exception as error:
        # Broad: a dashboard that fails is no reason to end a cluster that may be at work.
        print(f"the dashboard does not answer: {one_line(error)}", flush=True)
        return Watched(answers=True, num_nodes=2)
    active = (JobStatus.PENDING, JobStatus.RUNNING)
    return Watched(
        answers=True,
        num_nodes=len(nodes),
        num_jobs=sum(job.status in active for job in jobs),
    )


def look_from_worker(target: str) -> Watched:
    """Return a state that is idle only while the head at HOST:PORT does not answer."""
    return Watched(answers=not address.silence(target), num_nodes=2)


def drain_this_node(target: str, seconds: float) -> None:
    """Let the head at HOST:PORT drain the Ray node of this machine, which ends in `seconds`."""
    import ray

    ray.init(address=target, log_to_driver=False, logging_level="ERROR")
    node = ray.get_runtime_context().get_node_id()
    ray.shutdown()
    command = ["ray", "drain-node", f"--address={target}", f"--node-id={node}"]
    command += ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot notice"]
    command += [f"--deadline-remaining-seconds={max(1, int(seconds))}"]
    subprocess.run(command, check=True)


def main() -> None:
    """Watch until there is a reason to act, and act."""
    parser = argparse.ArgumentParser(prog="ssd_ray.cluster.watch", description=__doc__)
    parser.add_argument("--head", required=True, help="HOST:PORT of the cluster's head")
    parser.add_argument("--spot", choices=sorted(METADATA), help="cloud that may take the machine")
    parser.add_argument(
        "--idle-minutes", type=float, help="minutes until the machine is not needed"
    )
    parser.add_argument("--is-head", action="store_true", help="this machine is the head")
    parser.add_argument("--poll-s", type=float, default=30, help="seconds between two looks")
    parser.add_argument("--off", type=Path, help="file that powers the machine off")
    options = parser.parse_args()
    head = ray_internals.resolved_address(options.head)
    if options.spot:
        wait_for_notice(options.spot, lambda seconds: drain_this_node(head, seconds))
        print("this machine is about to be taken: its Ray node is draining", flush=True)
    elif options.idle_minutes and options.off:
        look = look_from_head if options.is_head else look_from_worker
        wait_for_idleness(lambda: look(head), options.idle_minutes, options.poll_s)
        options.off.touch()
        print(f"idle for {options.idle_minutes:g} minutes: {options.off} written", flush=True)
    else:
        parser.error("give --spot, or --idle-minutes and --off")


if __name__ == "__main__":
    main()
