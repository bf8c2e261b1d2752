"""When each mixer published last, from the rows of its sums: an index is enough, no sum is read."""

from sqlalchemy import func, select

from muster_controller.db.side import SideDatabase
from muster_controller.db.tables import MixedRow, table
from muster_shared.metrics import HOUR_S

_MIXED = table(MixedRow)


def newest_hours(side: SideDatabase, since: float) -> dict[str, float]:
    """Return the end of the newest hour of each mixer that began at `since` or later. Raises LedgerUnavailable."""
    begins = _MIXED.c.period_start
    query = select(_MIXED.c.mixer, func.max(begins)).where(_MIXED.c.period_s == HOUR_S, begins >= since)
    with side.reading() as connection:
        rows = connection.execute(query.group_by(_MIXED.c.mixer)).all()
    return {str(mixer): float(newest) + HOUR_S for mixer, newest in rows}
