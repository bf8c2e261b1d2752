"""Receivers, and what they are still to be told, as rows. Orders stand in the audit log; secrets do not.

A notice waits here until its receiver took it, or a day has passed: a crash between the two tells it twice, with the
same id.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

import msgspec
from sqlalchemy import Connection, RowMapping, delete, func, insert, select, update

from muster_controller.acting import acting
from muster_controller.core.alerts.finding import Severity
from muster_controller.core.alerts.grouping import Body
from muster_controller.db.audit import append
from muster_controller.db.rows import text
from muster_controller.db.side import SideDatabase
from muster_controller.db.tables import NoticeRow, ReceiverRow, table
from muster_controller.errors import Conflict, NotFound

RECEIVERS_MAX: Final = 100
WAITING_MAX: Final = 1000
"""Notices that wait for one receiver; beyond that the newest are dropped, and the log says so."""
GIVE_UP_S: Final = 86_400.0
TOLD_S: Final = 7 * 86_400.0
"""How long it can be looked up what was told."""
ERROR_MAX: Final = 300
_RECEIVER, _NOTICE = table(ReceiverRow), table(NoticeRow)
_body: msgspec.json.Decoder[Body] = msgspec.json.Decoder(Body)


class Kind(StrEnum):
    WEBHOOK = "webhook"
    EMAIL = "email"
    MQTT = "mqtt"


class NoticeState(StrEnum):
    WAITING = "waiting"
    TOLD = "told"
    GIVEN_UP = "given_up"


@dataclass(frozen=True)
class Receiver:
    """Where alerts and reviews are told.

    Attributes:
        address: A URL, or a mail address. A URL may be a secret in itself.
        severities: Empty: all.
        secret: Of a webhook's signature; how a broker is convinced; empty of others.
    """

    name: str
    kind: Kind
    address: str = field(repr=False)
    severities: tuple[Severity, ...] = ()
    reviews: bool = False
    secret: str = field(default="", repr=False)
    created_at: float = 0.0
    created_by: str = ""
    disabled_at: float | None = None

    def wants(self, severity: Severity) -> bool:
        return self.disabled_at is None and (not self.severities or severity in self.severities)


@dataclass(frozen=True)
class Waiting:
    """A notice that is to be told now."""

    id: str
    receiver: str
    body: Body
    attempts: int
    created_at: float


@dataclass(frozen=True)
class Queue:
    """How a receiver's notices stand. `error`: what its last try that failed said."""

    waiting: int = 0
    told: int = 0
    given_up: int = 0
    error: str = ""


class ReceiverStore:
    """From any thread. Everything raises LedgerUnavailable where the database is away."""

    def __init__(self, side: SideDatabase, clock: Callable[[], float]) -> None:
        self._side = side
        self._clock = clock

    # -- receivers -----------------------------------------------------------------------------------------------------

    def receivers(self) -> list[Receiver]:
        """Return all, by name."""
        with self._side.reading() as connection:
            rows = connection.execute(select(_RECEIVER).order_by(_RECEIVER.c.name)).mappings().all()
        return [_receiver(row) for row in rows]

    def receiver(self, name: str) -> Receiver:
        """Raises NotFound."""
        with self._side.reading() as connection:
            row = connection.execute(select(_RECEIVER).where(_RECEIVER.c.name == text(name))).mappings().first()
        if row is None:
            raise NotFound("receiver", name)
        return _receiver(row)

    def add(self, receiver: Receiver) -> None:
        """Raises Conflict: there is one of this name, or there are too many."""
        values = {name: getattr(receiver, name) for name in receiver.__dataclass_fields__}
        values |= {"kind": receiver.kind.value, "severities": ",".join(each.value for each in receiver.severities)}
        with self._side.transaction() as connection:
            names = connection.execute(select(_RECEIVER.c.name)).scalars().all()
            if receiver.name in names:
                raise Conflict(f"there is a receiver {receiver.name!r} already; `muster receiver list` shows them")
            if len(names) >= RECEIVERS_MAX:
                raise Conflict(f"there are {RECEIVERS_MAX} receivers; remove some with `muster receiver remove`")
            connection.execute(insert(_RECEIVER).values(**values))
            said = f"{receiver.kind.value}, {values['severities'] or 'every severity'}"
            append(connection, acting(), "receiver.create", receiver.name, said, receiver.created_at)

    def remove(self, name: str) -> None:
        """Remove it, and all that waits for it. Raises NotFound."""
        with self._side.transaction() as connection:
            if not connection.execute(delete(_RECEIVER).where(_RECEIVER.c.name == text(name))).rowcount:
                raise NotFound("receiver", name)
            connection.execute(delete(_NOTICE).where(_NOTICE.c.receiver == text(name)))
            append(connection, acting(), "receiver.remove", name, "", self._clock())

    def disable(self, name: str, why: str) -> None:
        """Tell it nothing more: it said that it is gone for good."""
        now = self._clock()
        with self._side.transaction() as connection:
            query = update(_RECEIVER).where(_RECEIVER.c.name == name, _RECEIVER.c.disabled_at.is_(None))
            if connection.execute(query.values(disabled_at=now)).rowcount:
                append(connection, acting(), "receiver.disable", name, why, now)

    def tried(self, name: str, said: str) -> None:
        """Write down that somebody had it tested."""
        with self._side.transaction() as connection:
            append(connection, acting(), "receiver.test", name, said, self._clock())

    # -- notices -------------------------------------------------------------------------------------------------------

    def put(self, connection: Connection, notices: Iterable[tuple[str, str, Body]]) -> list[str]:
        """Queue (id, receiver, body) in the transaction of `connection`. Return the receivers whose queue is full."""
        now = self._clock()
        full: list[str] = []
        for name, receiver, body in notices:
            same = (_NOTICE.c.receiver == receiver) & (_NOTICE.c.state == NoticeState.WAITING.value)
            if connection.execute(select(func.count()).select_from(_NOTICE).where(same)).scalar_one() >= WAITING_MAX:
                full.append(receiver)
                continue
            values: dict[str, object] = {"id": name, "receiver": receiver, "body": msgspec.json.encode(body)}
            values |= {"state": NoticeState.WAITING.value, "attempts": 0, "next_at": now, "created_at": now}
            connection.execute(insert(_NOTICE).values(**values, error=""))
        return full

    def tell(self, notices: Iterable[tuple[str, str, Body]]) -> list[str]:
        """Queue (id, receiver, body). Return the receivers whose queue is full."""
        with self._side.transaction() as connection:
            return self.put(connection, notices)

    def due(self, limit: int) -> list[Waiting]:
        """Return what is to be told now, the oldest first."""
        query = select(_NOTICE).where(_NOTICE.c.state == NoticeState.WAITING.value, _NOTICE.c.next_at <= self._clock())
        with self._side.reading() as connection:
            rows = connection.execute(query.order_by(_NOTICE.c.next_at, _NOTICE.c.id).limit(limit)).mappings().all()
        return [_waiting(row) for row in rows]

    def told(self, notice: str) -> None:
        self._set(notice, state=NoticeState.TOLD.value, error="")

    def failed(self, notice: str, attempts: int, next_at: float | None, error: str) -> None:
        """Try it again at `next_at`; None: never."""
        state = NoticeState.GIVEN_UP if next_at is None else NoticeState.WAITING
        values = {"state": state.value, "attempts": attempts, "error": text(error)[:ERROR_MAX]}
        self._set(notice, **(values if next_at is None else {**values, "next_at": next_at}))

    def postpone(self, receiver: str, until: float) -> None:
        """Let what waits for a receiver that does not answer wait together."""
        same = (_NOTICE.c.receiver == receiver) & (_NOTICE.c.state == NoticeState.WAITING.value)
        with self._side.transaction() as connection:
            connection.execute(update(_NOTICE).where(same, _NOTICE.c.next_at < until).values(next_at=until))

    def queues(self) -> dict[str, Queue]:
        """Return how each receiver's notices of the last days stand."""
        counted = select(_NOTICE.c.receiver, _NOTICE.c.state, func.count()).group_by(
            _NOTICE.c.receiver, _NOTICE.c.state
        )
        wrong = select(_NOTICE.c.receiver, _NOTICE.c.error).where(_NOTICE.c.error != "").order_by(_NOTICE.c.created_at)
        with self._side.reading() as connection:
            counts: dict[str, dict[str, int]] = {}
            for receiver, state, count in connection.execute(counted).all():
                counts.setdefault(str(receiver), {})[str(state)] = int(count)
            errors = {str(receiver): str(error) for receiver, error in connection.execute(wrong).all()}
        return {name: Queue(**found, error=errors.get(name, "")) for name, found in counts.items()}

    def sweep(self) -> None:
        with self._side.transaction() as connection:
            query = delete(_NOTICE).where(_NOTICE.c.state != NoticeState.WAITING.value)
            connection.execute(query.where(_NOTICE.c.created_at < self._clock() - TOLD_S))

    def _set(self, notice: str, **values: object) -> None:
        with self._side.transaction() as connection:
            connection.execute(update(_NOTICE).where(_NOTICE.c.id == notice).values(**values))


def _receiver(row: RowMapping) -> Receiver:
    severities = tuple(Severity(each) for each in row["severities"].split(",") if each)
    values = {name: row[name] for name in Receiver.__dataclass_fields__}
    return Receiver(**{**values, "kind": Kind(row["kind"]), "severities": severities})


def _waiting(row: RowMapping) -> Waiting:
    return Waiting(row["id"], row["receiver"], _body.decode(bytes(row["body"])), row["attempts"], row["created_at"])
