"""Holds as rows: which devices rollouts leave alone. Every order stands in the audit log."""

from collections.abc import Callable
from typing import Final

from sqlalchemy import delete, func, insert, select, update

from muster_controller.acting import acting
from muster_controller.db.audit import append
from muster_controller.db.side import SideDatabase
from muster_controller.db.tables import HoldRow, table
from muster_controller.errors import Conflict
from muster_controller.holds import Hold, HoldKind
from muster_shared.ids import DeviceId

HOLDS_MAX: Final = 200_000
_HOLD = table(HoldRow)
_ACTIONS: Final = {
    HoldKind.PINNED: "device.pin",
    HoldKind.QUARANTINED: "device.quarantine",
    HoldKind.GONE: "device.decommission",
}


class HoldStore:
    """From any thread. Everything raises LedgerUnavailable where the database is away."""

    def __init__(self, side: SideDatabase, clock: Callable[[], float]) -> None:
        self._side = side
        self._clock = clock

    def all(self) -> dict[DeviceId, Hold]:
        with self._side.reading() as connection:
            rows = connection.execute(select(_HOLD)).mappings().all()
        return {
            DeviceId(row["device"]): Hold(
                DeviceId(row["device"]), HoldKind(row["kind"]), row["by"], row["at"], row["reason"]
            )
            for row in rows
        }

    def hold(self, device: DeviceId, kind: HoldKind) -> Hold:
        """Hold it; a hold of another kind is replaced. Raises Conflict: it is held so already, or too many are."""
        now, who = self._clock(), acting()
        values = {"kind": kind.value, "reason": who.reason, "by": who.actor, "at": now}
        with self._side.transaction() as connection:
            found = connection.execute(select(_HOLD.c.kind).where(_HOLD.c.device == device)).scalar()
            if found == kind.value:
                raise Conflict(f"{device} is {kind.value} already")
            if found is None:
                if connection.execute(select(func.count()).select_from(_HOLD)).scalar_one() >= HOLDS_MAX:
                    raise Conflict(f"{HOLDS_MAX:,} devices are held; release some with `muster device release`")
                connection.execute(insert(_HOLD).values(device=device, **values))
            else:
                connection.execute(update(_HOLD).where(_HOLD.c.device == device).values(**values))
            append(connection, who, _ACTIONS[kind], device, "" if found is None else f"was {found}", now)
        return Hold(device, kind, who.actor, now, who.reason)

    def release(self, device: DeviceId, *kinds: HoldKind) -> None:
        """Let it go. Raises Conflict: it is not held so."""
        with self._side.transaction() as connection:
            found = connection.execute(select(_HOLD.c.kind).where(_HOLD.c.device == device)).scalar()
            if found is None or HoldKind(found) not in kinds:
                raise Conflict(
                    f"{device} is not {' or '.join(each.value for each in kinds)}"
                    + (f"; it is {found}" if found else "; nobody holds it")
                )
            connection.execute(delete(_HOLD).where(_HOLD.c.device == device))
            action = "device.unpin" if found == HoldKind.PINNED.value else "device.release"
            append(connection, acting(), action, device, f"was {found}", self._clock())
