"""A RAY_ADDRESS without a Ray behind it is refused in one sentence, within seconds."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import grpc
import pytest
import ray

from ssd_ray import cluster
from ssd_ray.cluster import address, ray_internals
from ssd_ray.errors import InfrastructureError, UserError


@pytest.fixture
def port() -> Iterator[socket.socket]:
    """A port on all devices: Ray replaces 127.0.0.1 by the address of the node."""
    with socket.socket() as reserved:
        reserved.bind(("", 0))
        yield reserved


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address, "WAIT_S", 0.3)
    monkeypatch.setattr(address, "_ATTEMPT_S", 0.2)
    monkeypatch.setattr(address, "_PAUSE_S", 0.1)


def _name(monkeypatch: pytest.MonkeyPatch, port: socket.socket) -> str:
    value = f"127.0.0.1:{port.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", value)
    return value


def _refusal(lines: list[str]) -> str:
    with pytest.raises(UserError) as refusal:
        address.check_answer(lines.append)
    return str(refusal.value)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("nothing", "is neither HOST:PORT nor `auto`"),
        ("Auto", "is neither HOST:PORT nor `auto`"),
        (":6379", "is neither HOST:PORT nor `auto`"),
        ("head:", "is neither HOST:PORT nor `auto`"),
        ("head:ray", "is neither HOST:PORT nor `auto`"),
        ("head:0", "is neither HOST:PORT nor `auto`"),
        ("head:65536", "is neither HOST:PORT nor `auto`"),
        ("::1:6379", "write an IPv6 address in brackets"),
        ("ray://head:10001", "needs Ray Client"),
        ("http://127.0.0.1:8265", "is the address of a dashboard, for `ray job submit`"),
        ("https://ray.example", "is the address of a dashboard, for `ray job submit`"),
    ],
)
def test_an_address_of_another_form_is_refused(
    monkeypatch: pytest.MonkeyPatch, value: str, reason: str
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", value)
    lines: list[str] = []
    sentence = _refusal(lines)
    assert sentence.startswith(f"RAY_ADDRESS={value} ")
    assert reason in sentence
    assert sentence.endswith("or unset RAY_ADDRESS to use this machine alone")
    assert lines == []


def test_auto_without_a_ray_on_this_machine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private import services

    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setattr(services, "_find_address_from_flag", lambda _: set())
    monkeypatch.setattr(services, "find_bootstrap_address", lambda _: None)
    assert _refusal([]).startswith("RAY_ADDRESS=auto, and no Ray runs on this machine: start one")


@pytest.mark.parametrize(("value", "used"), [("", ""), ("local", ""), ("head:1", "head:1")])
def test_local_is_no_address(monkeypatch: pytest.MonkeyPatch, value: str, used: str) -> None:
    monkeypatch.setenv("RAY_ADDRESS", value)
    assert address.named() == used


def test_a_closed_port_is_refused_after_a_wait(
    monkeypatch: pytest.MonkeyPatch, port: socket.socket
) -> None:
    value = _name(monkeypatch, port)
    lines: list[str] = []
    target = ray_internals.resolved_address(value)
    assert _refusal(lines) == (
        f"no Ray answers at RAY_ADDRESS={value} ({target}: Connection refused): start one with "
        "`ray start --head`, correct the address, or unset RAY_ADDRESS to use this machine alone"
    )
    assert lines == [f"waiting 0.3 s for Ray to answer at RAY_ADDRESS={value}"]


def test_a_silent_port_is_refused(monkeypatch: pytest.MonkeyPatch, port: socket.socket) -> None:
    port.listen()
    _name(monkeypatch, port)
    assert "timed out): start one" in _refusal([])


def test_a_port_of_another_server_is_refused(
    monkeypatch: pytest.MonkeyPatch, port: socket.socket
) -> None:
    port.listen()

    def serve() -> None:
        while True:
            try:
                client, _ = port.accept()
            except OSError:
                return
            with client:
                client.recv(100)
                client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    threading.Thread(target=serve, daemon=True).start()
    _name(monkeypatch, port)
    assert "a server other than Ray): start one" in _refusal([])
    # Ends the thread.
    port.shutdown(socket.SHUT_RDWR)


def test_an_unknown_host_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert "(head:6379: Name or service not known)" in _refusal([])


def _server(methods: dict[str, bytes], *guards: grpc.ServerInterceptor) -> grpc.Server:
    """Return a gRPC server with methods of Ray's head, each with its answer."""
    server = grpc.server(ThreadPoolExecutor(1), interceptors=guards)
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(lambda _request, _context, answer=answer: answer)
        for name, answer in methods.items()
    }
    service = address._ALIVE.split("/")[1]
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    return server


def test_a_port_of_ray_client_is_refused(
    monkeypatch: pytest.MonkeyPatch, port: socket.socket
) -> None:
    monkeypatch.setattr(address, "_ATTEMPT_S", 20.0)
    value = _name(monkeypatch, port)
    port.close()
    server = _server({})
    server.add_insecure_port(f"0.0.0.0:{value.rpartition(':')[2]}")
    server.start()
    try:
        lines: list[str] = []
        sentence = _refusal(lines)
    finally:
        server.stop(None)
    assert sentence == (
        f"RAY_ADDRESS={value} is not the head of a cluster but another server of Ray, such as that "
        "of Ray Client (port 10001): set RAY_ADDRESS=HOST:PORT of the head (port 6379 by default), "
        "or unset RAY_ADDRESS to use this machine alone"
    )
    assert lines == []


ASKS = "asks for a token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"


@pytest.mark.parametrize(
    ("variables", "answer"),
    [
        ({}, ASKS),
        ({"RAY_AUTH_TOKEN": "right"}, ASKS),
        (
            {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "wrong"},
            "refuses the token of this process",
        ),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/nowhere"}, "there is no token"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "right"}, ""),
        ({"RAY_AUTH_MODE": "TOKEN", "RAY_AUTH_TOKEN_PATH": "{directory}/token"}, ""),
    ],
)
def test_a_head_with_another_token_refuses(
    monkeypatch: pytest.MonkeyPatch,
    port: socket.socket,
    tmp_path: Path,
    variables: dict[str, str],
    answer: str,
) -> None:
    """The double refuses as Ray's head was seen to: with UNAUTHENTICATED."""

    class Guard(grpc.ServerInterceptor):
        def intercept_service(self, continuation: Any, details: Any) -> Any:
            if ("authorization", "Bearer right") in details.invocation_metadata:
                return continuation(details)
            return grpc.unary_unary_rpc_method_handler(
                lambda _, context: context.abort(grpc.StatusCode.UNAUTHENTICATED, "no token")
            )

    (tmp_path / "token").write_text("right\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(directory=tmp_path))
    monkeypatch.setattr(address, "_ATTEMPT_S", 20.0)
    named = _name(monkeypatch, port)
    port.close()
    server = _server({"CheckAlive": b""}, Guard())
    server.add_insecure_port(f"0.0.0.0:{named.rpartition(':')[2]}")
    server.start()
    try:
        if answer:
            sentence = _refusal([])
            assert answer in sentence
            assert "right" not in sentence
            assert "wrong" not in sentence
        else:
            address.check_answer(pytest.fail)
    finally:
        server.stop(None)


def test_the_method_of_the_head_is_one_of_ray() -> None:
    from ray.core.generated import gcs_service_pb2

    _, service, method = address._ALIVE.split("/")
    described = gcs_service_pb2.DESCRIPTOR.services_by_name[service.rpartition(".")[2]]
    assert (described.full_name, method in described.methods_by_name) == (service, True)


def test_a_head_that_starts_late_is_accepted(
    monkeypatch: pytest.MonkeyPatch, port: socket.socket
) -> None:
    monkeypatch.setattr(address, "WAIT_S", 20.0)
    monkeypatch.setattr(address, "_ATTEMPT_S", 20.0)
    value = _name(monkeypatch, port)
    server = _server({"CheckAlive": b""})
    lines: list[str] = []

    def start(line: str) -> None:
        lines.append(line)
        port.close()
        server.add_insecure_port(f"0.0.0.0:{value.rpartition(':')[2]}")
        server.start()

    try:
        address.check_answer(start)
        assert len(lines) == 1
        address.check_answer(lines.append)
        assert len(lines) == 1
    finally:
        server.stop(None)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_ends_the_wait(
    monkeypatch: pytest.MonkeyPatch, port: socket.socket, number: signal.Signals
) -> None:
    port.listen()
    _name(monkeypatch, port)
    monkeypatch.setattr(address, "_ATTEMPT_S", 60.0)
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray was asked"))

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {each: signal.signal(each, interrupt) for each in (number, signal.SIGALRM)}
    signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(number))
    begun = time.monotonic()
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        with pytest.raises(KeyboardInterrupt), cluster.connected():
            pytest.fail("connected")
        assert time.monotonic() - begun < 20
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for each, handler in before.items():
            signal.signal(each, handler)


def test_ray_is_not_asked_where_nothing_answers(
    monkeypatch: pytest.MonkeyPatch, port: socket.socket
) -> None:
    _name(monkeypatch, port)
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray was asked"))
    with pytest.raises(UserError, match="no Ray answers"), cluster.connected():
        pytest.fail("connected")


def test_a_lost_cluster_is_a_failure_of_infrastructure(
    monkeypatch: pytest.MonkeyPatch, port: socket.socket
) -> None:
    value = _name(monkeypatch, port)
    context = SimpleNamespace(gcs_address=value)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    lines: list[str] = []
    with pytest.raises(InfrastructureError) as failure:
        address.check_still_answers(lines.append)
    assert lines == [f"waiting 0.3 s for the cluster at RAY_ADDRESS={value} to answer again"]
    assert str(failure.value) == (
        f"the cluster at RAY_ADDRESS={value} no longer answers ({value}: Connection refused)"
    )
