"""Pages of operators: login, the one-time link, OpenID Connect, one's account, and (for admins) users.

Plain forms: they work without JavaScript. Each POST answers with a redirect, but where something is shown this once.
"""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Annotated

import msgspec
import structlog
from fastapi import APIRouter, Form, Query, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from muster_controller.api.authentication import Who, because, require, session_cookie, source_of
from muster_controller.api.operator_views import credential_view, link_made, operator_view
from muster_controller.api.problems import classify
from muster_controller.api.services import Bare, Given, Services
from muster_controller.db.operator_store import Operator
from muster_controller.errors import NotFound
from muster_controller.operators.errors import LoginRefused, OidcFailed, OperatorError, OperatorExists, PasswordUnfit
from muster_controller.operators.oidc import LOGIN_S, Attempt
from muster_controller.operators.passwords import LENGTH_MAX, LENGTH_MIN
from muster_controller.operators.roles import GRANTS, Permission, Role
from muster_controller.operators.service import SESSION_S, TokenWanted
from muster_controller.web import forms
from muster_controller.web.frame import Page, pages, render
from muster_shared.undecodable import UNDECODABLE

FORM_BYTES_MAX = 16 * 1024
OIDC_COOKIE = "muster-oidc"
OIDC_COOKIE_MAX = 4000
DAY_S = 86_400.0

outside = APIRouter(route_class=Page, default_response_class=HTMLResponse)
"""What nobody has to be known for."""
router = pages(Permission.ACCOUNT)
ADMINISTER = [require(Permission.ADMINISTER)]

Csrf = Annotated[str, Form(max_length=128)]
Name = Annotated[str, Form(max_length=64)]
Password = Annotated[str, Form(max_length=LENGTH_MAX)]
Next = Annotated[str, Form(max_length=2000)]
Link = Annotated[str, Form(max_length=128)]
Text = Annotated[str, Form(max_length=1000)]

log = structlog.get_logger()


# -- logging in ------------------------------------------------------------------------------------------------------


@outside.get("/login")
def login_page(request: Request, given: Bare, target: Annotated[str, Query(alias="next")] = "/") -> Response:
    if forms.principal(request) is not None:
        return RedirectResponse(safe(target), 303)
    return _login(request, given, target)


@outside.post("/login", max_body_size=FORM_BYTES_MAX)
def log_in(
    request: Request,
    given: Bare,
    csrf: Csrf,
    name: Name,
    password: Password,
    target: Annotated[str, Form(alias="next", max_length=2000)] = "/",
) -> Response:
    forms.check(request, csrf)
    try:
        operator = given.operators.log_in(name.strip(), password, source_of(request.scope))
    except OperatorError as error:
        return _login(request, given, target, name, str(error), classify(error)[0])
    return _begin(request, given, operator, "password", RedirectResponse(safe(target), 303))


@outside.get("/login/once")
def once_page(request: Request, given: Bare, link: Annotated[str, Query(max_length=128)] = "") -> HTMLResponse:
    return _once(request, link, given.operators.look_at_link(link))


@outside.post("/login/once", max_body_size=FORM_BYTES_MAX)
def use_link(request: Request, given: Bare, csrf: Csrf, link: Link, password: Password, again: Password) -> Response:
    forms.check(request, csrf)
    owner = given.operators.look_at_link(link)
    try:
        if password != again:
            raise PasswordUnfit("the two are not the same")
        operator = given.operators.use_link(link, password)
    except PasswordUnfit as error:
        return _once(request, link, owner, str(error))
    return _begin(request, given, operator, "one-time link", RedirectResponse("/", 303))


@outside.get("/login/oidc")
def begin_oidc(request: Request, given: Bare, target: Annotated[str, Query(alias="next")] = "/") -> Response:
    if given.oidc is None:
        raise NotFound("page", "/login/oidc")
    url, attempt = given.oidc.begin(_callback(request), safe(target)[:1000])
    answer = RedirectResponse(url, 303)
    packed = urlsafe_b64encode(msgspec.json.encode(attempt)).decode()
    forms.put(request, answer, OIDC_COOKIE, packed, LOGIN_S, lax=True)  # Strict would not survive the way back.
    return answer


@outside.get("/login/oidc/callback")
def finish_oidc(
    request: Request,
    given: Bare,
    state: Annotated[str, Query(max_length=200)] = "",
    code: Annotated[str, Query(max_length=4000)] = "",
    error: Annotated[str, Query(max_length=200)] = "",
) -> Response:
    if given.oidc is None:
        raise NotFound("page", "/login/oidc")
    try:
        if error:
            raise OidcFailed(f"the identity provider says: {error}")
        attempt = _attempt(request)
        vouched = given.oidc.finish(attempt, state, code, _callback(request))
        operator = given.operators.by_oidc(vouched.subject, vouched.suggested, vouched.role, vouched.selector)
    except OperatorExists:
        said = "your name belongs to another operator here; an admin can give yours this login (`--subject`)"
        return _login(request, given, "/", "", said, 409)
    except LoginRefused:
        said = "the identity provider knows you, but you are no operator here; an admin can change that"
        return _login(request, given, "/", "", said, 403)
    except OidcFailed as failed:
        log.warning("oidc_failed", reason=str(failed))
        return _login(request, given, "/", "", str(failed), 502)
    # A page and not a redirect: the browser would not send a strict cookie on a way that began elsewhere.
    answer = render(request, "moved.html", target=safe(attempt.next))
    answer.delete_cookie(forms.cookie_name(request, OIDC_COOKIE), secure=forms.is_https(request), httponly=True)
    return _begin(request, given, operator, "OIDC", answer)


@router.post("/logout", max_body_size=FORM_BYTES_MAX)
def log_out(request: Request, given: Given, who: Who, csrf: Csrf) -> Response:
    forms.check(request, csrf)
    given.operators.end(who)
    answer = RedirectResponse("/login", 303, headers={"Clear-Site-Data": '"cache"'})
    answer.delete_cookie(session_cookie(request.scope), secure=forms.is_https(request), httponly=True)
    return answer


# -- one's account ---------------------------------------------------------------------------------------------------


@router.get("/account")
def account_page(request: Request, given: Given, who: Who) -> HTMLResponse:
    return _account(request, given, who)


@router.post("/account/password", max_body_size=FORM_BYTES_MAX)
def change_password(
    request: Request, given: Given, who: Who, csrf: Csrf, current: Password, password: Password, again: Password
) -> Response:
    forms.check(request, csrf)
    try:
        if password != again:
            raise PasswordUnfit("the two new passwords are not the same")
        operator = given.operators.change_password(who, current, password, source_of(request.scope))
    except OperatorError as error:
        return _account(request, given, who, str(error), classify(error)[0])
    return _begin(request, given, operator, "new password", RedirectResponse("/account", 303))


@router.post("/account/tokens", max_body_size=FORM_BYTES_MAX)
def create_token(
    request: Request,
    given: Given,
    who: Who,
    csrf: Csrf,
    name: Annotated[str, Form(min_length=1, max_length=64)],
    role: Annotated[Role | None, Form()] = None,
    selector: Text = "",
    days: Annotated[int, Form(ge=1, le=366)] = 90,
) -> HTMLResponse:
    forms.check(request, csrf)
    made, token = given.operators.create_token(
        who, TokenWanted(name, role=role, selector=selector, lives_s=days * DAY_S)
    )
    return render(
        request,
        "secret.html",
        title=f"The token {token.name}",
        secret=made.text,
        words="Give it to the program as MUSTER_TOKEN, or in the header Authorization: Bearer.",
        back="/account",
    )


@router.post("/account/revoke", max_body_size=FORM_BYTES_MAX)
def revoke(request: Request, given: Given, who: Who, csrf: Csrf, credential: Name) -> RedirectResponse:
    forms.check(request, csrf)
    given.operators.revoke(credential, who)
    return RedirectResponse("/account", 303)


# -- users -----------------------------------------------------------------------------------------------------------


@router.get("/users", dependencies=ADMINISTER)
def users_page(request: Request, given: Given) -> HTMLResponse:
    now = given.clock()
    return render(
        request,
        "users.html",
        users=[operator_view(each) for each in given.operators.store.operators()],
        roles=list(Role),
        now=now,
    )


@router.post("/users", dependencies=ADMINISTER, max_body_size=FORM_BYTES_MAX)
def create_user(
    request: Request,
    given: Given,
    csrf: Csrf,
    name: Name,
    role: Annotated[Role, Form()],
    selector: Text = "",
    reason: Text = "",
) -> HTMLResponse:
    forms.check(request, csrf)
    with because(reason):
        made = given.operators.create(name.strip(), role, selector)
    return _show_link(request, name.strip(), link_made(str(request.base_url), made, given.clock()).link)


@router.post("/users/{name}/link", dependencies=ADMINISTER, max_body_size=FORM_BYTES_MAX)
def link_user(request: Request, given: Given, name: str, csrf: Csrf) -> HTMLResponse:
    forms.check(request, csrf)
    made = given.operators.make_link(name)
    return _show_link(request, name, link_made(str(request.base_url), made, given.clock()).link)


@router.post("/users/{name}/role", dependencies=ADMINISTER, max_body_size=FORM_BYTES_MAX)
def set_role(
    request: Request,
    given: Given,
    who: Who,
    name: str,
    csrf: Csrf,
    role: Annotated[Role, Form()],
    selector: Text = "",
    reason: Text = "",
) -> RedirectResponse:
    forms.check(request, csrf)
    with because(reason):
        given.operators.set_role(name, role, selector, who)
    return RedirectResponse("/users", 303)


@router.post("/users/{name}/disable", dependencies=ADMINISTER, max_body_size=FORM_BYTES_MAX)
def disable_user(request: Request, given: Given, who: Who, name: str, csrf: Csrf, reason: Text = "") -> Response:
    forms.check(request, csrf)
    with because(reason):
        given.operators.disable(name, who)
    return RedirectResponse("/users", 303)


@router.post("/users/{name}/enable", dependencies=ADMINISTER, max_body_size=FORM_BYTES_MAX)
def enable_user(request: Request, given: Given, name: str, csrf: Csrf, reason: Text = "") -> RedirectResponse:
    forms.check(request, csrf)
    with because(reason):
        given.operators.enable(name)
    return RedirectResponse("/users", 303)


@router.post("/users/{name}/unlock", dependencies=ADMINISTER, max_body_size=FORM_BYTES_MAX)
def unlock_user(request: Request, given: Given, name: str, csrf: Csrf) -> RedirectResponse:
    forms.check(request, csrf)
    given.operators.unlock(name)
    return RedirectResponse("/users", 303)


# -- parts -----------------------------------------------------------------------------------------------------------


def safe(target: str) -> str:
    """Return a path of this page to go on to: never another host, and never back to the login."""
    is_path = target.startswith("/") and not target.startswith(("//", "/\\")) and target.isprintable()
    return target if is_path and "\\" not in target and not target.startswith(("/login", "/logout", "/api")) else "/"


def _login(
    request: Request, given: Services, target: str, name: str = "", problem: str = "", status: int = 200
) -> HTMLResponse:
    return render(
        request,
        "login.html",
        status=status,
        target=safe(target),
        name=name,
        problem=problem,
        has_oidc=given.oidc is not None,
    )


def _once(request: Request, link: str, operator: Operator, problem: str = "") -> HTMLResponse:
    return render(
        request,
        "once.html",
        status=422 if problem else 200,
        link=link,
        operator=operator,
        problem=problem,
        length_min=LENGTH_MIN,
    )


def _account(request: Request, given: Services, who: Who, problem: str = "", status: int = 200) -> HTMLResponse:
    operator = None if who.operator is None else given.operators.store.operator(who.operator)
    found = [] if who.operator is None else given.operators.credentials_of(who.operator)
    return render(
        request,
        "account.html",
        status=status,
        operator=operator,
        credentials=[credential_view(each) for each in found],
        roles=[role for role in Role if GRANTS[role] <= GRANTS[who.role]],
        length_min=LENGTH_MIN,
        problem=problem,
        now=given.clock(),
    )


def _show_link(request: Request, name: str, link: str) -> HTMLResponse:
    words = f"Give it to {name}: it opens once, within a day, and sets the password."
    return render(request, "secret.html", title=f"The link of {name}", secret=link, words=words, back="/users")


def _begin(request: Request, given: Services, operator: Operator, how: str, answer: Response) -> Response:
    """Begin a session: a new one at each login, so that nobody can have planted it."""
    made = given.operators.begin_session(operator, how, forms.principal(request))
    answer.set_cookie(
        session_cookie(request.scope),
        made.text,
        max_age=int(SESSION_S),
        httponly=True,
        secure=forms.is_https(request),
        samesite="strict",
    )
    return answer


def _callback(request: Request) -> str:
    return f"{str(request.base_url).rstrip('/')}/login/oidc/callback"


def _attempt(request: Request) -> Attempt:
    """Return the login under way, as this browser has kept it. Raises OidcFailed."""
    packed = request.cookies.get(forms.cookie_name(request, OIDC_COOKIE), "")
    try:
        if len(packed) > OIDC_COOKIE_MAX:
            raise ValueError("length")
        return msgspec.json.decode(urlsafe_b64decode(packed), type=Attempt)
    except (ValueError, *UNDECODABLE) as error:
        raise OidcFailed("this browser has no login under way, or it took too long; begin again") from error
