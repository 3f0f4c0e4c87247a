"""The cluster at RAY_ADDRESS: forms of the address, and a check that Ray answers there.

- Ray's C++ waits for minutes for a cluster that does not answer, without a message and deaf to
  signals. It ends the process if a connected cluster stays away. So a socket asks first.
- Every gRPC server greets a client with a frame of HTTP/2. Other servers do not.
- Of gRPC servers, only Ray's head knows the method `_ALIVE`. The server of Ray Client, at port
  10001 of the head, does not. A head with a token refuses it without this token.
- `local` means the same as no address: a local Ray for this process alone.

Reads RAY_ADDRESS and Ray's record of clusters on this machine; writes nothing.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

from ssd_ray.cluster import ray_internals
from ssd_ray.errors import InfrastructureError, UserError, system_reason

WAIT_S = 10.0
"""Longest wait for a cluster that is starting, or that restarts its head."""
_ATTEMPT_S = 3.0
_PAUSE_S = 0.5
_SETTINGS = b"\4"
"""Type of the first frame of either side, the fourth of nine bytes of its header."""
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + _SETTINGS + bytes(5)
_ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"
_TOKEN_FILE = Path("~/.ray/auth_token")
"""Ray's default; docs.ray.io has the order of the three places."""
_OTHERWISE = "or unset RAY_ADDRESS to use this machine alone"


def named() -> str:
    """Return RAY_ADDRESS, "" if it asks for a local Ray."""
    value = os.environ.get("RAY_ADDRESS", "")
    return "" if value == "local" else value


def check_answer(say: Callable[[str], None]) -> None:
    """Refuse a RAY_ADDRESS at which no Ray answers; report the wait for one that is starting.

    Raises:
        UserError: the address has a wrong form, nothing or another server answers there, or the
            cluster refuses the token.
    """
    value = named()
    target = _resolved(value)

    def waiting() -> None:
        say(f"waiting {WAIT_S:g} s for Ray to answer at RAY_ADDRESS={value}")

    if reason := _lasting_silence(target, waiting):
        raise UserError(
            f"no Ray answers at RAY_ADDRESS={value} ({target}: {reason}): start one with `ray "
            f"start --head`, correct the address, {_OTHERWISE}"
        )
    _check_head(value, target)


def _check_head(value: str, target: str) -> None:
    """Refuse a gRPC server that does not know the head's methods, and a head with another token."""
    if _has_tls():
        return
    token = _token(value)
    status = _status(target, token)
    if status == "UNAUTHENTICATED":
        fault = "refuses the token of this process" if token else "asks for a token"
        raise UserError(
            f"the cluster at RAY_ADDRESS={value} {fault}: set RAY_AUTH_MODE=token and "
            f"RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH as for the cluster, {_OTHERWISE}"
        )
    if status == "UNIMPLEMENTED":
        raise UserError(
            f"RAY_ADDRESS={value} is not the head of a cluster but another server of Ray, such as "
            f"that of Ray Client (port 10001): set RAY_ADDRESS=HOST:PORT of the head (port 6379 by "
            f"default), {_OTHERWISE}"
        )


def check_still_answers(say: Callable[[str], None]) -> None:
    """Fail if the connected cluster no longer answers. Ray itself would end this process.

    Raises:
        InfrastructureError: no answer within `WAIT_S`.
    """
    import ray

    target = ray.get_runtime_context().gcs_address

    def waiting() -> None:
        say(f"waiting {WAIT_S:g} s for the cluster at RAY_ADDRESS={named()} to answer again")

    if reason := _lasting_silence(target, waiting):
        raise InfrastructureError(
            f"the cluster at RAY_ADDRESS={named()} no longer answers ({target}: {reason})"
        )


def _resolved(value: str) -> str:
    """Return HOST:PORT of the address, as Ray resolves it.

    Raises:
        UserError: the address has another form, or is `auto` on a machine without Ray.
    """
    scheme = value.partition("://")[0] if "://" in value else ""
    if scheme in ("http", "https"):
        raise UserError(
            f"RAY_ADDRESS={value} is the address of a dashboard, for `ray job submit`: submit the "
            f"run as a job, set RAY_ADDRESS=HOST:PORT of the head (port 6379 by default), "
            f"{_OTHERWISE}"
        )
    if scheme:
        raise UserError(
            f"RAY_ADDRESS={value} needs Ray Client, which is not supported: submit the run with "
            f"`ray job submit`, set RAY_ADDRESS=auto on a node of the cluster, {_OTHERWISE}"
        )
    host, _, port = value.rpartition(":")
    if value != "auto" and not (host and port.isdecimal() and 0 < int(port) < 2**16):
        raise UserError(
            f"RAY_ADDRESS={value} is neither HOST:PORT nor `auto`: correct it, {_OTHERWISE}"
        )
    try:
        return ray_internals.resolved_address(value)
    except ConnectionError as error:
        raise UserError(
            f"RAY_ADDRESS={value}, and no Ray runs on this machine: start one with `ray start "
            f"--head`, set RAY_ADDRESS=HOST:PORT of a cluster, {_OTHERWISE}"
        ) from error
    except ValueError as error:
        # An IPv6 address without brackets.
        raise UserError(
            f"RAY_ADDRESS={value} is not HOST:PORT: write an IPv6 address in brackets, {_OTHERWISE}"
        ) from error


def _lasting_silence(target: str, waiting: Callable[[], None]) -> str:
    """Return the reason why no Ray answers at HOST:PORT within `WAIT_S`, "" once one does.

    `waiting` is called after a first attempt without an answer. A signal ends the wait.
    """
    reason = silence(target)
    if not reason:
        return ""
    waiting()
    until = time.monotonic() + WAIT_S
    while reason and time.monotonic() < until:
        time.sleep(_PAUSE_S)
        reason = silence(target)
    return reason


def silence(target: str) -> str:
    """Return the reason why no Ray answers at HOST:PORT, "" if one does."""
    host, _, port = target.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _ATTEMPT_S) as connection:
            # The greeting would have to be encrypted.
            if _has_tls():
                return ""
            connection.sendall(_GREETING)
            with connection.makefile("rb") as answer:
                frame = answer.read(9)
    except OSError as error:
        return system_reason(error)
    return "" if frame[3:4] == _SETTINGS else "a server other than Ray"


def _token(value: str) -> str:
    """Return the token that Ray sends to a cluster; "" if it sends none.

    Raises:
        UserError: the mode asks for one, and there is none.
    """
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        return ""
    token = os.environ.get("RAY_AUTH_TOKEN", "")
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or _TOKEN_FILE).expanduser()
    try:
        token = (token or file.read_text()).strip()
    except OSError:
        token = ""
    if not token:
        raise UserError(
            f"RAY_AUTH_MODE is token, and there is no token for RAY_ADDRESS={value}: set "
            f"RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH, or write {_TOKEN_FILE}"
        )
    return token


def _status(target: str, token: str) -> str:
    """Return the gRPC status with which the server at HOST:PORT answers the head's method."""
    import grpc

    headers = [("authorization", f"Bearer {token}")] if token else []

    with grpc.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(_ALIVE)(b"", timeout=_ATTEMPT_S, metadata=headers)
        except grpc.RpcError as error:
            return str(error.code().name)
    return "OK"


def _has_tls() -> bool:
    return os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true")
