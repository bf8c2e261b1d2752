"""Objectives as rows, and what the operational series counts for them. Orders stand in the audit log."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from sqlalchemy import RowMapping, delete, func, insert, select, update

from muster_controller.acting import acting
from muster_controller.core.alerts.burn import BUDGET_S, PERIOD_S, Indicator, Objective, Requests
from muster_controller.db.audit import append
from muster_controller.db.rows import text
from muster_controller.db.side import SideDatabase
from muster_controller.db.tables import ObjectiveRow, SeriesRow, table
from muster_controller.errors import Conflict, NotFound

OBJECTIVES_MAX: Final = 200
_PERIODS: Final = ((6 * 3600, PERIOD_S), (3 * 86_400, 3600), (BUDGET_S, 86_400))
"""Of windows up to so many seconds: which periods of the series they are summed up from."""
_OBJECTIVE, _SERIES = table(ObjectiveRow), table(SeriesRow)


@dataclass(frozen=True)
class Kept:
    """An objective, and who set it."""

    objective: Objective
    created_at: float
    created_by: str


class ObjectiveStore:
    """From any thread. Everything raises LedgerUnavailable where the database is away."""

    def __init__(self, side: SideDatabase, clock: Callable[[], float]) -> None:
        self._side = side
        self._clock = clock

    def objectives(self) -> list[Kept]:
        """Return all, by name."""
        with self._side.reading() as connection:
            rows = connection.execute(select(_OBJECTIVE).order_by(_OBJECTIVE.c.name)).mappings().all()
        return [_kept(row) for row in rows]

    def objective(self, name: str) -> Kept:
        """Raises NotFound."""
        with self._side.reading() as connection:
            row = connection.execute(select(_OBJECTIVE).where(_OBJECTIVE.c.name == text(name))).mappings().first()
        if row is None:
            raise NotFound("objective", name, "`muster slo list` shows what there is")
        return _kept(row)

    def set(self, objective: Objective) -> None:
        """Add it, or put it in the place of the one of its name. Raises Conflict: there are too many."""
        now, who = self._clock(), acting()
        values = {
            "model": objective.model,
            "selector_class": objective.device_class,
            "indicator": objective.indicator.value,
            "target": objective.target,
            "created_at": now,
            "created_by": who.actor,
        }
        said = f"{objective.model} {objective.device_class or 'every class'}, {objective.indicator.value}"
        with self._side.transaction() as connection:
            query = update(_OBJECTIVE).where(_OBJECTIVE.c.name == objective.name)
            if not connection.execute(query.values(**values)).rowcount:
                if connection.execute(select(func.count()).select_from(_OBJECTIVE)).scalar_one() >= OBJECTIVES_MAX:
                    raise Conflict(f"there are {OBJECTIVES_MAX} objectives; remove some with `muster slo remove`")
                connection.execute(insert(_OBJECTIVE).values(name=objective.name, **values))
            append(connection, who, "objective.set", objective.name, f"{said} {objective.target:g}", now)

    def remove(self, name: str) -> None:
        """Raises NotFound."""
        with self._side.transaction() as connection:
            if not connection.execute(delete(_OBJECTIVE).where(_OBJECTIVE.c.name == text(name))).rowcount:
                raise NotFound("objective", name, "`muster slo list` shows what there is")
            append(connection, acting(), "objective.remove", name, "", self._clock())

    def requests(self, objective: Objective, window_s: int) -> Requests:
        """Return what was counted in the last `window_s` seconds, a period that they overlap counted as a whole.

        The finest periods are not kept for long, so a long window is made of long ones; they are never behind.
        """
        now = self._clock()
        period_s = next(period for most_s, period in _PERIODS if window_s <= most_s)
        since = (now - window_s) // period_s * period_s + (0 if period_s == PERIOD_S else period_s)
        query = select(*(func.sum(_SERIES.c[name]) for name in ("requests", "errors", "slow"))).where(
            _SERIES.c.model == objective.model,
            _SERIES.c.period_s == period_s,
            _SERIES.c.at >= since,
            _SERIES.c.at <= now,
        )
        if objective.device_class:
            query = query.where(_SERIES.c.device_class == objective.device_class)
        with self._side.reading() as connection:
            found = connection.execute(query).one()
        return Requests(*(int(each or 0) for each in found))


def _kept(row: RowMapping) -> Kept:
    objective = Objective(
        row["name"], row["model"], Indicator(row["indicator"]), row["target"], device_class=row["selector_class"]
    )
    return Kept(objective, row["created_at"], row["created_by"])
