"""The edge's answer to "who is it?": a bearer token or a session's cookie, and what every route asks of it.

    Who = the principal of the request        require(Permission.X) = and it may do that, else 403

`Guard` looks the principal up before any route is chosen, and turns away whoever has none; so a route that forgets to
ask is still not open. Nothing here knows passwords.
"""

import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Annotated

import anyio.to_thread
from fastapi import Depends, Request
from fastapi.params import Depends as Dependency
from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.types import Scope

from muster_controller.acting import REASON_MAX, act_as, acting
from muster_controller.operators.credentials import LOCAL_PREFIX
from muster_controller.operators.errors import Forbidden, Unauthenticated
from muster_controller.operators.limits import RateLimit
from muster_controller.operators.roles import Permission, Principal, PrincipalKind, least_role, may
from muster_controller.operators.service import Operators

COOKIE = "muster"
HOST_COOKIE = "__Host-muster"
"""A browser takes it over TLS alone, for this host alone."""
REQUEST_ID = "X-Request-ID"
NOBODY = "nobody"
_SANE = re.compile(r"[A-Za-z0-9._:-]{8,64}")
CREDENTIAL_MAX = 512


@dataclass(frozen=True)
class Edge:
    """What stands between the network and the routes.

    Attributes:
        hosts: names by which this controller may be asked, lower case.
        logins: tries to log in, by address. People mistype; programs have tokens.
        requests: of a principal, or of the address of nobody. The local token is not counted.
    """

    operators: Operators
    hosts: frozenset[str]
    clock: Callable[[], float] = time.monotonic
    logins: RateLimit = field(default_factory=lambda: RateLimit(0.2, 20))
    requests: RateLimit = field(default_factory=lambda: RateLimit(100.0, 500))

    async def principal(self, scope: Scope) -> Principal | None:
        """Return who sends this request; None: nobody, or by something that does not hold."""
        headers = Headers(scope=scope)
        said = headers.get("authorization")
        if said is not None:
            scheme, _, text = said.partition(" ")
            text = text.strip()
            if scheme.lower() != "bearer" or len(text) > CREDENTIAL_MAX:
                return None
            if text.startswith(LOCAL_PREFIX):  # Asks no database: it works where that is gone, too.
                return self.operators.by_bearer(text)
            return await anyio.to_thread.run_sync(self.operators.by_bearer, text)
        session = session_of(scope)
        if session is None:
            return None
        return await anyio.to_thread.run_sync(self.operators.by_session, session)


def session_cookie(scope: Scope) -> str:
    """Return the name of the session's cookie. On plain HTTP controllers of one machine share cookies: not names."""
    if scope.get("scheme") == "https":
        return HOST_COOKIE
    server = scope.get("server")
    return f"{COOKIE}-{server[1]}" if server else COOKIE


def session_of(scope: Scope) -> str | None:
    """Return what the session's cookie says, whatever it is worth."""
    found = cookie_parser(Headers(scope=scope).get("cookie", "")).get(session_cookie(scope))
    return found if found is not None and len(found) <= CREDENTIAL_MAX else None


def request_id(headers: Headers) -> str:
    """Return the id that the request brings, if it is sane, else a new one."""
    given = headers.get(REQUEST_ID, "")
    return given if _SANE.fullmatch(given) else secrets.token_hex(8)


def source_of(scope: Scope) -> str:
    """Return the address that the request comes from."""
    client = scope.get("client")
    return str(client[0]) if client else "unknown"


async def principal_of(request: Request) -> Principal:
    """Raises Unauthenticated."""
    found = request.scope.get("state", {}).get("principal")
    if not isinstance(found, Principal):
        raise Unauthenticated(HOW_TO_LOG_IN)
    return found


HOW_TO_LOG_IN = (
    "who are you? Run `muster login`, or set MUSTER_TOKEN to an API token (`muster token create`); on the controller's"
    " machine the command line needs neither if it may read the data folder (`--data`, MUSTER_DATA)"
)

Who = Annotated[Principal, Depends(principal_of)]
"""The principal of the request."""


class Require:
    """A dependency: the principal has this permission."""

    def __init__(self, permission: Permission) -> None:
        self.permission = permission

    async def __call__(self, who: Who) -> None:
        demand(who, self.permission)


def require(permission: Permission) -> Dependency:
    """Return the dependency that every route names: `dependencies=[require(Permission.VIEW)]`."""
    found = Depends(Require(permission))
    assert isinstance(found, Dependency)
    return found


def demand(who: Principal, permission: Permission) -> None:
    """Raises Forbidden."""
    if not may(who, permission):
        raise Forbidden(
            f"{who.name} is {who.role.value} here, and this takes {least_role(permission)}; ask an admin"
            + (", or use another token" if who.kind is PrincipalKind.TOKEN else "")
        )


@contextmanager
def because(reason: str) -> Iterator[None]:
    """What happens inside has this reason, for the audit log."""
    with act_as(replace(acting(), reason=reason[:REASON_MAX])):
        yield
