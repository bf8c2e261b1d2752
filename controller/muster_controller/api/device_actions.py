"""Routes: what is ordered of one device: pin, quarantine, decommission, and calls that it answers."""

from typing import Any, Literal

import msgspec
from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool

from muster_controller.api.authentication import Who, because, require
from muster_controller.api.fleet import Limit
from muster_controller.api.holding import SETTLE_S, apply_holds
from muster_controller.api.paging import Offset, paged
from muster_controller.api.schemas.device_actions import (
    CallOrder,
    CallPage,
    CallView,
    Decommissioned,
    DeviceLabelOrder,
    DeviceLabels,
    DeviceOrder,
    DeviceOrdered,
    HoldPage,
)
from muster_controller.api.services import Given, Services
from muster_controller.api.views import hold_view
from muster_controller.core.selector import parse
from muster_controller.db.call_store import AskedCall
from muster_controller.errors import Conflict
from muster_controller.fleet import Fleet
from muster_controller.holds import HoldKind
from muster_controller.identity.enrolment import IdentityState
from muster_controller.identity.errors import IdentityUnknown
from muster_controller.identity.relabelling import edit_of
from muster_controller.operators.errors import Forbidden
from muster_controller.operators.roles import Permission
from muster_shared.ids import DeviceId
from muster_shared.messages import Answer

router = APIRouter(tags=["devices"])

_VIEW = [require(Permission.VIEW)]
_OPERATE = [require(Permission.OPERATE)]
_ADMINISTER = [require(Permission.ADMINISTER)]


@router.get("/holds", dependencies=_VIEW)
def list_holds(given: Given, kind: HoldKind | None = None, limit: Limit = 100, cursor: Offset = None) -> HoldPage:
    """Devices that operators keep out of rollouts, by id."""
    every = sorted(given.holds.all().values(), key=lambda each: each.device)
    found = [each for each in every if kind in (None, each.kind) and given.sees_subject(each.device)]
    page, following = paged(found, cursor, limit)
    return HoldPage(holds=[hold_view(each) for each in page], next=following)


@router.post("/devices/{device_id}/pin", dependencies=_OPERATE)
async def pin_device(given: Given, device_id: str, order: DeviceOrder) -> DeviceOrdered:
    """Keep a device on what it runs: rollouts leave it alone, and what is under way on it is called off."""
    return await _hold(given, device_id, HoldKind.PINNED, order.reason)


@router.post("/devices/{device_id}/quarantine", dependencies=_OPERATE)
async def quarantine_device(given: Given, device_id: str, order: DeviceOrder) -> DeviceOrdered:
    """Keep a device out: no rollout takes it, and what it reports counts for nothing. It goes on serving."""
    return await _hold(given, device_id, HoldKind.QUARANTINED, order.reason)


@router.post("/devices/{device_id}/unpin", dependencies=_OPERATE)
async def unpin_device(given: Given, device_id: str, order: DeviceOrder) -> DeviceOrdered:
    """Let rollouts take a pinned device again. It gets what its group runs, if that is another release."""
    return await _release(given, device_id, order.reason, HoldKind.PINNED)


@router.post("/devices/{device_id}/release", dependencies=_OPERATE)
async def release_device(given: Given, device_id: str, order: DeviceOrder) -> DeviceOrdered:
    """Let rollouts take a device again that is quarantined, or that was decommissioned and is back."""
    return await _release(given, device_id, order.reason, HoldKind.QUARANTINED, HoldKind.GONE)


@router.post("/devices/{device_id}/decommission", dependencies=_ADMINISTER)
async def decommission_device(given: Given, device_id: str, order: DeviceOrder) -> Decommissioned:
    """Take a device out for good: its identity is revoked, what it should run is withdrawn, and it is forgotten.

    Its history stays. Free its name with `identities/{device}/forget` if another is to have it.
    """
    device = given.device(DeviceId(device_id)).id
    with because(order.reason):
        revoked = await run_in_threadpool(_revoke, given, device)
        await run_in_threadpool(given.identity.settled, SETTLE_S)  # Else what it says last would be taken for a return.
        hold = await run_in_threadpool(given.hold_store.hold, device, HoldKind.GONE)
        await apply_holds(given, device, "device_decommissioned", order.reason)
        await run_in_threadpool(given.calls.store.forget, device)
    return Decommissioned(device=device, hold=hold_view(hold), identity=revoked)


@router.post("/devices/{device_id}/labels", dependencies=_ADMINISTER)
def label_device(given: Given, who: Who, device_id: str, order: DeviceLabelOrder) -> DeviceLabels:
    """Set labels that operators give to one device, and take others off. Those that it claims itself are its own."""
    device = given.device(DeviceId(device_id)).id
    if given.open_lab:
        raise Conflict("in an open lab devices have no identities; set labels in their own configuration")
    edit = edit_of(order.set, order.unset, order.changes)
    scoped = sorted((edit.given.keys() | edit.taken) & parse(who.selector).keys)
    if scoped:
        raise Forbidden(f"{who.name} is there for {who.selector} alone; {scoped[0]!r} decides who that is")
    with because(order.reason):
        changed, same = given.identity.enrolment.relabel([device], edit, device, is_dry=False)
    if not changed and not same:
        raise Conflict(f"{device} has no accepted identity, so nothing can be given to it")
    given.identity.labels.refresh()
    return DeviceLabels(device=device, granted_labels=dict(given.identity.labels(device)))


@router.post("/devices/{device_id}/calls", status_code=202, dependencies=_OPERATE)
async def call_device(given: Given, device_id: str, order: CallOrder) -> CallView:
    """Ask a device to do something now: a self-test, a benchmark, or the end of its log. Look at the call for its
    answer; `device` on the stream says when it has come."""
    device = given.device(DeviceId(device_id))
    if not device.online:
        raise Conflict(f"{device.id} is offline; a call is not kept for it, ask again when it is back")
    asked, envelope = await run_in_threadpool(given.calls.ask, device.id, order.what, order.lines)

    def say(fleet: Fleet) -> None:
        fleet.call(device.id, envelope)

    await given.fleet.call(say)
    return call_view(asked, given.clock())


@router.get("/devices/{device_id}/calls", dependencies=_VIEW)
def list_calls(given: Given, device_id: str, limit: Limit = 50, cursor: Offset = None) -> CallPage:
    """What a device was asked, newest first."""
    device, now = given.device(DeviceId(device_id)).id, given.clock()
    page, following = paged(given.calls.store.calls(device), cursor, limit)
    return CallPage(calls=[call_view(each, now) for each in page], next=following)


@router.get("/devices/{device_id}/calls/{call}", dependencies=_VIEW)
def show_call(given: Given, device_id: str, call: str) -> CallView:
    """One call, with its answer if it has come."""
    return call_view(given.calls.store.call(given.device(DeviceId(device_id)).id, call), given.clock())


def call_view(call: AskedCall, now: float) -> CallView:
    answer: dict[str, Any] | None = None
    if call.answer is not None:
        answer = msgspec.to_builtins(msgspec.json.decode(call.answer, type=Answer))
    state: Literal["waiting", "answered", "expired"] = "answered"
    if call.answered_at is None:
        state = "waiting" if now < call.expires_at else "expired"
    return CallView(
        id=call.id,
        device=call.device,
        what=call.what,
        asked_by=call.asked_by,
        asked_at=call.asked_at,
        expires_at=call.expires_at,
        state=state,
        answered_at=call.answered_at,
        ok=call.ok,
        answer=answer,
    )


def _revoke(given: Services, device: DeviceId) -> Literal["revoked", "none"]:
    try:
        if given.identity.enrolment.identity(device).state is not IdentityState.REVOKED:
            given.identity.enrolment.revoke(device)
    except IdentityUnknown:
        return "none"
    return "revoked"


async def _hold(given: Services, device_id: str, kind: HoldKind, reason: str) -> DeviceOrdered:
    device = given.device(DeviceId(device_id)).id
    before = given.holds(device)
    if before is not None and before.kind is HoldKind.REVOKED:
        raise Conflict(f"{device} is {before.sentence}; rollouts leave it alone, and nothing reaches it")
    with because(reason):
        hold = await run_in_threadpool(given.hold_store.hold, device, kind)
        await apply_holds(given, device, f"device_{kind.value}", reason)
    return DeviceOrdered(device=device, hold=hold_view(hold))


async def _release(given: Services, device_id: str, reason: str, *kinds: HoldKind) -> DeviceOrdered:
    device = DeviceId(device_id)
    if HoldKind.GONE not in kinds or given.is_partial:
        device = given.device(device).id  # Who was decommissioned is not known any more.
    held = given.holds(device)
    if held is not None and held.kind is HoldKind.REVOKED:
        raise Conflict(
            f"{device} is {held.sentence}; rollouts take it again when it has enrolled with a new key:"
            f" `muster device forget {device}` frees its name"
        )
    with because(reason):
        await run_in_threadpool(given.hold_store.release, device, *kinds)
        await apply_holds(given, device, "device_released", reason)
    return DeviceOrdered(device=device, hold=None)
