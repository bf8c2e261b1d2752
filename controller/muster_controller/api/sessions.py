"""Routes: logging in from a program, who one is, and one's own password, sessions and tokens."""

from collections.abc import Iterable
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from muster_controller.api.authentication import Who, because, demand, require, source_of
from muster_controller.api.operator_views import credential_view, who_am_i
from muster_controller.api.paging import Offset, paged
from muster_controller.api.schemas import (
    CredentialPage,
    LoginOrder,
    OwnPassword,
    TokenMade,
    TokenOrder,
    WhoAmI,
)
from muster_controller.api.services import Bare, Given
from muster_controller.db.operator_store import Credential
from muster_controller.operators.credentials import Made
from muster_controller.operators.roles import Permission
from muster_controller.operators.service import TokenWanted

router = APIRouter(tags=["sessions"])

ACCOUNT = [require(Permission.ACCOUNT)]


@router.post("/login")
def log_in(given: Bare, request: Request, order: LoginOrder) -> TokenMade:
    """Exchange name and password for an API token of thirty days. For programs: the page has sessions."""
    operators = given.operators
    operator = operators.log_in(order.name, order.password, source_of(request.scope))
    made, expires_at = operators.begin_login_token(operator, order.where)
    return TokenMade(token=made.text, id=made.id, operator=operator.name, role=None, selector="", expires_at=expires_at)


@router.get("/session", dependencies=ACCOUNT)
def show_session(who: Who) -> WhoAmI:
    """Who this request comes from, and what it may do."""
    return who_am_i(who)


@router.delete("/session", status_code=204, dependencies=ACCOUNT)
def log_out(given: Given, who: Who) -> Response:
    """End the session or token of this request. The local token ends with the controller alone."""
    given.operators.end(who)
    return Response(status_code=204)


@router.post("/account/password", status_code=204, dependencies=ACCOUNT)
def change_password(given: Given, who: Who, request: Request, order: OwnPassword) -> Response:
    """Change one's own password. One's sessions are over; tokens stay."""
    given.operators.change_password(who, order.current, order.password, source_of(request.scope))
    return Response(status_code=204)


@router.get("/tokens", dependencies=ACCOUNT)
def list_tokens(
    given: Given,
    who: Who,
    operator: Annotated[str | None, Query(max_length=64, description="Of this operator; admins alone.")] = None,
    everybody: Annotated[bool, Query(alias="all", description="Of every operator; admins alone.")] = False,
    limit: Annotated[int, Query(ge=1, le=1000, description="At most so many.")] = 100,
    cursor: Offset = None,
) -> CredentialPage:
    """One's own sessions and API tokens."""
    if everybody or operator not in (None, who.operator):
        demand(who, Permission.ADMINISTER)
    owner = None if everybody else operator or who.operator
    found: Iterable[Credential] = () if owner is None and not everybody else given.operators.credentials_of(owner)
    page, following = paged(found, cursor, limit)
    return CredentialPage(credentials=[credential_view(each) for each in page], next=following)


@router.post("/tokens", status_code=201, dependencies=ACCOUNT)
def create_token(given: Given, who: Who, order: TokenOrder) -> TokenMade:
    """Make an API token: one's own, never more than oneself; or, as an admin, another operator's."""
    wanted = TokenWanted(order.name, order.operator, order.role, order.selector, order.ttl_s)
    with because(order.reason):
        made, token = given.operators.create_token(who, wanted)
    return token_made(made, token)


@router.delete("/tokens/{credential}", status_code=204, dependencies=ACCOUNT)
def revoke_token(given: Given, who: Who, credential: str) -> Response:
    """End a session or an API token: one's own, or, as an admin, anybody's."""
    given.operators.revoke(credential, who)
    return Response(status_code=204)


def token_made(made: Made, token: Credential) -> TokenMade:
    return TokenMade(
        token=made.text,
        id=token.id,
        operator=token.operator,
        role=token.role,
        selector=token.selector,
        expires_at=token.expires_at,
    )
