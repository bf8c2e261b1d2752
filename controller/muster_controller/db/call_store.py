"""Calls to devices as rows: what was asked, by whom, and what was answered. The last KEPT of each device."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from sqlalchemy import RowMapping, delete, func, insert, select, update

from muster_controller.acting import acting
from muster_controller.db.audit import append
from muster_controller.db.rows import text
from muster_controller.db.side import SideDatabase
from muster_controller.db.tables import CallRow, table
from muster_controller.errors import NotFound
from muster_shared.call import CallKind
from muster_shared.ids import DeviceId

KEPT: Final = 50
_CALL = table(CallRow)
_PLAIN: Final = tuple(each for each in _CALL.c if each.name != "answer")


@dataclass(frozen=True)
class AskedCall:
    """A call, and what came of it. Times are Unix seconds."""

    id: str
    device: DeviceId
    what: CallKind
    asked_by: str
    asked_at: float
    expires_at: float
    answered_at: float | None = None
    ok: bool | None = None
    answer: bytes | None = None
    """As it came: `messages.Answer`."""


class CallStore:
    """From any thread. Everything raises LedgerUnavailable where the database is away."""

    def __init__(self, side: SideDatabase, clock: Callable[[], float]) -> None:
        self._side = side
        self._clock = clock

    def ask(self, call: AskedCall) -> None:
        """Keep a new call, and forget the oldest of the device beyond KEPT. It stands in the audit log."""
        with self._side.transaction() as connection:
            connection.execute(
                insert(_CALL).values(
                    id=call.id,
                    device=call.device,
                    what=call.what.value,
                    asked_by=call.asked_by,
                    asked_at=call.asked_at,
                    expires_at=call.expires_at,
                )
            )
            newest = (
                select(_CALL.c.id)
                .where(_CALL.c.device == call.device)
                .order_by(_CALL.c.asked_at.desc(), _CALL.c.id)
                .limit(KEPT)
            )
            connection.execute(delete(_CALL).where(_CALL.c.device == call.device, _CALL.c.id.not_in(newest)))
            append(connection, acting(), "device.call", call.device, f"{call.what.value} {call.id}", call.asked_at)

    def answered(self, call: str, device: DeviceId, ok: bool, answer: bytes, at: float) -> bool:
        """Keep an answer; return False where nothing like that was asked, or it was answered already."""
        query = update(_CALL).where(_CALL.c.id == call, _CALL.c.device == device, _CALL.c.answered_at.is_(None))
        with self._side.transaction() as connection:
            found = connection.execute(query.values(answered_at=at, ok=ok, answer=answer))
        return bool(found.rowcount)

    def calls(self, device: DeviceId, limit: int = KEPT) -> list[AskedCall]:
        """Return the calls of a device with their answers, newest first."""
        query = select(_CALL).where(_CALL.c.device == device).order_by(_CALL.c.asked_at.desc(), _CALL.c.id)
        with self._side.reading() as connection:
            return [_call(row) for row in connection.execute(query.limit(limit)).mappings()]

    def call(self, device: DeviceId, call: str) -> AskedCall:
        """Raises NotFound."""
        query = select(_CALL).where(_CALL.c.id == text(call), _CALL.c.device == device)
        with self._side.reading() as connection:
            row = connection.execute(query).mappings().first()
        if row is None:
            raise NotFound("call", call, f"`muster device calls {device}` shows what was asked")
        return _call(row)

    def open(self, now: float) -> dict[str, tuple[DeviceId, float]]:
        """Return those that may still be answered: by id, whose they are and when they expire."""
        query = select(*_PLAIN).where(_CALL.c.expires_at > now, _CALL.c.answered_at.is_(None))
        with self._side.reading() as connection:
            rows = connection.execute(query).mappings().all()
        return {row["id"]: (DeviceId(row["device"]), row["expires_at"]) for row in rows}

    def waiting(self, device: DeviceId, now: float) -> int:
        """Return how many calls of a device may still be answered."""
        query = (
            select(func.count())
            .select_from(_CALL)
            .where(_CALL.c.device == device, _CALL.c.expires_at > now, _CALL.c.answered_at.is_(None))
        )
        with self._side.reading() as connection:
            return int(connection.execute(query).scalar_one())

    def forget(self, device: DeviceId) -> None:
        with self._side.transaction() as connection:
            connection.execute(delete(_CALL).where(_CALL.c.device == device))


def _call(row: RowMapping) -> AskedCall:
    return AskedCall(
        id=row["id"],
        device=DeviceId(row["device"]),
        what=CallKind(row["what"]),
        asked_by=row["asked_by"],
        asked_at=row["asked_at"],
        expires_at=row["expires_at"],
        answered_at=row["answered_at"],
        ok=row["ok"],
        answer=row["answer"],
    )
