"""Enrolment as it happens: requests are verified, decided in one transaction, and answered; operators' orders too.

It stands between the device port and the API on one side, the CA and the rows on the other. What brokers have to be
told of it is `access`, which is woken after every change.
"""

import secrets
from base64 import urlsafe_b64encode
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from hmac import compare_digest

import structlog

from muster_controller.acting import Acting, acting
from muster_controller.client_names import mixer_name, mixer_of
from muster_controller.db.errors import LedgerError
from muster_controller.db.identity_store import (
    CertificateEntry,
    IdentityReading,
    IdentityStore,
    IdentityWriting,
)
from muster_controller.errors import NotFound
from muster_controller.identity import enrolment
from muster_controller.identity.ca import FleetCa
from muster_controller.identity.certificates import Issued
from muster_controller.identity.enrolment import (
    RETRY_WAITING_S,
    Approval,
    Asked,
    Cut,
    Decision,
    Grant,
    Hold,
    Identity,
    IdentityState,
    Refuse,
    Token,
)
from muster_controller.identity.errors import CaInvalid, EnrolmentConflict, IdentityUnknown, RequestInvalid
from muster_controller.identity.relabelling import LabelEdit
from muster_controller.identity.requests import Verified, verify
from muster_controller.operators.limits import RateLimit
from muster_shared import ids
from muster_shared.enrolment import (
    CLOCK_SKEW_S,
    TEXT_MAX,
    Answer,
    EnrolmentToken,
    Granted,
    Refused,
    Waiting,
    check_labels,
)
from muster_shared.errors import WireError
from muster_shared.ids import DeviceId, FleetId

SECRET_BYTES = 32
USES_MAX = 100_000
SERIALS_MAX = 20_000
TTL_S_MIN, TTL_S_MAX = 60.0, 366 * 86_400.0
CERTIFICATES_AN_HOUR = 20
"""For one device. Each is a row for months, and none needs more than one in days."""
HOUR_S = 3600.0
EXPIRIES_KEPT_S = 30.0
"""How certificates run out changes slowly, and to count them takes a look at each."""
REFUSALS_LOGGED_A_SECOND, REFUSALS_LOGGED_AT_ONCE = 0.2, 20.0  # Anybody can cause one, as often as the port lets them.

log = structlog.get_logger()


@dataclass(frozen=True)
class Reached:
    """Where devices find us."""

    broker_url: str
    device_url: str


@dataclass(frozen=True)
class Expiries:
    """How the newest certificates of devices run out.

    Attributes:
        at: when it was so; the first step begins then.
        steps: how many devices' in each step, by its number.
        soonest: whose first, and when.
        lapsed: devices that are admitted and have none that holds.
        revoked: certificates that are revoked and would hold else, whosever.
    """

    at: float
    steps: Mapping[int, int]
    soonest: tuple[tuple[DeviceId, float], ...]
    lapsed: int
    revoked: int


class EnrolmentService:
    """Safe from any thread."""

    def __init__(
        self,
        ca: FleetCa,
        store: IdentityStore,
        clock: Callable[[], float],
        reached: Callable[[], Reached],
        trust_root: Callable[[], bytes],
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Args:
            trust_root: the newest TUF root; empty where there is none yet.
            changed: called after the commit of anything that brokers have to know.
        """
        self.ca = ca
        self._store = store
        self._clock = clock
        self._reached = reached
        self._trust_root = trust_root
        self._changed = changed
        self._expiries: tuple[tuple[float, int], float, Expiries] | None = None
        self._refusals = RateLimit(REFUSALS_LOGGED_A_SECOND, REFUSALS_LOGGED_AT_ONCE, kept=1)

    # -- what devices ask --------------------------------------------------------------------------------------------

    def answer(self, raw: bytes) -> Answer:
        """Return the answer to a request as it came over the network. Raises nothing that a request could cause."""
        now = self._clock()
        try:
            verified = verify(raw)
        except (WireError, RequestInvalid) as error:
            return Refused(code="request", reason=str(error), server_time=now)
        request = verified.request
        if request.fleet not in ("", self.ca.fleet):
            reason = "this controller serves another fleet; correct `fleet`, or the controller's address"
            return Refused(code="request", reason=reason, server_time=now)
        if not abs(request.asked_at - now) <= CLOCK_SKEW_S:
            return Refused(
                code="clock", reason="the device's clock is wrong; ask again with this time", server_time=now
            )
        try:
            asked = _asked(verified, self.ca.fleet)
            found = self._decide(verified, asked, now)
        except WireError as error:
            return Refused(code="request", reason=str(error), server_time=now)
        except (LedgerError, CaInvalid) as error:
            log.warning("enrolment_failed", device=request.device, error=str(error))
            return Refused(code="busy", reason="the controller cannot answer now; ask again later", server_time=now)
        if isinstance(found, Refused) and self._refusals.take("all", now) == 0.0:
            log.info("enrolment_refused", device=request.device, code=found.code, reason=found.reason)
        return found

    def _decide(self, verified: Verified, asked: Asked, now: float) -> Answer:
        with self._store.reading() as rows:  # Most of what is refused, and all who wait, cost no write.
            decision = self._look(rows, verified, asked, now)
        if isinstance(decision, Refuse):
            return _refused(verified, decision, now)
        if isinstance(decision, Hold) and not decision.spends:
            return _waiting(decision.identity, now)
        who = Acting(f"{verified.request.role}:{verified.request.device}")
        with self._store.writing(who, now) as writing:
            decision = self._look(writing, verified, asked, now)
            if isinstance(decision, Refuse):
                return _refused(verified, decision, now)
            if isinstance(decision, Hold):
                if decision.spends:
                    _enrol(writing, decision)
                return _waiting(decision.identity, now)
            if writing.is_used(verified.request.nonce):
                reason = "a request with this nonce was granted before; ask anew with another"
                return Refused(code="request", reason=reason, server_time=now)
            if writing.issued_since(asked.device, now - HOUR_S) >= CERTIFICATES_AN_HOUR:
                reason = f"{CERTIFICATES_AN_HOUR} certificates within the hour are enough; ask again later"
                return Refused(code="busy", reason=reason, server_time=now)
            if decision.spends:
                _enrol(writing, decision)
            issued = self.ca.issue_device(asked.device, verified.session, now)
            is_first = not writing.issued_since(asked.device, decision.identity.asked_at)
            writing.add_certificate(_entry(issued), verified.request.nonce, is_audited=is_first)
        if decision.spends:
            log.info("device_enrolled", device=asked.device, token=decision.identity.token)
            self._changed()
        return self._granted(issued, decision.identity, now)

    def _look(self, rows: IdentityReading, verified: Verified, asked: Asked, now: float) -> Decision:
        request = verified.request
        token = rows.token(request.token_id) if request.token_id else None
        digest = sha256(request.token_secret.encode()).hexdigest()
        right = token is not None and compare_digest(digest, token.secret_sha256)
        asked = replace(asked, secret_is_right=right)
        return enrolment.decide(asked, token, rows.related(asked), now)

    def _granted(self, issued: Issued, identity: Identity, now: float) -> Granted:
        reached = self._reached()
        return Granted(
            certificate=issued.pem.decode(),
            ca=self.ca.roots_pem.decode(),
            broker_url=reached.broker_url,
            device_url=reached.device_url,
            trust_root=self._trust_root(),
            fleet=self.ca.fleet,
            labels=dict(identity.labels),
            renew_at=(issued.issued_at + issued.expires_at) / 2,
            expires_at=issued.expires_at,
            server_time=now,
        )

    # -- what operators order ----------------------------------------------------------------------------------------

    def create_token(
        self,
        *,
        labels: Mapping[str, str],
        uses: int,
        ttl_s: float,
        approval: Approval = Approval.TOKEN,
        serials: Mapping[str, DeviceId | None] | None = None,
    ) -> tuple[EnrolmentToken, Token]:
        """Make a token, and return what is printed of it this once, and its row.

        Raises:
            WireError: labels, serial numbers or device names that cannot be.
            EnrolmentConflict: bounds, or serial numbers that do not fit the approval.
        """
        check_labels(labels)
        serials = dict(serials or {})
        if (approval is Approval.SERIAL) != bool(serials):
            raise EnrolmentConflict("serial numbers belong to the approval `serial`, and it needs some: --serials FILE")
        if not 1 <= uses <= USES_MAX or not TTL_S_MIN <= ttl_s <= TTL_S_MAX or len(serials) > SERIALS_MAX:
            raise EnrolmentConflict(
                f"a token is for 1 to {USES_MAX} devices and {SERIALS_MAX} serial numbers, and for a minute to a year"
            )
        for serial, device in serials.items():
            if not 0 < len(serial) <= TEXT_MAX or not serial.isprintable():
                raise WireError(f"{serial[:80]!r} is no serial number")
            if device is not None:
                ids.name(device, "device")
        now, who = self._clock(), acting()
        secret = urlsafe_b64encode(secrets.token_bytes(SECRET_BYTES)).rstrip(b"=").decode()
        token = Token(
            id=f"t{secrets.token_hex(5)}",
            secret_sha256=sha256(secret.encode()).hexdigest(),
            labels=dict(labels),
            uses_max=uses,
            uses=0,
            created_at=now,
            created_by=who.actor,
            expires_at=now + ttl_s,
            revoked_at=None,
            approval=approval,
            serials=serials,
        )
        with self._store.writing(who, now) as rows:
            rows.add_token(token)
        return EnrolmentToken(id=token.id, secret=secret, ca=self.ca.pin), token

    def tokens(self) -> list[Token]:
        with self._store.reading() as rows:
            return rows.tokens()

    def revoke_token(self, token: str) -> Token:
        """Let nobody enrol with it any more; who did stays. Raises NotFound, EnrolmentConflict."""
        now = self._clock()
        with self._store.writing(acting(), now) as rows:
            found = rows.token(token)
            if found is None:
                raise NotFound("enroll-token", token)
            if found.revoked_at is not None:
                raise EnrolmentConflict(f"token {token} is revoked already")
            rows.revoke_token(token)
        return replace(found, revoked_at=now)

    def identity(self, device: DeviceId) -> Identity:
        """Raises NotFound."""
        with self._store.reading() as rows:
            return _found(rows, device)

    def identities(self, state: IdentityState | None, after: DeviceId | None, limit: int) -> list[Identity]:
        with self._store.reading() as rows:
            return rows.identities(state=state, after=after, limit=limit)

    def certificates(self, device: DeviceId) -> list[CertificateEntry]:
        """Return the newest that were issued to a device."""
        with self._store.reading() as rows:
            return rows.certificates(device)

    def expiries(self, step_s: float, soonest: int) -> Expiries:
        """Return how the devices' certificates run out, in steps from now on; the answer may be EXPIRIES_KEPT_S old."""
        now, asked = self._clock(), (step_s, soonest)
        kept = self._expiries
        if kept is not None and kept[0] == asked and 0.0 <= now - kept[1] < EXPIRIES_KEPT_S:
            return kept[2]
        with self._store.reading() as rows:
            steps = rows.device_expiries(now, step_s)
            found = Expiries(
                now,
                steps,
                tuple(rows.soonest_expiries(now, soonest)),
                max(0, rows.admitted_count() - sum(steps.values())),
                len(rows.revoked_certificates(now)),
            )
        self._expiries = asked, now, found
        return found

    def accept(self, device: DeviceId) -> Identity:
        """Raises NotFound, EnrolmentConflict."""
        return self._order(device, enrolment.accept, "identity.accept")

    def reject(self, device: DeviceId) -> Identity:
        """Raises NotFound, EnrolmentConflict."""
        return self._order(device, enrolment.reject, "identity.reject")

    def revoke(self, device: DeviceId) -> Identity:
        """Take a device's identity for good: its certificates hold no more, and its key is never granted again.

        Raises NotFound, EnrolmentConflict.
        """
        return self._order(device, enrolment.revoke, "identity.revoke")

    def relabel(self, devices: Collection[DeviceId], edit: LabelEdit, said: str, *, is_dry: bool) -> tuple[int, int]:
        """Change the labels that operators gave to those of `devices` that are accepted.

        Args:
            said: which devices these are, for the audit log.
        Returns:
            how many have other labels now (dry: would have), and how many had them so already.
        Raises:
            WireError: one of them would have too many.
        """
        now, who = self._clock(), acting()
        if is_dry:
            with self._store.reading() as reading:
                labels = reading.labels(IdentityState.ACCEPTED)
            mine = [labels[device] for device in devices if device in labels]
            changed = sum(edit.applied(each) != each for each in mine)
            return changed, len(mine) - changed
        with self._store.writing(who, now) as rows:
            changed, same = rows.relabel(devices, edit.applied)
            if changed:
                rows.note("device.label", said, f"{edit}: {changed} changed, {same} had it so")
        self._changed()
        return changed, same

    def forget(self, device: DeviceId) -> Identity:
        """Free a device's name for another key; its certificates hold no more. Raises NotFound."""
        now = self._clock()
        with self._store.writing(acting(), now) as rows:
            found = _found(rows, device)
            rows.revoke_certificates(device)
            rows.forget(found)
        self._changed()
        return found

    def _order(
        self, device: DeviceId, decided: Callable[[Identity, str, str, float], Identity], action: str
    ) -> Identity:
        now, who = self._clock(), acting()
        with self._store.writing(who, now) as rows:
            identity = decided(_found(rows, device), who.actor, who.reason, now)
            revoked = rows.revoke_certificates(device) if identity.state is IdentityState.REVOKED else 0
            detail = f"key {identity.fingerprint[:16]}" + (f", {revoked} certificates" if revoked else "")
            rows.save_identity(identity, action, detail)
        self._changed()
        return identity

    # -- what the controller does by itself --------------------------------------------------------------------------

    def record(self, issued: Issued) -> None:
        """Write down a certificate of the controller's own."""
        with self._store.writing(Acting(), issued.issued_at) as rows:
            rows.add_certificate(_entry(issued), secrets.token_hex(16), is_audited=True)

    def admitted(self) -> list[DeviceId]:
        """Return every device that may come, sorted."""
        with self._store.reading() as rows:
            return rows.names(IdentityState.ACCEPTED)

    def barred(self) -> list[DeviceId]:
        """Return every device that may not come although some certificate of its name has not run out, sorted; then
        the mixers, by the names in their certificates."""
        now = self._clock()
        with self._store.reading() as rows:
            return [*rows.barred(now), *rows.barred_mixers(self.ca.fleet, now)]

    def cut(self) -> list[Cut]:
        """Return every device that could speak once and cannot any more."""
        with self._store.reading() as rows:
            return rows.cut(self._clock())

    def mixers(self) -> list[str]:
        """Return every mixer that may come, by id, sorted."""
        fleet = self.ca.fleet
        with self._store.reading() as rows:
            found = (mixer_of(each.device, fleet) for each in rows.mixers(fleet, IdentityState.ACCEPTED))
            return sorted(mixer for mixer in found if mixer is not None)

    def revoked_certificates(self) -> list[tuple[str, float]]:
        """Return the serial number of each that would still hold, and when it was revoked."""
        with self._store.reading() as rows:
            return rows.revoked_certificates(self._clock())

    def note(self, action: str, subject: str, detail: str) -> None:
        """Write into the audit log what the controller itself did or noticed."""
        with self._store.writing(Acting(), self._clock()) as rows:
            rows.note(action, subject, detail)

    def prune(self, before: float) -> int:
        """Drop certificates that ran out before then from the rows."""
        with self._store.writing(Acting(), self._clock()) as rows:
            return rows.prune_certificates(before)


def _asked(verified: Verified, fleet: FleetId) -> Asked:
    """Raises WireError: a mixer with a token, or with too long a name."""
    request, name = verified.request, verified.request.device
    if request.role == "mixer":
        if request.token_id:
            raise WireError("a mixer needs no token; let an operator say `muster mixer admit` with its mixer.json")
        name = DeviceId(mixer_name(fleet, name))
    return Asked(
        device=name,
        public_key=verified.identity,
        fingerprint=verified.fingerprint,
        token_id=request.token_id,
        secret_is_right=False,
        serial=request.serial,
        agent_version=request.agent_version,
        device_class=request.device_class,
    )


def _refused(verified: Verified, decision: Refuse, now: float) -> Refused:
    reason = decision.reason
    if verified.request.role == "mixer":
        is_revoked = decision.code == "revoked"
        why = "this mixer's key was revoked" if is_revoked else f"no mixer {verified.request.device} has this key"
        make = "make a new folder with `muster mixer create`, and let" if is_revoked else "let"
        reason = f"{why}; {make} an operator say `muster mixer admit` with its mixer.json"
    return Refused(code=decision.code, reason=reason, server_time=now)


def _enrol(rows: IdentityWriting, decision: Grant | Hold) -> None:
    identity = decision.identity
    action = "identity.ask" if isinstance(decision, Hold) else "identity.enrol"
    rows.save_identity(identity, action, f"token {identity.token}, key {identity.fingerprint[:16]}")
    rows.spend(identity.token)


def _found(rows: IdentityReading, device: DeviceId) -> Identity:
    found = rows.identity(device)
    if found is None:
        raise IdentityUnknown(device)
    return found


def _waiting(identity: Identity, now: float) -> Waiting:
    reason = f"an operator has to accept it: `muster device accept {identity.device}`, key {identity.fingerprint[:16]}"
    return Waiting(retry_s=RETRY_WAITING_S, reason=reason, server_time=now)


def _entry(issued: Issued) -> CertificateEntry:
    return CertificateEntry(issued.serial, issued.name, issued.issued_at, issued.expires_at)
