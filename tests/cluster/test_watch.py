"""A machine of the launcher drains at a spot notice, and powers off once idle."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from ssd_ray.cluster import address, watch
from ssd_ray.cluster.watch import Watched

TOKEN = "a-token-of-the-metadata-service"


class Metadata(BaseHTTPRequestHandler):
    """The metadata services of both clouds; `notice` is the body of a notice, "" without one."""

    notice = ""

    def do_PUT(self) -> None:
        has_lifetime = "X-aws-ec2-metadata-token-ttl-seconds" in self.headers
        self._answer(TOKEN if self.path == "/latest/api/token" and has_lifetime else "")

    def do_GET(self) -> None:
        if self.path == "/latest/meta-data/spot/instance-action":
            self._answer(self.notice if self.headers["X-aws-ec2-metadata-token"] == TOKEN else "")
        elif self.path == "/computeMetadata/v1/instance/preempted":
            is_google = self.headers["Metadata-Flavor"] == "Google"
            self._answer(self.notice or "FALSE" if is_google else "")
        else:
            self._answer("")

    def _answer(self, text: str) -> None:
        self.send_response(200 if text else 404)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: Any) -> None:
        """Write nothing."""


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(Metadata, "notice", "")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # it must not be asked
    with ThreadingHTTPServer(("127.0.0.1", 0), Metadata) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def _aws_notice(seconds: float) -> str:
    end = datetime.now(UTC) + timedelta(seconds=seconds)
    return json.dumps({"action": "terminate", "time": end.strftime("%Y-%m-%dT%H:%M:%SZ")})


def test_a_notice_states_the_seconds_that_remain(
    service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert watch.spot_notice_s("aws", service) is None
    assert watch.spot_notice_s("gcp", service) is None
    monkeypatch.setattr(Metadata, "notice", _aws_notice(3600))
    remaining = watch.spot_notice_s("aws", service)
    assert remaining is not None
    assert 1800 < remaining < 3600
    monkeypatch.setattr(Metadata, "notice", _aws_notice(-10))
    assert watch.spot_notice_s("aws", service) == 1.0
    monkeypatch.setattr(Metadata, "notice", "TRUE")
    assert watch.spot_notice_s("gcp", service) == 25.0


def test_a_service_that_does_not_answer_is_no_notice() -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{reserved.getsockname()[1]}"
        assert watch.spot_notice_s("aws", closed) is None
        assert watch.spot_notice_s("gcp", closed) is None


def test_the_node_drains_once_at_the_notice(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    drained: list[float] = []

    def arrive(_seconds: float) -> None:
        assert drained == []
        monkeypatch.setattr(Metadata, "notice", "TRUE")

    monkeypatch.setattr(watch, "time", Mock(sleep=arrive))
    watch.wait_for_notice("gcp", drained.append, service)
    assert drained == [25.0]


def test_only_an_idle_time_without_a_break_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    idle = Watched(answers=True, num_nodes=1)
    looks = iter([idle, Watched(answers=True, num_nodes=1, num_jobs=1), *[idle] * 9])
    later = Mock(monotonic=lambda: clock[0], sleep=lambda s: clock.__setitem__(0, clock[0] + s))
    monkeypatch.setattr(watch, "time", later)
    watch.wait_for_idleness(lambda: next(looks), minutes=2, poll_s=30)
    # One look, the busy one, and four more.
    assert clock[0] == 30 * 6


@pytest.mark.parametrize(
    ("state", "is_idle"),
    [
        (Watched(answers=True, num_nodes=1), True),
        (Watched(answers=True, num_nodes=2), False),
        (Watched(answers=True, num_nodes=1, num_jobs=1), False),
        (Watched(answers=False), True),
    ],
)
def test_a_cluster_with_a_job_or_a_worker_is_not_idle(state: Watched, is_idle: bool) -> None:
    assert state.is_idle is is_idle


def test_a_worker_is_idle_only_without_its_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address, "silence", lambda _: "")
    assert not watch.look_from_worker("10.0.0.1:6379").is_idle
    monkeypatch.setattr(address, "silence", lambda _: "Connection refused")
    assert watch.look_from_worker("10.0.0.1:6379").is_idle


def test_a_failing_dashboard_ends_no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address, "silence", lambda _: "")
    monkeypatch.setattr(watch, "DASHBOARD", "http://127.0.0.1:9")
    assert not watch.look_from_head("127.0.0.1:6379").is_idle


@pytest.mark.slow
def test_a_head_that_is_gone_powers_the_machine_off(tmp_path: Path) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        head = f"127.0.0.1:{reserved.getsockname()[1]}"
        command = [sys.executable, "-m", "ssd_ray.cluster.watch", f"--head={head}"]
        off = tmp_path / "off"
        subprocess.run(
            [*command, "--idle-minutes=0.001", f"--off={off}", "--poll-s=0.1"], check=True
        )
        assert off.exists()
        assert subprocess.run(command, capture_output=True, check=False).returncode == 2
