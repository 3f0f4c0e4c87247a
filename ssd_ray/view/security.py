"""Refuse requests without the token, from another site, or to another host; set the headers.

- The first address holds the token, as Jupyter's does. It becomes a cookie for this port, and the
  address without it is shown.
- Host has to be this server's, so that a site cannot reach it by a name of its own.
- Origin, where a browser sends it, has to be this server.
- The policy allows scripts and styles from this server's files alone, none in a page.
"""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'; frame-src 'none'"
)
REPORT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
"""The report holds its styles and pictures in itself, and no script."""
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True, kw_only=True)
class Access:
    """The address of the server and its token."""

    host: str
    port: int
    token: str

    @property
    def cookie(self) -> str:
        """Name of the cookie; servers on other ports have their own."""
        return f"ssd-ray-view-{self.port}"

    @property
    def hosts(self) -> set[str]:
        """Values of the header Host for this server."""
        names = {"127.0.0.1", "localhost"} if self.host == "127.0.0.1" else {self.host}
        return {f"{_bracketed(name)}:{self.port}" for name in names}

    @property
    def address(self) -> str:
        """The first address, with the token."""
        return f"http://{_bracketed(self.host)}:{self.port}/?token={self.token}"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def new_token() -> str:
    """Return a random token."""
    return secrets.token_urlsafe(24)


class Guard:
    """Middleware in front of every route."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse or pass on a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.setdefault("Content-Security-Policy", POLICY)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        refusal = self._refusal(scope)
        await (refusal or self._app)(scope, receive, with_headers)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        if headers.get("host", "") not in self._access.hosts and self._access.host != "0.0.0.0":
            return _refused(f"this server is {min(self._access.hosts)}: use the address it printed")
        origin = headers.get("origin")
        if origin is not None and origin.removeprefix("http://") != headers.get("host", ""):
            return _refused("requests of other sites are refused")
        if headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            is_visit = headers.get("sec-fetch-mode") == "navigate" and scope["method"] == "GET"
            if not is_visit:
                return _refused("requests of other sites are refused")
        if scope["method"] not in ("GET", "HEAD"):
            return PlainTextResponse("this server only reads", 405)
        return self._without_token(scope, headers)

    def _without_token(self, scope: Scope, headers: Headers) -> Response | None:
        pairs = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        tokens = [value for name, value in pairs if name == "token"]
        if tokens:
            if not self._is_right(tokens[-1]):
                return _refused("the token of this address is not of this server")
            rest = urlencode([pair for pair in pairs if pair[0] != "token"])
            # The path is kept as one: two slashes would lead to another host.
            target = "/" + scope["path"].lstrip("/") + (f"?{rest}" if rest else "")
            response = RedirectResponse(target, 303)
            response.set_cookie(
                self._access.cookie, self._access.token, httponly=True, samesite="lax"
            )
            return response
        if self._is_right(_cookie(headers, self._access.cookie)):
            return None
        return _refused("open the address with ?token=... that `ssd-ray view` printed")

    def _is_right(self, token: str) -> bool:
        return hmac.compare_digest(token.encode(), self._access.token.encode())


def _cookie(headers: Headers, name: str) -> str:
    try:
        cookies = SimpleCookie(headers.get("cookie", ""))
    except CookieError:
        return ""
    return cookies[name].value if name in cookies else ""


def _refused(reason: str) -> Response:
    return PlainTextResponse(f"{reason}\n", 403)
