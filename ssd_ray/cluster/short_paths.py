"""Find a directory whose path is short enough for sockets.

A Unix socket's path has at most 107 bytes, and a batch system's TMPDIR leaves too little of them.
A directory is tried by making a socket in it, which also finds file systems without sockets.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

from ssd_ray.errors import UserError, system_reason

_RAY_SOCKET_BYTES = len("/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store")
_VLLM_SOCKET_BYTES = len("/") + 36
"""vLLM names a socket by a UUID."""
_PLACES = ("/tmp", "/var/tmp", "/dev/shm")


def ray_directory(say: Callable[[str], None]) -> str | None:
    """Return the directory for a Ray of this machine, None where Ray's own choice will do.

    Raises:
        UserError: RAY_TMPDIR is no good, or neither TMPDIR nor a usual place is.
    """
    _require_temporary_directory()
    if chosen := os.environ.get("RAY_TMPDIR"):
        place = os.path.join(os.path.abspath(chosen), "ray")
        if reason := _unfit(place, _RAY_SOCKET_BYTES):
            raise UserError(
                f"RAY_TMPDIR={chosen} cannot hold Ray's sockets ({reason}): set it to a short path, as /tmp"
            )
        return None if os.path.isabs(chosen) else place
    usual = os.environ.get("TMPDIR", "/tmp")
    is_there = os.path.isabs(usual) and os.path.isdir(usual)
    reason = (
        _unfit(os.path.join(usual, "ray"), _RAY_SOCKET_BYTES) if is_there else "no such directory"
    )
    if not reason:
        return None
    for place in filter(None, map(_own_directory, _PLACES)):
        if not _unfit(place, _RAY_SOCKET_BYTES):
            say(
                f"Ray keeps its session in {place}: TMPDIR={usual} cannot hold its sockets ({reason})"
            )
            return place
    raise UserError(
        f"TMPDIR={usual} cannot hold Ray's sockets ({reason}), and neither can {', '.join(_PLACES)}: "
        "set RAY_TMPDIR to a short path that can be written"
    )


def vllm_environment() -> dict[str, str]:
    """Return the environment by which vLLM's sockets fit, empty where they do already."""
    usual = tempfile.gettempdir()
    if "VLLM_RPC_BASE_PATH" in os.environ or not _unfit(usual, _VLLM_SOCKET_BYTES):
        return {}
    for place in filter(None, map(_own_directory, _PLACES)):
        if not _unfit(place, _VLLM_SOCKET_BYTES):
            return {"VLLM_RPC_BASE_PATH": place}
    return {}  # only several devices need it, and vLLM says what is wrong


def _require_temporary_directory() -> None:
    try:
        tempfile.gettempdir()
    except FileNotFoundError as error:
        raise UserError(
            f"no directory for temporary files can be written (TMPDIR={os.environ.get('TMPDIR', '')}): set TMPDIR to one that can"
        ) from error


def _own_directory(place: str) -> str:
    """Return a directory that only this user can enter, in a place that all users share."""
    own = Path(place) / f"ssd-ray-{os.getuid()}"
    try:
        own.mkdir(mode=0o700, exist_ok=True)
        status = own.lstat()
    except OSError:
        return ""
    # Whoever made it first could put sockets of their own there.
    is_ours = own.is_dir() and not own.is_symlink() and status.st_uid == os.getuid()
    return str(own / "ray") if is_ours and not status.st_mode & 0o077 else ""


def _unfit(directory: str, name_bytes: int) -> str:
    """Return the reason why a directory cannot hold sockets with such names, empty where it can."""
    try:
        directory.encode("ascii")  # Ray takes no other
        os.makedirs(directory, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="", dir=directory) as inner:
            name = "s" * (name_bytes - 1 - (len(inner) - len(directory)))
            with socket.socket(socket.AF_UNIX) as probe:
                probe.bind(os.path.join(inner, name))
    except UnicodeEncodeError:
        return "Ray takes only ASCII"
    except OSError as error:
        return _reason(error, len(os.fsencode(directory)) + name_bytes)
    return ""


def _reason(error: OSError, socket_bytes: int) -> str:
    if error.errno is None:
        return f"a socket's path would have {socket_bytes} bytes, and 107 are allowed"
    return system_reason(error)
