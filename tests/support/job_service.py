"""A stand-in for Ray's dashboard and supervisor: one job, a process on this machine.

The job gets its metadata in the environment, as from Ray. A stop sends SIGTERM. A job that was
asked to stop before its end has the status STOPPED, whatever its exit status.

Source: ray/dashboard/modules/job/job_supervisor.py and job_head.py.
"""

from __future__ import annotations

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import ray

TOP = Path(__file__).parents[2]
JOB_ID = "job-7"


class JobService:
    """The address of the dashboard, and the state of its job."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.is_deaf = False
        """True for a supervisor that sends no signal."""
        self.stopped: list[str] = []
        self.process: subprocess.Popen[str] | None = None

    def environment(self, metadata: Mapping[str, str]) -> dict[str, str]:
        """Return the variables that the supervisor sets for the driver."""
        known = {"job_submission_id": JOB_ID, "job_name": JOB_ID}
        config = {"runtime_env": {}, "metadata": {**known, **metadata}}
        return {
            "RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps(config),
            "RAY_API_SERVER_ADDRESS": self.address,
        }

    def run(self, entrypoint: Sequence[str], metadata: Mapping[str, str]) -> tuple[str, list[str]]:
        """Run an entrypoint in the checkout; return the job's status and the lines of its log."""
        self.stopped.clear()
        python, *arguments = entrypoint
        assert python == "python"
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=TOP,
            env=os.environ | self.environment(metadata),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        log, _ = self.process.communicate(timeout=120)
        if self.stopped:
            return "STOPPED", log.splitlines()
        return "FAILED" if self.process.returncode else "SUCCEEDED", log.splitlines()

    def stop(self, job_id: str) -> None:
        """Ask for the end of the job."""
        self.stopped.append(job_id)
        if self.process is not None and not self.is_deaf:
            self.process.send_signal(signal.SIGTERM)


@contextmanager
def job_service() -> Iterator[JobService]:
    """Serve a dashboard for the length of a block."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer({"version": "4", "ray_version": ray.__version__, "ray_commit": ""})

        def do_POST(self) -> None:
            _, _, job_id, action = self.path.rsplit("/", 3)
            assert action == "stop"
            service.stop(job_id)
            self._answer({"stopped": True})

        def _answer(self, document: Mapping[str, object]) -> None:
            body = json.dumps(document).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    service = JobService(f"http://127.0.0.1:{server.server_port}")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()
