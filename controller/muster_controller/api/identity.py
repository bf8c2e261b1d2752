"""Routes: enrolment tokens, identities and the fleet CA. For admins.

An admin whose devices a selector chooses sees those alone whose token has labels that fit it.
"""

from collections.abc import Callable
from typing import Annotated

import structlog
from fastapi import APIRouter, Query
from starlette.concurrency import run_in_threadpool

from muster_controller.api.authentication import Who, because, require
from muster_controller.api.fleet import Limit
from muster_controller.api.holding import SETTLE_S, apply_holds
from muster_controller.api.paging import Offset, paged
from muster_controller.api.schemas.identity import (
    CaCertificateView,
    CaView,
    EnrolTokenMade,
    EnrolTokenPage,
    EnrolTokenView,
    IdentityCertificateView,
    IdentityChanged,
    IdentityDetail,
    IdentityOrder,
    IdentityPage,
    IdentityView,
    NewEnrolToken,
)
from muster_controller.api.services import Given, Services
from muster_controller.db.errors import LedgerUnavailable
from muster_controller.errors import FleetUnavailable, NotFound
from muster_controller.identity.enrolment import Identity, IdentityState, Token
from muster_controller.identity.errors import IdentityUnknown
from muster_controller.operators.errors import Forbidden
from muster_controller.operators.roles import Permission, Principal, fits
from muster_shared import ids
from muster_shared.ids import DeviceId

log = structlog.get_logger()

router = APIRouter(tags=["identity"], dependencies=[require(Permission.ADMINISTER)])


@router.post("/enrol-tokens", status_code=201)
def create_enrol_token(given: Given, who: Who, order: NewEnrolToken) -> EnrolTokenMade:
    """Make a token that lets devices enrol. It is in this answer and nowhere else."""
    if not fits(who, order.labels):
        raise Forbidden(f"{who.name} makes tokens for devices of {who.selector} alone; give it labels that fit")
    serials = {serial: None if device is None else DeviceId(device) for serial, device in order.serials.items()}
    with because(order.reason):
        token, made = given.identity.enrolment.create_token(
            labels=order.labels, uses=order.uses, ttl_s=order.ttl_s, approval=order.approval, serials=serials
        )
    return EnrolTokenMade(
        token=str(token), ca_sha256=token.ca, device_url=given.identity.device_url, made=_token_view(made)
    )


@router.get("/enrol-tokens")
def list_enrol_tokens(given: Given, who: Who, limit: Limit = 100, cursor: Offset = None) -> EnrolTokenPage:
    """Tokens, newest first, with what they were used for; not their secrets."""
    found = [each for each in given.identity.enrolment.tokens() if fits(who, each.labels)]
    page, following = paged(found, cursor, limit)
    return EnrolTokenPage(tokens=[_token_view(each) for each in page], next=following)


@router.post("/enrol-tokens/{token}/revoke")
def revoke_enrol_token(given: Given, who: Who, token: str, order: IdentityOrder) -> EnrolTokenView:
    """Let nobody enrol with it any more. Devices that did stay."""
    if not any(each.id == token and fits(who, each.labels) for each in given.identity.enrolment.tokens()):
        raise NotFound("enroll-token", token)
    with because(order.reason):
        return _token_view(given.identity.enrolment.revoke_token(token))


@router.get("/identities")
def list_identities(
    given: Given,
    who: Who,
    state: IdentityState | None = None,
    limit: Limit = 100,
    cursor: Annotated[str | None, Query(description="`next` of the page before.")] = None,
) -> IdentityPage:
    """Devices that enrolled, or wait to be accepted, by id."""
    after = None if cursor is None else DeviceId(ids.name(cursor, "device"))
    found = given.identity.enrolment.identities(state, after, limit)
    seen = [_identity_view(each) for each in found if fits(who, each.labels)]
    return IdentityPage(identities=seen, next=found[-1].device if len(found) == limit else None)


@router.get("/identities/{device}")
def show_identity(given: Given, who: Who, device: str) -> IdentityDetail:
    """One device's identity, and the certificates that it was given."""
    identity = _find(given, who, device)
    certificates = [
        IdentityCertificateView(
            serial=each.serial, issued_at=each.issued_at, expires_at=each.expires_at, revoked_at=each.revoked_at
        )
        for each in given.identity.enrolment.certificates(identity.device)
    ]
    return IdentityDetail(**_identity_view(identity).model_dump(), certificates=certificates)


@router.post("/identities/{device}/accept")
def accept_identity(given: Given, who: Who, device: str, order: IdentityOrder) -> IdentityChanged:
    """Let a device in that waits. Compare its fingerprint with what the device says first."""
    return _order(given, who, device, order, given.identity.enrolment.accept)


@router.post("/identities/{device}/reject")
def reject_identity(given: Given, who: Who, device: str, order: IdentityOrder) -> IdentityChanged:
    """Turn a device away that waits."""
    return _order(given, who, device, order, given.identity.enrolment.reject)


@router.post("/identities/{device}/revoke")
async def revoke_identity(given: Given, who: Who, device: str, order: IdentityOrder) -> IdentityChanged:
    """Take a device's identity for good: its connection is cut, its certificates and its key are worth nothing.

    Rollouts leave it alone from then on, and what it reported stays counted.
    """
    return await _cut(given, who, device, order, given.identity.enrolment.revoke, "identity_revoked")


@router.post("/identities/{device}/forget")
async def forget_identity(given: Given, who: Who, device: str, order: IdentityOrder) -> IdentityChanged:
    """Free a device's name, so that it can enrol with another key. What it had is worth nothing any more."""
    return await _cut(given, who, device, order, given.identity.enrolment.forget, "identity_forgotten")


@router.get("/ca")
def show_ca(given: Given) -> CaView:
    """The fleet CA: its certificates, when they run out, and whether the root's key is still on this machine."""
    ca = given.identity.enrolment.ca
    return CaView(
        fleet=ca.fleet,
        root_key_is_here=ca.has_root_key,
        certificates=[
            CaCertificateView(
                role=each.role,
                subject=each.subject,
                sha256=each.sha256,
                issued_at=each.issued_at,
                expires_at=each.expires_at,
            )
            for each in ca.describe()
        ],
        root=ca.root_pem.decode(),
    )


def _order(
    given: Services, who: Principal, device: str, order: IdentityOrder, carry_out: Callable[[DeviceId], Identity]
) -> IdentityChanged:
    found = _find(given, who, device)
    with because(order.reason):
        identity = carry_out(found.device)
    return IdentityChanged(identity=_identity_view(identity), in_effect=given.identity.settled(SETTLE_S))


async def _cut(
    given: Services,
    who: Principal,
    device: str,
    order: IdentityOrder,
    carry_out: Callable[[DeviceId], Identity],
    what: str,
) -> IdentityChanged:
    """Take an identity, and have the fleet know at once that its device is out."""
    changed = await run_in_threadpool(_order, given, who, device, order, carry_out)
    await run_in_threadpool(given.identity.look_who_is_cut)
    try:
        with because(order.reason):
            await apply_holds(given, DeviceId(changed.identity.device), what, order.reason)
    except (FleetUnavailable, LedgerUnavailable) as error:  # The order stands; what follows is done in some seconds.
        log.warning("cut_later", device=changed.identity.device, error=str(error))
    return changed


def _find(given: Services, who: Principal, device: str) -> Identity:
    found = given.identity.enrolment.identity(DeviceId(ids.name(device, "device")))
    if not fits(who, found.labels):
        raise IdentityUnknown(found.device)
    return found


def _identity_view(identity: Identity) -> IdentityView:
    return IdentityView(
        device=identity.device,
        state=identity.state,
        fingerprint=identity.fingerprint,
        token=identity.token,
        labels=dict(identity.labels),
        hardware_serial=identity.hardware_serial,
        agent_version=identity.agent_version,
        device_class=identity.device_class,
        asked_at=identity.asked_at,
        decided_at=identity.decided_at,
        decided_by=identity.decided_by,
        reason=identity.reason,
    )


def _token_view(token: Token) -> EnrolTokenView:
    return EnrolTokenView(
        id=token.id,
        labels=dict(token.labels),
        uses=token.uses,
        uses_max=token.uses_max,
        approval=token.approval,
        serials=len(token.serials),
        created_at=token.created_at,
        created_by=token.created_by,
        expires_at=token.expires_at,
        revoked_at=token.revoked_at,
    )
