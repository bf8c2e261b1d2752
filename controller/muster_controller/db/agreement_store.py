"""The rows of what all controllers of a database have in common (`identity.agreement` decides what may be in them)."""

from collections.abc import Callable, Sequence

from sqlalchemy import Connection, delete, insert, select

from muster_controller.acting import Acting
from muster_controller.db import audit
from muster_controller.db.side import SideDatabase
from muster_controller.db.tables import AgreementRow, table
from muster_controller.identity.agreement import Own, Recorded, news

_AGREEMENT = table(AgreementRow)
_WRITERS = 0x4D757374657242  # The advisory lock of those who write here; the number says "MusterB".
_CLIENT = "mqtt-client"


class AgreementStore:
    """Raises LedgerUnavailable and LedgerRefused, as `SideDatabase`."""

    def __init__(self, side: SideDatabase, clock: Callable[[], float]) -> None:
        self._side = side
        self._clock = clock

    def agree(self, own: Sequence[Own], *, adopt: bool = False) -> list[str]:
        """Record what is new, and return the names of what took the place of something else.

        Raises:
            Disagreement: what this controller has is neither recorded nor a successor of it; nothing was written.
        """
        with self._side.reading() as connection:
            if not news(own, _recorded(connection), adopt=adopt):
                return []
        with self._side.transaction() as connection:
            _lock(connection)
            recorded = _recorded(connection)
            changed = []
            for each in news(own, recorded, adopt=adopt):
                _write(connection, each.name, each.value, each.rank)
                if each.name in recorded and recorded[each.name].value != each.value:
                    changed.append(each)
            now = self._clock()
            audit.append_all(
                connection,
                [audit.Entry(Acting(), "keys.change", each.name, f"now {each.value[:16]}", now) for each in changed],
            )
        return [each.name for each in changed]

    def client_word(self, make: Callable[[], str]) -> str:
        """Return the part of the controllers' client id that nobody can guess; `make` makes it, once for all."""
        with self._side.reading() as connection:
            found = _recorded(connection).get(_CLIENT)
        if found is not None:
            return found.value
        with self._side.transaction() as connection:
            _lock(connection)
            found = _recorded(connection).get(_CLIENT)
            if found is not None:
                return found.value
            word = make()
            _write(connection, _CLIENT, word, 0)
        return word


def _lock(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":  # SQLite began with its only lock.
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_WRITERS})")


def _recorded(connection: Connection) -> dict[str, Recorded]:
    rows = connection.execute(select(_AGREEMENT)).all()
    return {str(row.name): Recorded(str(row.value), int(row.rank)) for row in rows}


def _write(connection: Connection, name: str, value: str, rank: int) -> None:
    connection.execute(delete(_AGREEMENT).where(_AGREEMENT.c.name == name))
    connection.execute(insert(_AGREEMENT).values(name=name, value=value, rank=rank))
