"""Short transactions beside the ledger's: identities, operators, credentials, audit.

The ledger keeps the fleet in memory and has one writer, fenced by a generation; what is here is read from rows each
time, so that any thread of any controller may write it. Nothing here touches the ledger's tables.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from sqlalchemy import Connection

from muster_controller.db.engine import Database


class SideDatabase:
    """Opened after the ledger, which migrates."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._writer = database.open_writer()
        self._reader = database.open_reader()

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """One write transaction. Raises LedgerUnavailable, LedgerRefused; what the block raises goes through."""
        with self._database.translated(), self._writer.begin() as connection:
            yield connection

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """One consistent view, which cannot write."""
        with self._database.translated(), self._reader.begin() as connection:
            yield connection

    def close(self) -> None:
        self._writer.dispose()
        self._reader.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
