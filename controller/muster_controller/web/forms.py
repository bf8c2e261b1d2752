"""What the page's few forms carry so that no other site can send them: a token that only this page can know.

With a session it is derived from the session's secret; without one it is a cookie that the form repeats. The guard has
looked at `Origin` and `Sec-Fetch-Site` before; this is the second lock, for browsers that send neither.
"""

import hmac
import secrets

from fastapi import Request, Response

from muster_controller.api.authentication import session_of
from muster_controller.operators.credentials import bound
from muster_controller.operators.errors import Forbidden
from muster_controller.operators.roles import Principal, PrincipalKind

PURPOSE = "form"
COOKIE = "muster-form"
LIVES_S = 12 * 3600


def principal(request: Request) -> Principal | None:
    """Return who asks; None: nobody."""
    found = request.scope.get("state", {}).get("principal")
    return found if isinstance(found, Principal) else None


def is_https(request: Request) -> bool:
    return request.url.scheme == "https"


def cookie_name(request: Request, name: str) -> str:
    """Return a cookie's name that other controllers on this machine do not share."""
    server = request.scope.get("server")
    return f"__Host-{name}" if is_https(request) else f"{name}-{server[1] if server else 0}"


def token(request: Request) -> str:
    """Return what a form on this page has to repeat."""
    who, session = principal(request), session_of(request.scope)
    if who is not None and who.kind is PrincipalKind.SESSION and session is not None:
        return bound(session, PURPOSE)
    state = request.scope.setdefault("state", {})
    if "form" not in state:
        kept = request.cookies.get(cookie_name(request, COOKIE), "")
        state["form"] = kept if len(kept) == 43 else secrets.token_urlsafe(32)
    return str(state["form"])


def keep(request: Request, answer: Response) -> None:
    """Have the browser keep the token where there is no session that it follows from."""
    given = request.scope.get("state", {}).get("form")
    if given is not None:
        put(request, answer, COOKIE, given, LIVES_S)


def put(request: Request, answer: Response, name: str, value: str, lives_s: float, *, lax: bool = False) -> None:
    """Set a cookie that no script reads, and that no other site has sent but (lax) by a link."""
    answer.set_cookie(
        cookie_name(request, name),
        value,
        max_age=int(lives_s),
        httponly=True,
        secure=is_https(request),
        samesite="lax" if lax else "strict",
    )


def check(request: Request, given: str) -> None:
    """Raise Forbidden unless the form repeats its token."""
    who, session = principal(request), session_of(request.scope)
    if who is not None and who.kind is PrincipalKind.SESSION and session is not None:
        wanted = bound(session, PURPOSE)
    else:
        wanted = request.cookies.get(cookie_name(request, COOKIE), "")
    if not wanted or not hmac.compare_digest(wanted.encode(), given.encode("utf-8", "replace")):
        raise Forbidden("this form is from another login, or from another site; load the page again, and repeat it")
