"""Start the server: choose a port, print the address, open a browser, and end with Ctrl-C."""

from __future__ import annotations

import os
import socket
import webbrowser
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from ssd_ray.errors import UserError, system_reason
from ssd_ray.view.app import application
from ssd_ray.view.runs import Runs
from ssd_ray.view.security import Access, new_token

LOCAL = "127.0.0.1"
FIRST_PORT = 8765
_TRIES = 20
_LEAST_TOKEN = 16


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """Options of the server; None for the port means the first free one from 8765."""

    host: str = LOCAL
    port: int | None = None
    token: str | None = None
    open_browser: bool = True


def access_and_socket(options: ServerOptions) -> tuple[Access, socket.socket]:
    """Return the address of the server and its listening socket.

    Raises:
        UserError: another host without a token, a short token, or a port in use.
    """
    if options.host not in (LOCAL, "localhost") and options.token is None:
        raise UserError(
            f"--host {options.host} lets other machines in: give --token too, of at least "
            f"{_LEAST_TOKEN} characters"
        )
    if options.token is not None and len(options.token) < _LEAST_TOKEN:
        raise UserError(
            f"--token has {len(options.token)} characters and needs {_LEAST_TOKEN}: "
            "leave it out for a random one"
        )
    host = LOCAL if options.host == "localhost" else options.host
    listening = _listen(host, options.port)
    port = listening.getsockname()[1]
    return Access(host=host, port=port, token=options.token or new_token()), listening


def _listen(host: str, port: int | None) -> socket.socket:
    # Without --port a used one is passed over; a port on the command line is meant.
    ports = range(FIRST_PORT, FIRST_PORT + _TRIES) if port is None else (port,)
    error = OSError()
    for candidate in ports:
        listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, candidate))
            listening.listen(128)
        except OSError as failure:
            error = failure
            listening.close()
        else:
            return listening
    raise UserError(
        f"--port {ports[0]} on {host} cannot be used ({system_reason(error)}): "
        "choose another --port, or 0 for any"
    )


def serve(directories: Sequence[Path], options: ServerOptions) -> None:
    """Serve the runs below directories until Ctrl-C.

    Raises:
        UserError: as for `access_and_socket`, or a directory is missing.
    """
    runs = Runs.below(directories)
    access, listening = access_and_socket(options)
    with listening:
        print(f"view: {access.address}", flush=True)
        if options.open_browser and not _open(access.address):
            print("no browser here: open the address in yours; Ctrl-C ends the view", flush=True)
        config = uvicorn.Config(
            application(runs, access),
            log_level="warning",
            access_log=False,
            server_header=False,
            lifespan="off",
            timeout_graceful_shutdown=1,
        )
        uvicorn.Server(config).run(sockets=[listening])


def _open(address: str) -> bool:
    """Open the address in a browser with a screen; return False without one."""
    if os.name == "posix" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return False
    try:
        return webbrowser.open(address)
    except webbrowser.Error:
        return False


def export_site(directories: Sequence[Path], out: Path, rows: int) -> Path:
    """Write the site of one run; return the path of its first page.

    Raises:
        UserError: as for `export.export`.
    """
    from ssd_ray.view.export import export

    export(Runs.below(directories), out, rows)
    return out / "index.html"
