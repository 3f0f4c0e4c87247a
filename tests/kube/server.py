"""The API server of the double: HTTPS over a `Store`, for kubectl and Ray's autoscaler.

- Every request needs a token (401), and rights in its namespace (403).
- `/metrics` has the number of requests, under the name of a real API server's counter.
- `away` plays an outage: every connection is closed without an answer.
- The kubeconfig in the server's directory names it by 127.0.0.1.
"""

from __future__ import annotations

import base64
import json
import ssl
import threading
import urllib.parse
from collections.abc import Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

from tests.kube import discovery
from tests.kube.api import Object, Refused, Store
from tests.kube.credentials import Account, Credentials, Request, allows
from tests.kube.verbs import Call, LogFile, Reply, Target, Verbs, status_of, target_of, verb_of


class Server:
    """An HTTPS server in a thread, with its credentials in a directory."""

    def __init__(
        self,
        store: Store,
        folder: Path,
        *,
        log_file: LogFile,
        addresses: Iterable[str] = ("127.0.0.1",),
        port: int = 0,
    ) -> None:
        self.store = store
        self.verbs = Verbs(store, log_file)
        self.credentials = Credentials(folder, addresses)
        self.requests = 0
        """Requests answered so far."""
        self.away = False
        # The bridge of the pods has no address while no pod is up, so no address is named here.
        self._http = ThreadingHTTPServer(("0.0.0.0", port), _bound(self))
        self._http.daemon_threads = True
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.credentials.authority, self.credentials.key)
        # The handshake belongs to the connection's own thread: a silent client holds up no other.
        self._http.socket = context.wrap_socket(
            self._http.socket, server_side=True, do_handshake_on_connect=False
        )
        self.port: int = self._http.server_address[1]
        self.kubeconfig = folder / "kubeconfig"
        self.kubeconfig.touch(mode=0o600)
        self.kubeconfig.write_text(yaml.safe_dump(self._kubeconfig()))

    def start(self) -> None:
        """Answer requests from now on."""
        threading.Thread(target=self._http.serve_forever, name="api", daemon=True).start()

    def close(self) -> None:
        """Stop the server."""
        self._http.shutdown()
        self._http.server_close()

    def _kubeconfig(self) -> Object:
        authority = base64.b64encode(self.credentials.authority.read_bytes()).decode()
        cluster = {
            "server": f"https://127.0.0.1:{self.port}",
            "certificate-authority-data": authority,
        }
        context = {"cluster": "double", "user": "admin", "namespace": "default"}
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "double",
            "clusters": [{"name": "double", "cluster": cluster}],
            "contexts": [{"name": "double", "context": context}],
            "users": [{"name": "admin", "user": {"token": self.credentials.admin_token}}],
        }


def _bound(server: Server) -> type[BaseHTTPRequestHandler]:
    """Return a handler class for connections of one server."""

    class Handler(_Handler):
        api = server

    return Handler


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    api: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Write no log of requests."""

    def handle(self) -> None:
        try:
            super().handle()
        except (OSError, ssl.SSLError):
            # The client went away, or spoke no TLS.
            self.close_connection = True

    def do_GET(self) -> None:
        if self.api.away:
            self.close_connection = True
            return
        self.api.requests += 1
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urllib.parse.urlsplit(self.path)
        try:
            reply = self._reply(url.path.rstrip("/"), url.query, body)
        except Refused as refused:
            reply = Reply(code=refused.code, document=status_of(refused))
        if reply.parts is None:
            self._send(reply.code, json.dumps(reply.document).encode(), reply.content_type)
        else:
            self._stream(reply.parts, reply.content_type)

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815

    def _reply(self, path: str, query: str, body: bytes) -> Reply:
        account = self.api.credentials.identify(self.headers.get("Authorization", ""))
        if account is None:
            raise Refused(401, "Unauthorized", "Unauthorized")
        if path == "/metrics":
            text = f"apiserver_request_total {self.api.requests}\n"
            return Reply(parts=iter([text.encode()]), content_type="text/plain")
        if (page := discovery.document(path)) is not None:
            return Reply(document=page)
        target = target_of(path)
        if target is None:
            raise Refused(404, "NotFound", "the server could not find the requested resource")
        call = Call(
            target=target,
            query=dict(urllib.parse.parse_qsl(query)),
            body=json.loads(body) if body else None,
            content_type=self.headers.get("Content-Type", "").partition(";")[0],
            accept=self.headers.get("Accept", ""),
        )
        verb = verb_of(self.command, target, call.query)
        self._authorize(account, verb, target)
        return self.api.verbs.answer(verb, call)

    def _authorize(self, account: Account, verb: str, target: Target) -> None:
        request = Request(
            verb=verb,
            group=target.kind.group,
            resource=target.resource,
            namespace=target.namespace,
            name=target.name,
        )
        if not allows(self.api.store, account, request):
            user = f"system:serviceaccount:{account[0]}:{account[1]}"
            message = (
                f'{target.resource} is forbidden: User "{user}" cannot {verb} resource '
                f'"{target.resource}" in API group "{target.kind.group}" in the namespace '
                f'"{target.namespace}"'
            )
            raise Refused(403, "Forbidden", message)

    def _send(self, code: int, data: bytes, content_type: str) -> None:
        self.send_response(code)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _stream(self, parts: Iterator[bytes], content_type: str) -> None:
        """Send parts as they come, each one a chunk."""
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for part in parts:
            if self.api.away:
                self.close_connection = True
                return
            if part:
                self.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
                self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")
