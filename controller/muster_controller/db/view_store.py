"""Filters of lists that operators keep under a name, as rows. Each sees and changes only their own."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from sqlalchemy import ColumnElement, and_, delete, func, insert, select, update

from muster_controller.acting import acting
from muster_controller.db.audit import append
from muster_controller.db.rows import text
from muster_controller.db.side import SideDatabase
from muster_controller.db.tables import ViewRow, table
from muster_controller.errors import Conflict, NotFound

VIEWS_MAX: Final = 100
"""Of one operator."""
_VIEW: Final = table(ViewRow)


@dataclass(frozen=True)
class KeptView:
    """`query` is that of the page's address, without `?`; `saved_at` Unix seconds."""

    page: str
    name: str
    query: str
    saved_at: float


class ViewStore:
    """From any thread. Everything raises LedgerUnavailable where the database is away."""

    def __init__(self, side: SideDatabase, clock: Callable[[], float]) -> None:
        self._side = side
        self._clock = clock

    def views(self, operator: str, page: str | None = None) -> list[KeptView]:
        """Return them by page and name."""
        query = select(_VIEW).where(_VIEW.c.operator == operator)
        if page is not None:
            query = query.where(_VIEW.c.page == page)
        with self._side.reading() as connection:
            rows = connection.execute(query.order_by(_VIEW.c.page, _VIEW.c.name)).mappings().all()
        return [KeptView(row["page"], row["name"], row["query"], row["saved_at"]) for row in rows]

    def save(self, operator: str, page: str, name: str, query: str) -> KeptView:
        """Keep it, or put it in the place of the one of its name. Raises Conflict: there are too many."""
        now = self._clock()
        with self._side.transaction() as connection:
            values = {"query": text(query), "saved_at": now}
            if not connection.execute(update(_VIEW).where(_named(operator, page, name)).values(**values)).rowcount:
                mine = select(func.count()).select_from(_VIEW).where(_VIEW.c.operator == operator)
                if connection.execute(mine).scalar_one() >= VIEWS_MAX:
                    raise Conflict(f"you keep {VIEWS_MAX} views; remove some first")
                connection.execute(insert(_VIEW).values(operator=operator, page=page, name=text(name), **values))
            append(connection, acting(), "view.save", f"{page} {name}", query, now)
        return KeptView(page, name, query, now)

    def remove(self, operator: str, page: str, name: str) -> None:
        """Raises NotFound."""
        with self._side.transaction() as connection:
            if not connection.execute(delete(_VIEW).where(_named(operator, page, name))).rowcount:
                raise NotFound("view", f"{page} {name}")
            append(connection, acting(), "view.remove", f"{page} {name}", "", self._clock())


def _named(operator: str, page: str, name: str) -> ColumnElement[bool]:
    return and_(_VIEW.c.operator == operator, _VIEW.c.page == page, _VIEW.c.name == text(name))
