"""Find a directory with a path short enough for sockets.

A Unix socket's path has at most 107 bytes, and TMPDIR of a batch system may leave too few of them.
Each directory is tested by making a socket in it; some file systems have no sockets at all.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

from ssd_ray.errors import OutsideError, UserError, system_reason

_RAY_SOCKET_BYTES = len("/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store")
_VLLM_SOCKET_BYTES = len("/") + 36
"""vLLM names a socket by a UUID."""
_PLACES = ("/tmp", "/var/tmp", "/dev/shm")


def ray_directory(say: Callable[[str], None]) -> str | None:
    """Return the session directory of a local Ray, None if the path of Ray's own choice fits.

    A directory other than TMPDIR is reported through `say`.

    Raises:
        UserError: RAY_TMPDIR cannot hold sockets, or TMPDIR and the usual places cannot.
    """
    _require_temporary_directory()
    if chosen := os.environ.get("RAY_TMPDIR"):
        place = os.path.join(os.path.abspath(chosen), "ray")
        if reason := _unfit(place, _RAY_SOCKET_BYTES):
            raise UserError(
                f"RAY_TMPDIR={chosen} cannot hold Ray's sockets ({reason}): "
                "set it to a short path, such as /tmp"
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
                f"Ray keeps its session in {place}: "
                f"TMPDIR={usual} cannot hold its sockets ({reason})"
            )
            return place
    raise UserError(
        f"TMPDIR={usual} cannot hold Ray's sockets ({reason}), "
        f"and neither can {', '.join(_PLACES)}: set RAY_TMPDIR to a short path that can be written"
    )


def vllm_environment() -> dict[str, str]:
    """Return the variable for a directory that fits vLLM's sockets.

    It is empty if the usual directory fits, or none does.
    """
    usual = tempfile.gettempdir()
    if "VLLM_RPC_BASE_PATH" in os.environ or not _unfit(usual, _VLLM_SOCKET_BYTES):
        return {}
    for place in filter(None, map(_own_directory, _PLACES)):
        if not _unfit(place, _VLLM_SOCKET_BYTES):
            return {"VLLM_RPC_BASE_PATH": place}
    # No error here: one device needs no such socket, and for several vLLM reports the failure.
    return {}


def _require_temporary_directory() -> None:
    try:
        tempfile.gettempdir()
    except FileNotFoundError as error:
        raise OutsideError(
            "no directory for temporary files can be written "
            f"(TMPDIR={os.environ.get('TMPDIR', '')}): set TMPDIR to one that can"
        ) from error


def _own_directory(place: str) -> str:
    """Return a directory for this user alone within a shared place, "" if that is impossible."""
    own = Path(place) / f"ssd-ray-{os.getuid()}"
    try:
        own.mkdir(mode=0o700, exist_ok=True)
        status = own.lstat()
    except OSError:
        return ""
    # Another user may have made it first, and could put sockets of their own there.
    is_ours = own.is_dir() and not own.is_symlink() and status.st_uid == os.getuid()
    return str(own / "ray") if is_ours and not status.st_mode & 0o077 else ""


def _unfit(directory: str, name_bytes: int) -> str:
    """Return the reason why a directory cannot hold sockets of such names, "" if it can."""
    try:
        # Ray accepts no other characters.
        directory.encode("ascii")
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
