"""Who may have a certificate: what the rows say of a token and of a device, and what somebody asks -> a decision.

    (nobody) ── token ──────────▶ accepted ── revoke ──▶ revoked ── forget ──▶ (nobody, but for the key)
        └────── manual ─▶ waiting ─ accept ─▶ ▲ │
                             └──── reject ──▶ rejected ── forget ──▶ (nobody)

A device is its identity key: whoever has it is granted again and again without another use of a token, so a lost answer
costs nothing, and whoever does not have it never gets the name. Pure: the signature, the clock of the request and its
nonce are checked by the shell (`service`), which also writes what is decided in one transaction.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Literal

from muster_controller.identity.errors import EnrolmentConflict
from muster_shared.ids import DeviceId, Sha256

RETRY_WAITING_S = 30.0


class Approval(StrEnum):
    """What a token asks for beside itself."""

    TOKEN = "token"
    MANUAL = "manual"
    """Somebody accepts each device."""
    SERIAL = "serial"
    """The hardware's serial number is on the token's list."""


class IdentityState(StrEnum):
    WAITING = "waiting"
    ACCEPTED = "accepted"
    REJECTED = "rejected"
    REVOKED = "revoked"


@dataclass(frozen=True)
class Token:
    """What lets devices enrol. Its secret is known by its SHA-256 alone."""

    id: str
    secret_sha256: str = field(repr=False)
    labels: Mapping[str, str]
    uses_max: int
    uses: int
    """Devices that enrolled with it, or wait to be accepted."""
    created_at: float
    created_by: str
    expires_at: float
    revoked_at: float | None
    approval: Approval
    serials: Mapping[str, DeviceId | None]
    """For SERIAL: which numbers, and which device each is to be, if that was said."""


@dataclass(frozen=True)
class Identity:
    """A device that enrolled, or waits to be accepted."""

    device: DeviceId
    state: IdentityState
    public_key: str
    """PEM."""
    fingerprint: Sha256
    """Of the identity key's DER: what people compare."""
    token: str
    labels: Mapping[str, str]
    """The token's: what the device said of itself is in its twin."""
    hardware_serial: str
    agent_version: str
    device_class: str
    asked_at: float
    decided_at: float | None
    decided_by: str
    reason: str


@dataclass(frozen=True)
class Cut:
    """A device that lost its identity: when, by whom (empty: the name was freed for another key) and why."""

    device: DeviceId
    at: float
    by: str
    reason: str


@dataclass(frozen=True)
class Asked:
    """A request whose signature holds."""

    device: DeviceId
    public_key: str
    fingerprint: Sha256
    token_id: str
    """Empty in a renewal."""
    secret_is_right: bool
    """Whether there is such a token and this is its secret."""
    serial: str
    agent_version: str
    device_class: str


@dataclass(frozen=True)
class Grant:
    """It gets a certificate. `identity` is to be written if it is new, and then `spends` one use of its token."""

    identity: Identity
    spends: bool


@dataclass(frozen=True)
class Hold:
    """It waits to be accepted. `spends` and `identity` as in `Grant`."""

    identity: Identity
    spends: bool


@dataclass(frozen=True)
class Refuse:
    """`code` and `reason` as in `muster_shared.enrolment.Refused`; the device reads both."""

    code: Literal["token", "device", "revoked", "serial"]
    reason: str


Decision = Grant | Hold | Refuse


def decide(asked: Asked, token: Token | None, known: Sequence[Identity], now: float) -> Decision:
    """Return what to answer.

    Args:
        token: the row that `asked.token_id` names; None: no such token, or a renewal.
        known: the identity with the device's name, and, of whoever has a token, those with its key's fingerprint or its
            token and hardware serial number.
    """
    if any(each.fingerprint == asked.fingerprint and each.state is IdentityState.REVOKED for each in known):
        return Refuse("revoked", "this device's key was revoked; make a new key and enrol again with a new token")
    named = next((each for each in known if each.device == asked.device), None)
    if named is not None and named.fingerprint == asked.fingerprint:
        match named.state:
            case IdentityState.ACCEPTED:
                return Grant(named, spends=False)
            case IdentityState.REJECTED:
                return Refuse("device", f"an operator rejected this device{_because(named)}")
            case IdentityState.WAITING if asked.token_id in ("", named.token):
                return Hold(named, spends=False)
            case _:
                pass  # It waits, and somebody gave it another token instead of accepting it.
    return _enrol(asked, token, named, known, now)


def accept(identity: Identity, by: str, reason: str, now: float) -> Identity:
    """Raises EnrolmentConflict unless it waits, or was rejected by mistake."""
    if identity.state not in (IdentityState.WAITING, IdentityState.REJECTED):
        raise EnrolmentConflict(f"{identity.device} is {identity.state}, so there is nothing to accept")
    return _decided(identity, IdentityState.ACCEPTED, by, reason, now)


def reject(identity: Identity, by: str, reason: str, now: float) -> Identity:
    """Raises EnrolmentConflict unless it waits."""
    if identity.state is not IdentityState.WAITING:
        raise EnrolmentConflict(f"{identity.device} is {identity.state}; what has a certificate is revoked instead")
    return _decided(identity, IdentityState.REJECTED, by, reason, now)


def revoke(identity: Identity, by: str, reason: str, now: float) -> Identity:
    """Raises EnrolmentConflict when it is revoked already."""
    if identity.state is IdentityState.REVOKED:
        raise EnrolmentConflict(f"{identity.device} is revoked already")
    return _decided(identity, IdentityState.REVOKED, by, reason, now)


def _enrol(
    asked: Asked, token: Token | None, named: Identity | None, known: Sequence[Identity], now: float
) -> Decision:
    if not asked.token_id:  # The same answer whether the name is known or not: who has no key learns nothing.
        return Refuse("device", "no device of this name has this key; enrol with a token")
    refused = _check_token(asked, token, now)
    if refused is not None or token is None:
        return refused or Refuse("token", "there is no such token")
    if named is not None and named.fingerprint != asked.fingerprint:
        return Refuse(
            "device",
            f"the name {asked.device} belongs to another key; choose another, or let an operator say "
            f"`muster device forget {asked.device}` if this is the same device with a new key",
        )
    twin = next((each for each in known if each.fingerprint == asked.fingerprint and each is not named), None)
    if twin is not None:
        return Refuse("device", f"this key is that of {twin.device}; a copied disk needs a new key of its own")
    waits = token.approval is Approval.MANUAL
    identity = Identity(
        device=asked.device,
        state=IdentityState.WAITING if waits else IdentityState.ACCEPTED,
        public_key=asked.public_key,
        fingerprint=asked.fingerprint,
        token=token.id,
        labels=dict(token.labels),
        hardware_serial=asked.serial,
        agent_version=asked.agent_version,
        device_class=asked.device_class,
        asked_at=now,
        decided_at=None if waits else now,
        decided_by="" if waits else f"token {token.id}",
        reason="",
    )
    if token.approval is Approval.SERIAL and (wrong := _check_serial(asked, token, known)) is not None:
        return wrong
    if token.uses >= token.uses_max:
        return Refuse("token", f"all {token.uses_max} uses of this token are spent; ask for another")
    return Hold(identity, spends=True) if waits else Grant(identity, spends=True)


def _check_token(asked: Asked, token: Token | None, now: float) -> Refuse | None:
    if token is None or not asked.secret_is_right:
        return Refuse("token", "there is no such token; copy it whole, or ask for another")
    if token.revoked_at is not None:
        return Refuse("token", "this token was revoked; ask for another")
    if now >= token.expires_at:
        return Refuse("token", "this token has run out; ask for another")
    return None


def _check_serial(asked: Asked, token: Token, known: Sequence[Identity]) -> Refuse | None:
    if asked.serial not in token.serials:
        said = f"the serial number {asked.serial!r}" if asked.serial else "a device without a serial number"
        return Refuse("serial", f"{said} is not on the list of this token; ask for one that has it")
    bound = token.serials[asked.serial]
    if bound is not None and bound != asked.device:
        return Refuse("serial", f"the serial number {asked.serial} is to be {bound}; enrol under that name")
    for each in known:
        if each.hardware_serial == asked.serial and each.token == token.id and each.device != asked.device:
            return Refuse("serial", f"the serial number {asked.serial} enrolled as {each.device} already")
    return None


def _decided(identity: Identity, state: IdentityState, by: str, reason: str, now: float) -> Identity:
    return replace(identity, state=state, decided_at=now, decided_by=by, reason=reason)


def _because(identity: Identity) -> str:
    return f": {identity.reason}" if identity.reason else ""
