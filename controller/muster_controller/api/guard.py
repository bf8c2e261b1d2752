"""The guard: everything that a request must be before a route sees it.

    name of the host ─ origin and content type ─ who is it? ─ not too often ─▶ the route, acting as that principal

A browser lets any page send requests to 127.0.0.1 and to hosts inside. What stops them: names that rebind do not pass
the `Host` check, a page of another origin is known by `Sec-Fetch-Site` or `Origin`, an order to the API needs a content
type that no form can send, and the session's cookie is `SameSite=Strict`. The few forms there are carry a token too.
"""

from collections.abc import Callable
from urllib.parse import quote, urlsplit

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from muster_controller.acting import Acting, act_as
from muster_controller.api.authentication import HOW_TO_LOG_IN, NOBODY, REQUEST_ID, Edge, request_id, source_of
from muster_controller.api.problems import Refused, classify, problem
from muster_controller.operators.roles import Principal, PrincipalKind
from muster_shared.errors import MusterError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
SAFE = ("GET", "HEAD", "OPTIONS")
WRITE_TYPES = ("application/json", "application/octet-stream")
FORM_TYPE = "application/x-www-form-urlencoded"
API = "/api/"
PROGRAMS = (API, "/metrics")
"""Where programs ask: they are told 401, and not sent to a page to log in."""
LOGIN = "/login"
STATIC = "/static/"
OPEN = (LOGIN, "/login/once", "/login/oidc", "/login/oidc/callback", "/healthz", "/api/v1/login")
"""Paths that nobody needs to have proven anything for, with `/static/`. All else is closed, routed or not."""
TRIES = (LOGIN, "/login/once", "/api/v1/login", "/account/password", "/api/v1/account/password")
"""Where passwords are tried."""
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
HSTS = "max-age=31536000"

log = structlog.get_logger()


class Guard:
    """ASGI middleware in front of everything."""

    def __init__(self, app: ASGIApp, edge: Callable[[], Edge]) -> None:
        self._app = app
        self._edge = edge

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        asked = request_id(headers)

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                said = MutableHeaders(scope=message)
                said[REQUEST_ID] = asked
                said["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
                said["X-Content-Type-Options"] = "nosniff"
                said["X-Frame-Options"] = "DENY"
                said["Referrer-Policy"] = "same-origin"
                said["Cross-Origin-Resource-Policy"] = "same-origin"
                said["Cross-Origin-Opener-Policy"] = "same-origin"
                if "cache-control" not in said:
                    said["Cache-Control"] = "no-cache" if scope["path"].startswith(STATIC) else "no-store"
                if scope.get("scheme") == "https":
                    said["Strict-Transport-Security"] = HSTS
            await send(message)

        principal: Principal | None = None
        try:
            edge = self._edge()
            _check_request(scope, headers, edge.hosts)
            principal = await edge.principal(scope)
            _check_rate(edge, scope, principal)
            answer = _check_principal(scope, headers, principal)
            if answer is None:
                _check_tries(edge, scope, principal)
        except Refused as refused:
            answer = problem(refused.status, refused.kind, refused.detail, headers=refused.headers)
        except MusterError as error:  # The database is away: nobody can be known but by the local token.
            answer = problem(*classify(error), str(error))
        if answer is not None:
            await answer(scope, receive, with_headers)
            return
        scope.setdefault("state", {}).update(principal=principal, request_id=asked)
        actor = NOBODY if principal is None else principal.name
        with act_as(Acting(actor, asked)), structlog.contextvars.bound_contextvars(request_id=asked):
            await self._app(scope, receive, with_headers)


def _check_request(scope: Scope, headers: Headers, hosts: frozenset[str]) -> None:
    """Raise Refused for what no browser on a page of ours, and no program, would send."""
    host = headers.get("host", "")
    if _host_of(f"//{host}") not in hosts:
        raise Refused(
            421,
            "host-unknown",
            f"{host[:80]!r} is not a name of this controller; use http://127.0.0.1 and its port, or `serve --name`",
        )
    if scope["method"] in SAFE:
        return
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise Refused(403, "cross-site", "a page of another site may not order anything here")
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
        raise Refused(403, "cross-site", "a page of another origin may not order anything here")
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    allowed = WRITE_TYPES if scope["path"].startswith(API) else (FORM_TYPE,)
    if kind not in allowed:
        raise Refused(415, "content-type", f"send {' or '.join(allowed)}, not {kind or 'nothing'}")


def _check_rate(edge: Edge, scope: Scope, principal: Principal | None) -> None:
    if principal is not None and principal.kind is PrincipalKind.LOCAL:
        return
    source = source_of(scope)
    wait_s = edge.requests.take(f"of {principal.name}" if principal is not None else source, edge.clock())
    _say_wait(wait_s)


def _check_tries(edge: Edge, scope: Scope, principal: Principal | None) -> None:
    is_local = principal is not None and principal.kind is PrincipalKind.LOCAL
    if scope["method"] not in SAFE and scope["path"] in TRIES and not is_local:
        _say_wait(edge.logins.take(source_of(scope), edge.clock()))


def _say_wait(wait_s: float) -> None:
    if wait_s > 0.0:
        seconds = str(max(1, round(wait_s)))
        raise Refused(
            429, "too-many-requests", f"too many requests; try again in {seconds} s", {"Retry-After": seconds}
        )


def _check_principal(scope: Scope, headers: Headers, principal: Principal | None) -> Response | None:
    """Return how to turn somebody away that nobody knows. Raises Refused."""
    path: str = scope["path"]
    is_open = path in OPEN or path.startswith(STATIC)
    if principal is None:
        if is_open and "authorization" not in headers:
            return None
        if path.startswith(PROGRAMS) or is_open or scope["method"] not in SAFE:
            raise Refused(401, "unauthenticated", HOW_TO_LOG_IN, {"WWW-Authenticate": 'Bearer realm="muster"'})
        query = scope.get("query_string", b"").decode("latin-1")
        target = f"{path}?{query}" if query else path
        return RedirectResponse(f"{LOGIN}?next={quote(target, safe='/')}" if target != "/" else LOGIN, 303)
    is_browser = "origin" in headers or "sec-fetch-site" in headers
    if principal.kind is PrincipalKind.SESSION and scope["method"] not in SAFE and not is_browser:
        raise Refused(403, "cross-site", "a session orders from its own page alone; programs send a token")
    return None


def _host_of(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None
