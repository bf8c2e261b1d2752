"""How the SQLite file is opened: one writer in WAL mode with every commit on disk, any number of readers.

Raises nothing of SQLAlchemy's: `translated` turns its errors into ours.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError, NoSuchColumnError, NoSuchTableError
from sqlalchemy.pool import ConnectionPoolEntry

from muster_controller.db.errors import LedgerUnavailable

BUSY_TIMEOUT_MS = 10_000  # The only other writer is a migration or a backup tool.


def open_writer(path: Path) -> Engine:
    """Return the engine of the one writer. A commit has reached the disk when it returns (synchronous=FULL)."""
    return _open(path, ("PRAGMA journal_mode=WAL", "PRAGMA synchronous=FULL"), "BEGIN IMMEDIATE")


def open_reader(path: Path) -> Engine:
    """Return an engine that cannot write; readers see the last commit and never wait for the writer."""
    return _open(path, ("PRAGMA query_only=ON",), "BEGIN")


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Raise LedgerUnavailable for what the database driver raises."""
    try:
        yield
    except (DBAPIError, NoSuchTableError, NoSuchColumnError) as error:
        cause = error.orig if isinstance(error, DBAPIError) else error
        raise LedgerUnavailable(path, str(cause)) from error


def _open(path: Path, pragmas: tuple[str, ...], begin: str) -> Engine:
    engine = create_engine(f"sqlite:///{path.absolute()}")

    def configure(connection: DBAPIConnection, _record: ConnectionPoolEntry) -> None:
        connection.isolation_level = None  # Or the driver begins transactions of its own, late and deferred.
        cursor = connection.cursor()
        for pragma in (f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}", "PRAGMA foreign_keys=ON", *pragmas):
            cursor.execute(pragma)
        cursor.close()

    def start(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    event.listen(engine, "connect", configure)
    event.listen(engine, "begin", start)
    return engine
