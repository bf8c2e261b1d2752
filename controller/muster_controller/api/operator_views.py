"""How operators and credentials look from outside: never with anything secret. Pure."""

from muster_controller.api.schemas import CredentialView, LinkMade, OperatorView, WhoAmI
from muster_controller.db.operator_store import Credential, Operator
from muster_controller.operators.credentials import CredentialKind, Made
from muster_controller.operators.roles import GRANTS, Principal
from muster_controller.operators.service import LINK_S


def who_am_i(who: Principal) -> WhoAmI:
    return WhoAmI(
        name=who.name,
        role=who.role,
        selector=who.selector,
        kind=who.kind,
        permissions=sorted(GRANTS[who.role], key=lambda each: each.value),
        expires_at=who.expires_at,
    )


def operator_view(operator: Operator) -> OperatorView:
    return OperatorView(
        name=operator.name,
        role=operator.role,
        selector=operator.selector,
        subject=operator.subject,
        has_password=bool(operator.password),
        enabled=operator.is_enabled,
        created_at=operator.created_at,
        created_by=operator.created_by,
        failures=operator.failures.count,
        locked_until=operator.failures.locked_until,
    )


def credential_view(credential: Credential) -> CredentialView:
    return CredentialView(
        id=credential.id,
        operator=credential.operator,
        kind="session" if credential.kind is CredentialKind.SESSION else "token",
        name=credential.name,
        role=credential.role,
        selector=credential.selector,
        created_at=credential.created_at,
        used_at=credential.used_at,
        expires_at=credential.expires_at,
    )


def link_made(url: str, made: Made, now: float) -> LinkMade:
    """Return the one-time link as people open it; `url` is the controller's."""
    return LinkMade(link=f"{url.rstrip('/')}/login/once?link={made.text}", expires_at=now + LINK_S)
