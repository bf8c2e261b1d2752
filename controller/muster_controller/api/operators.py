"""Routes: operators. For admins; one's own account is in `sessions`."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from muster_controller.api.authentication import Who, because, require
from muster_controller.api.operator_views import link_made, operator_view
from muster_controller.api.paging import Offset, paged
from muster_controller.api.schemas import (
    Because,
    LinkMade,
    NewOperator,
    NewPassword,
    NewRole,
    OperatorMade,
    OperatorPage,
    OperatorView,
)
from muster_controller.api.services import Given
from muster_controller.operators.roles import Permission

router = APIRouter(prefix="/operators", tags=["operators"], dependencies=[require(Permission.ADMINISTER)])


@router.get("")
def list_operators(
    given: Given,
    limit: Annotated[int, Query(ge=1, le=1000, description="At most so many.")] = 1000,
    cursor: Offset = None,
) -> OperatorPage:
    """Operators, by name."""
    page, following = paged(given.operators.store.operators(), cursor, limit)
    return OperatorPage(operators=[operator_view(each) for each in page], next=following)


@router.post("", status_code=201)
def create_operator(given: Given, request: Request, order: NewOperator) -> OperatorMade:
    """Add an operator, who sets a password by the link in the answer, or logs in by OIDC."""
    with because(order.reason):
        made = given.operators.create(order.name, order.role, order.selector, order.subject)
    found = given.operators.store.operator(order.name)
    return OperatorMade(operator=operator_view(found), link=link_made(str(request.base_url), made, given.clock()))


@router.get("/{name}")
def show_operator(given: Given, name: str) -> OperatorView:
    """One operator: the role, for which devices, and whether the name is locked."""
    return operator_view(given.operators.store.operator(name))


@router.post("/{name}/link")
def make_link(given: Given, request: Request, name: str, order: Because) -> LinkMade:
    """Make a one-time link to set a password by; the one before it is void."""
    with because(order.reason):
        made = given.operators.make_link(name)
    return link_made(str(request.base_url), made, given.clock())


@router.post("/{name}/role")
def set_role(given: Given, who: Who, name: str, order: NewRole) -> OperatorView:
    """Change role and devices. It counts from the operator's next request on."""
    with because(order.reason):
        given.operators.set_role(name, order.role, order.selector, who)
    return operator_view(given.operators.store.operator(name))


@router.post("/{name}/password", status_code=204)
def set_password(given: Given, name: str, order: NewPassword) -> Response:
    """Set a password. Better is the link: then only its owner knows it."""
    with because(order.reason):
        given.operators.set_password(name, order.password)
    return Response(status_code=204)


@router.post("/{name}/disable")
def disable(given: Given, who: Who, name: str, order: Because) -> OperatorView:
    """Let an operator in no more; sessions, tokens and links are revoked, and stay so."""
    with because(order.reason):
        given.operators.disable(name, who)
    return operator_view(given.operators.store.operator(name))


@router.post("/{name}/enable")
def enable(given: Given, name: str, order: Because) -> OperatorView:
    """Let them in again. Sessions, tokens and links that were revoked stay so."""
    with because(order.reason):
        given.operators.enable(name)
    return operator_view(given.operators.store.operator(name))


@router.post("/{name}/unlock")
def unlock(given: Given, name: str, order: Because) -> OperatorView:
    """Forget the failed logins, and those of every address."""
    with because(order.reason):
        given.operators.unlock(name)
    return operator_view(given.operators.store.operator(name))
