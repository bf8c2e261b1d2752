"""The guard: keeps web pages from elsewhere from driving a controller that listens on this machine.

A browser lets any page send requests to 127.0.0.1. What stops them: names that rebind to 127.0.0.1 do not pass the
`Host` check, a page of another origin is known by `Sec-Fetch-Site` or `Origin`, and a write needs a content type that
no form can send, so that a browser asks first (and gets no CORS answer). Programs on this machine are not kept out.
"""

from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from muster_controller.api.problems import Refused, problem

LOOPBACK = ("127.0.0.1", "localhost", "::1")
SAFE = ("GET", "HEAD", "OPTIONS")
WRITE_TYPES = ("application/json", "application/octet-stream")
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)


class Guard:
    """ASGI middleware in front of everything."""

    def __init__(self, app: ASGIApp, hosts: Iterable[str] = LOOPBACK) -> None:
        self._app = app
        self._hosts = frozenset(host.lower() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "same-origin"
                headers["Cross-Origin-Resource-Policy"] = "same-origin"
            await send(message)

        try:
            self._check(scope["method"], Headers(scope=scope))
        except Refused as refused:
            await problem(refused.status, refused.kind, refused.detail)(scope, receive, with_headers)
            return
        await self._app(scope, receive, with_headers)

    def _check(self, method: str, headers: Headers) -> None:
        host = headers.get("host", "")
        if _host_of(f"//{host}") not in self._hosts:
            raise Refused(
                421,
                "host-unknown",
                f"{host[:80]!r} is not a name of this controller; use http://127.0.0.1 and its port",
            )
        if method in SAFE:
            return
        if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            raise Refused(403, "cross-site", "a page of another site may not order anything here")
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            raise Refused(403, "cross-site", "a page of another origin may not order anything here")
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in WRITE_TYPES:
            raise Refused(415, "content-type", f"send {' or '.join(WRITE_TYPES)}, not {kind or 'nothing'}")


def _host_of(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None
