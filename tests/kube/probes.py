"""Readiness and liveness probes of a container: exec, httpGet, tcpSocket."""

from __future__ import annotations

import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

Object = dict[str, Any]
Inside = Callable[[list[str], float], bool]
"""Runs a command in the container: words and seconds; True for success."""
PERIOD_S = 10


class Probes:
    """The probes of one life of a container, each in a thread while it runs."""

    def __init__(self, spec: Object, address: str, inside: Inside) -> None:
        self._begin = time.monotonic()
        self._spec = spec
        self._address = address
        self._inside = inside
        self._results: dict[str, bool] = {"readinessProbe": "readinessProbe" not in spec}
        self._failures = dict.fromkeys(("readinessProbe", "livenessProbe", "startupProbe"), 0)
        self._next = dict.fromkeys(self._failures, 0.0)
        self._busy: threading.Thread | None = None
        self._started = "startupProbe" not in spec

    def ready(self) -> bool:
        """Start the probe that is due. Return the latest result of readiness."""
        if self._busy is None or not self._busy.is_alive():
            for kind in self._failures:
                if self._is_due(kind):
                    self._busy = threading.Thread(target=self._try, args=(kind,), daemon=True)
                    self._busy.start()
                    break
        return self._started and self._results["readinessProbe"]

    def failed(self) -> bool:
        """Return True if liveness or start has failed too often."""
        return any(
            kind in self._spec
            and self._failures[kind] >= self._spec[kind].get("failureThreshold", 3)
            for kind in ("livenessProbe", "startupProbe")
        )

    def _is_due(self, kind: str) -> bool:
        if kind not in self._spec or (kind == "startupProbe") == self._started:
            return False
        delay = self._spec[kind].get("initialDelaySeconds", 0)
        return bool(time.monotonic() >= max(self._begin + delay, self._next[kind]))

    def _try(self, kind: str) -> None:
        probe = self._spec[kind]
        self._next[kind] = time.monotonic() + probe.get("periodSeconds", PERIOD_S)
        succeeds = self._succeeds(probe, float(probe.get("timeoutSeconds", 1)))
        self._failures[kind] = 0 if succeeds else self._failures[kind] + 1
        if kind == "startupProbe":
            self._started = self._started or succeeds
        elif succeeds or self._failures[kind] >= probe.get("failureThreshold", 3):
            self._results[kind] = succeeds

    def _succeeds(self, probe: Object, timeout_s: float) -> bool:
        if "exec" in probe:
            return self._inside(probe["exec"]["command"], timeout_s)
        try:
            if "httpGet" in probe:
                get = probe["httpGet"]
                port = self._port(get["port"])
                url = f"http://{self._address}:{port}{get.get('path', '/')}"
                with urllib.request.urlopen(url, timeout=timeout_s) as reply:
                    return bool(reply.status < 400)
            place = (self._address, self._port(probe["tcpSocket"]["port"]))
            socket.create_connection(place, timeout_s).close()
        except (OSError, urllib.error.URLError):
            return False
        return True

    def _port(self, port: int | str) -> int:
        if isinstance(port, int):
            return port
        ports = {each.get("name"): int(each["containerPort"]) for each in self._spec["ports"]}
        return ports[port]
