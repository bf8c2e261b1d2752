"""Tokens, identities and certificates as rows, each change with its line of the audit log in one transaction.

What may change is decided elsewhere (`identity.enrolment`); here it is made to hold when two do it at once: those who
write do so one after the other, whichever controller they belong to.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import msgspec
from sqlalchemy import Connection, Integer, RowMapping, Select, cast, delete, func, insert, select, update

from muster_controller.acting import Acting
from muster_controller.client_names import mixer_of
from muster_controller.db import audit
from muster_controller.db.side import SideDatabase
from muster_controller.db.tables import CertificateRow, EnrolTokenRow, IdentityRow, MixerRow, table
from muster_controller.identity.enrolment import Approval, Asked, Cut, Identity, IdentityState, Token
from muster_shared.ids import DeviceId, FleetId, Sha256

_TOKEN, _IDENTITY, _CERTIFICATE = table(EnrolTokenRow), table(IdentityRow), table(CertificateRow)
_MIXER = table(MixerRow)
_serials: msgspec.json.Decoder[dict[str, DeviceId | None]] = msgspec.json.Decoder(dict[str, DeviceId | None])
_labels: msgspec.json.Decoder[dict[str, str]] = msgspec.json.Decoder(dict[str, str])

_WRITERS = 0x4D757374657241  # The advisory lock of those who write here; the number says "MusterA".

_CHUNK = 500  # Names in one question; SQLite takes 32,766 variables.

FORGOTTEN = "."
"""Stands in the name of a revoked identity whose device was forgotten: no device id has one. Its key stays refused."""


@dataclass(frozen=True)
class CertificateEntry:
    """One certificate that was issued. Times are Unix seconds; `serial` is hex."""

    serial: str
    name: str
    issued_at: float
    expires_at: float
    revoked_at: float | None = None


class IdentityReading:
    """What the rows say, within one transaction."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def token(self, token: str) -> Token | None:
        row = self._connection.execute(select(_TOKEN).where(_TOKEN.c.id == token)).mappings().one_or_none()
        return None if row is None else _token(row)

    def tokens(self) -> list[Token]:
        """Return all, newest first."""
        rows = self._connection.execute(select(_TOKEN).order_by(_TOKEN.c.created_at.desc(), _TOKEN.c.id)).mappings()
        return [_token(row) for row in rows]

    def identity(self, device: DeviceId) -> Identity | None:
        row = self._connection.execute(select(_IDENTITY).where(_IDENTITY.c.device == device)).mappings().one_or_none()
        return None if row is None else _identity(row)

    def identities(
        self, *, state: IdentityState | None = None, after: DeviceId | None = None, limit: int = 1000
    ) -> list[Identity]:
        """Return those of a state, by device; not the forgotten ones."""
        query = select(_IDENTITY).where(_IDENTITY.c.device.not_like(f"%{FORGOTTEN}%"))
        if state is not None:
            query = query.where(_IDENTITY.c.state == state.value)
        if after is not None:
            query = query.where(_IDENTITY.c.device > after)
        rows = self._connection.execute(query.order_by(_IDENTITY.c.device).limit(limit)).mappings()
        return [_identity(row) for row in rows]

    def names(self, state: IdentityState) -> list[DeviceId]:
        """Return every device of a state, sorted; not the forgotten ones."""
        query = select(_IDENTITY.c.device).where(_IDENTITY.c.state == state.value)
        found = self._connection.execute(query.where(_IDENTITY.c.device.not_like(f"%{FORGOTTEN}%"))).scalars()
        return sorted(DeviceId(name) for name in found)

    def labels(self, state: IdentityState) -> dict[DeviceId, Mapping[str, str]]:
        """Return the labels of every device of a state; not of the forgotten ones."""
        query = select(_IDENTITY.c.device, _IDENTITY.c.labels).where(_IDENTITY.c.state == state.value)
        rows = self._connection.execute(query.where(_IDENTITY.c.device.not_like(f"%{FORGOTTEN}%"))).all()
        seen: dict[bytes, Mapping[str, str]] = {}  # Most of them have those of a few tokens.
        found: dict[DeviceId, Mapping[str, str]] = {}
        for row in rows:
            raw = bytes(row.labels)
            if raw not in seen:
                seen[raw] = _labels.decode(raw)
            found[DeviceId(row.device)] = seen[raw]
        return found

    def barred(self, now: float) -> list[DeviceId]:
        """Return who may not come although some certificate of that name has not run out, sorted: the revoked, and the
        forgotten whose name nobody else has by now."""
        revoked = self.names(IdentityState.REVOKED)
        held = select(_CERTIFICATE.c.device).where(_CERTIFICATE.c.revoked_at.is_not(None))
        held = held.where(_CERTIFICATE.c.expires_at > now)
        found = {*revoked, *(DeviceId(name) for name in self._connection.execute(held).scalars() if "." not in name)}
        return sorted(found - set(self.names(IdentityState.ACCEPTED)))

    def cut(self, now: float) -> list[Cut]:
        """Return who cannot speak any more although it did: as `barred`, and by whom, without walking all others."""
        found: dict[DeviceId, Cut] = {}
        for row in self._connection.execute(
            select(_IDENTITY.c.device, _IDENTITY.c.decided_at, _IDENTITY.c.decided_by, _IDENTITY.c.reason)
            .where(_IDENTITY.c.state == IdentityState.REVOKED.value)
            .where(_IDENTITY.c.device.not_like(f"%{FORGOTTEN}%"), _IDENTITY.c.device.not_like("%.%"))
        ):
            found[DeviceId(row.device)] = Cut(DeviceId(row.device), row.decided_at or 0.0, row.decided_by, row.reason)
        accepted = (_IDENTITY.c.device == _CERTIFICATE.c.device) & (_IDENTITY.c.state == IdentityState.ACCEPTED.value)
        forgotten = (
            select(_CERTIFICATE.c.device, func.max(_CERTIFICATE.c.revoked_at).label("at"))
            .outerjoin(_IDENTITY, accepted)
            .where(_CERTIFICATE.c.revoked_at.is_not(None), _CERTIFICATE.c.expires_at > now)
            .where(_IDENTITY.c.device.is_(None), _CERTIFICATE.c.device.not_like("%.%"))
            .group_by(_CERTIFICATE.c.device)
        )
        for name, at in self._connection.execute(forgotten).all():
            device = DeviceId(name)
            found.setdefault(device, Cut(device, at, "", "its identity was forgotten"))
        return sorted(found.values(), key=lambda each: each.device)

    def mixers(self, fleet: FleetId, state: IdentityState | None = None) -> list[Identity]:
        """Return the mixers of a state, by name: identities whose name no device can have."""
        query = select(_IDENTITY).where(_IDENTITY.c.device.like("mixer.%")).order_by(_IDENTITY.c.device)
        if state is not None:
            query = query.where(_IDENTITY.c.state == state.value)
        rows = self._connection.execute(query).mappings()
        return [_identity(row) for row in rows if mixer_of(row["device"], fleet) is not None]

    def barred_mixers(self, fleet: FleetId, now: float) -> list[DeviceId]:
        """Return as `barred` which mixers may not come, by the names in their certificates."""
        held = select(_CERTIFICATE.c.device).where(_CERTIFICATE.c.device.like("mixer.%"))
        held = held.where(_CERTIFICATE.c.revoked_at.is_not(None), _CERTIFICATE.c.expires_at > now)
        names = (DeviceId(name) for name in self._connection.execute(held).scalars())
        found = {name for name in names if mixer_of(name, fleet) is not None}
        found |= {each.device for each in self.mixers(fleet, IdentityState.REVOKED)}
        return sorted(found - {each.device for each in self.mixers(fleet, IdentityState.ACCEPTED)})

    def mixer_keys(self) -> dict[str, tuple[str, float]]:
        """Return of every mixer what its key is called (hex of its public half) and when it was heard last, by id."""
        rows = self._connection.execute(select(_MIXER.c.id, _MIXER.c.public_key, _MIXER.c.seen_at)).all()
        return {str(row.id): (str(row.public_key), float(row.seen_at)) for row in rows}

    def related(self, asked: Asked) -> list[Identity]:
        """Return the identities that `decide` has to know of.

        Those of the same serial number are looked for through the whole table, so only for who has a token.
        """
        same = _IDENTITY.c.device == asked.device
        if asked.secret_is_right:
            same |= _IDENTITY.c.fingerprint == asked.fingerprint
            if asked.serial:
                same |= (_IDENTITY.c.hardware_serial == asked.serial) & (_IDENTITY.c.token == asked.token_id)
        rows = self._connection.execute(select(_IDENTITY).where(same).order_by(_IDENTITY.c.device)).mappings()
        return [_identity(row) for row in rows]

    def has_key(self, fingerprint: Sha256) -> bool:
        """Whether some identity, revoked and forgotten ones too, has this key."""
        query = select(_IDENTITY.c.device).where(_IDENTITY.c.fingerprint == fingerprint)
        return self._connection.execute(query).first() is not None

    def is_used(self, nonce: str) -> bool:
        query = select(_CERTIFICATE.c.serial).where(_CERTIFICATE.c.nonce == nonce)
        return self._connection.execute(query).first() is not None

    def issued_since(self, device: DeviceId, since: float) -> int:
        """Return how many certificates a device was given from then on."""
        query = select(func.count()).where(_CERTIFICATE.c.device == device, _CERTIFICATE.c.issued_at >= since)
        return int(self._connection.execute(query).scalar_one())

    def certificates(self, device: DeviceId, limit: int = 20) -> list[CertificateEntry]:
        """Return those of a device, newest first."""
        query = select(_CERTIFICATE).where(_CERTIFICATE.c.device == device)
        rows = self._connection.execute(query.order_by(_CERTIFICATE.c.issued_at.desc()).limit(limit)).mappings()
        return [
            CertificateEntry(row["serial"], row["device"], row["issued_at"], row["expires_at"], row["revoked_at"])
            for row in rows
        ]

    def revoked_certificates(self, now: float) -> list[tuple[str, float]]:
        """Return the serial number of each that would still hold, and when it was revoked, by serial number."""
        query = select(_CERTIFICATE.c.serial, _CERTIFICATE.c.revoked_at)
        query = query.where(_CERTIFICATE.c.revoked_at.is_not(None), _CERTIFICATE.c.expires_at > now)
        rows = self._connection.execute(query.order_by(_CERTIFICATE.c.serial)).all()
        return [(str(row.serial), float(row.revoked_at)) for row in rows]

    def device_expiries(self, now: float, step_s: float) -> dict[int, int]:
        """Return how many devices' newest certificates run out in each `step_s` from `now` on, by number of the step.

        Of devices alone, and of certificates that hold.
        """
        newest = _newest_of_devices(now).subquery()
        step = cast(func.floor((newest.c.ends - now) / step_s), Integer)
        rows = self._connection.execute(select(step.label("step"), func.count().label("n")).group_by(step)).all()
        return {int(row.step): int(row.n) for row in rows}

    def soonest_expiries(self, now: float, limit: int) -> list[tuple[DeviceId, float]]:
        """Return whose newest certificate that holds runs out first, and when."""
        newest = _newest_of_devices(now).subquery()
        rows = self._connection.execute(select(newest).order_by(newest.c.ends, newest.c.device).limit(limit)).all()
        return [(DeviceId(row.device), float(row.ends)) for row in rows]

    def admitted_count(self) -> int:
        """Return how many devices may come; not mixers."""
        query = select(func.count()).where(_IDENTITY.c.state == IdentityState.ACCEPTED.value)
        return int(self._connection.execute(query.where(_IDENTITY.c.device.not_like("%.%"))).scalar_one())


def _newest_of_devices(now: float) -> Select[tuple[object, ...]]:
    """Select `device` and when its newest certificate `ends`; neither mixers, nor the controller, nor the forgotten."""
    query = select(_CERTIFICATE.c.device, func.max(_CERTIFICATE.c.expires_at).label("ends"))
    query = query.where(_CERTIFICATE.c.revoked_at.is_(None), _CERTIFICATE.c.expires_at > now)
    return query.where(_CERTIFICATE.c.device.not_like("%.%")).group_by(_CERTIFICATE.c.device)


class IdentityWriting(IdentityReading):
    """One write transaction, in the name of `who`. What it reads stays so until it ends."""

    def __init__(self, connection: Connection, who: Acting, now: float) -> None:
        super().__init__(connection)
        self._who = who
        self._now = now
        self._entries: list[audit.Entry] = []
        if connection.dialect.name == "postgresql":  # SQLite began with its only lock.
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_WRITERS})")

    def add_token(self, token: Token) -> None:
        values = {"labels": _packed(token.labels), "serials": _packed(token.serials), "approval": token.approval.value}
        plain = ("id", "secret_sha256", "uses_max", "uses", "created_at", "created_by", "expires_at", "revoked_at")
        values |= {name: getattr(token, name) for name in plain}
        self._connection.execute(insert(_TOKEN).values(**values))
        labels = ",".join(f"{key}={value}" for key, value in sorted(token.labels.items()))
        self.note(
            "enrol-token.create", token.id, f"{token.approval.value}, {token.uses_max} uses, {labels or 'no labels'}"
        )

    def revoke_token(self, token: str) -> None:
        self._connection.execute(update(_TOKEN).where(_TOKEN.c.id == token).values(revoked_at=self._now))
        self.note("enrol-token.revoke", token, "")

    def spend(self, token: str) -> None:
        """Count one use; the row was read in this transaction, which nobody else can be in."""
        self._connection.execute(update(_TOKEN).where(_TOKEN.c.id == token).values(uses=_TOKEN.c.uses + 1))

    def save_identity(self, identity: Identity, action: str, detail: str) -> None:
        """Write an identity, new or changed."""
        values = {"state": identity.state.value, "labels": _packed(identity.labels)}
        plain = ("public_key", "fingerprint", "token", "hardware_serial", "agent_version", "device_class", "asked_at")
        values |= {name: getattr(identity, name) for name in (*plain, "decided_at", "decided_by", "reason")}
        changed = self._connection.execute(
            update(_IDENTITY).where(_IDENTITY.c.device == identity.device).values(**values)
        )
        if changed.rowcount == 0:
            self._connection.execute(insert(_IDENTITY).values(device=identity.device, **values))
        self.note(action, identity.device, detail)

    def relabel(
        self, devices: Collection[DeviceId], edited: Callable[[Mapping[str, str]], Mapping[str, str]]
    ) -> tuple[int, int]:
        """Give each accepted one of `devices` the labels that `edited` makes of its own; it says so in no log.

        Returns how many were changed, and how many had them so already. What `edited` raises goes through.
        """
        after: dict[bytes, bytes] = {}  # Most of them have those of a few tokens.
        changed = same = 0
        names = sorted(devices)
        for start in range(0, len(names), _CHUNK):
            some = _IDENTITY.c.device.in_(names[start : start + _CHUNK])
            query = select(_IDENTITY.c.device, _IDENTITY.c.labels).where(some)
            moved: dict[bytes, list[str]] = {}
            for row in self._connection.execute(query.where(_IDENTITY.c.state == IdentityState.ACCEPTED.value)).all():
                raw = bytes(row.labels)
                if raw not in after:
                    after[raw] = _packed(edited(_labels.decode(raw)))
                if after[raw] != _packed(_labels.decode(raw)):
                    moved.setdefault(after[raw], []).append(row.device)
                else:
                    same += 1
            for labels, found in moved.items():
                self._connection.execute(update(_IDENTITY).where(_IDENTITY.c.device.in_(found)).values(labels=labels))
                changed += len(found)
        return changed, same

    def save_mixer_key(self, mixer: str, public_key: str) -> None:
        """Write down the key (hex) of a mixer, known or not."""
        changed = self._connection.execute(update(_MIXER).where(_MIXER.c.id == mixer).values(public_key=public_key))
        if changed.rowcount == 0:
            made = {"created_at": self._now, "created_by": self._who.actor, "seen_at": 0.0}
            self._connection.execute(insert(_MIXER).values(id=mixer, public_key=public_key, **made))

    def forget(self, identity: Identity) -> None:
        """Free the name. A revoked key stays refused, under a name that no device can have."""
        row = _IDENTITY.c.device == identity.device
        if identity.state is IdentityState.REVOKED:
            kept = f"{identity.device}{FORGOTTEN}{identity.fingerprint[:16]}"
            self._connection.execute(update(_IDENTITY).where(row).values(device=kept))
        else:
            self._connection.execute(delete(_IDENTITY).where(row))
        self.note("identity.forget", identity.device, f"it was {identity.state.value}, key {identity.fingerprint[:16]}")

    def add_certificate(self, entry: CertificateEntry, nonce: str, *, is_audited: bool) -> None:
        """Raises LedgerRefused (at the end of the transaction's block) when the nonce was used before.

        Args:
            is_audited: not for a renewal, which a device brings about by itself: the row is enough.
        """
        self._connection.execute(
            insert(_CERTIFICATE).values(
                serial=entry.serial,
                device=entry.name,
                issued_at=entry.issued_at,
                expires_at=entry.expires_at,
                revoked_at=None,
                nonce=nonce,
            )
        )
        if is_audited:
            self.note("certificate.issue", entry.name, f"serial {entry.serial}")

    def revoke_certificates(self, device: DeviceId) -> int:
        """Revoke those of a device that would still hold, and return how many."""
        valid = (_CERTIFICATE.c.device == device) & _CERTIFICATE.c.revoked_at.is_(None)
        valid &= _CERTIFICATE.c.expires_at > self._now
        changed = self._connection.execute(update(_CERTIFICATE).where(valid).values(revoked_at=self._now))
        return int(changed.rowcount)

    def prune_certificates(self, before: float) -> int:
        """Drop those that ran out before then: nothing asks for them any more."""
        found = self._connection.execute(delete(_CERTIFICATE).where(_CERTIFICATE.c.expires_at < before))
        return int(found.rowcount)

    def note(self, action: str, subject: str, detail: str) -> None:
        self._entries.append(audit.Entry(self._who, action, subject, detail, self._now))

    def finish(self) -> None:
        """Append what is to be told: the log's head is locked last, and not for long."""
        audit.append_all(self._connection, self._entries)


class IdentityStore:
    """Opens transactions. Raises LedgerUnavailable and LedgerRefused, as `SideDatabase`."""

    def __init__(self, side: SideDatabase) -> None:
        self._side = side

    @contextmanager
    def reading(self) -> Iterator[IdentityReading]:
        with self._side.reading() as connection:
            yield IdentityReading(connection)

    @contextmanager
    def writing(self, who: Acting, now: float) -> Iterator[IdentityWriting]:
        with self._side.transaction() as connection:
            rows = IdentityWriting(connection, who, now)
            yield rows
            rows.finish()


def _token(row: RowMapping) -> Token:
    return Token(
        id=row["id"],
        secret_sha256=row["secret_sha256"],
        labels=_labels.decode(row["labels"]),
        uses_max=row["uses_max"],
        uses=row["uses"],
        created_at=row["created_at"],
        created_by=row["created_by"],
        expires_at=row["expires_at"],
        revoked_at=row["revoked_at"],
        approval=Approval(row["approval"]),
        serials=_serials.decode(row["serials"]),
    )


def _identity(row: RowMapping) -> Identity:
    return Identity(
        device=DeviceId(row["device"]),
        state=IdentityState(row["state"]),
        public_key=row["public_key"],
        fingerprint=Sha256(row["fingerprint"]),
        token=row["token"],
        labels=_labels.decode(row["labels"]),
        hardware_serial=row["hardware_serial"],
        agent_version=row["agent_version"],
        device_class=row["device_class"],
        asked_at=row["asked_at"],
        decided_at=row["decided_at"],
        decided_by=row["decided_by"],
        reason=row["reason"],
    )


def _packed(values: Mapping[str, str] | Mapping[str, DeviceId | None]) -> bytes:
    return msgspec.json.encode(dict(values), order="sorted")
