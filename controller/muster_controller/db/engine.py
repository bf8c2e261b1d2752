"""Which database it is and how it is opened: a SQLite file with one writer in WAL mode, or a PostgreSQL server.

Raises nothing of SQLAlchemy's: `Database.translated` turns its errors into ours.
"""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, IntegrityError, NoSuchColumnError, NoSuchTableError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import ConnectionPoolEntry

from muster_controller.db.errors import LedgerRefused, LedgerUnavailable, LedgerUrlInvalid

BUSY_TIMEOUT_MS = 10_000  # Other writers are another controller, a migration or a backup tool; all of them are short.
BUSY_RETRY_S = 0.01
CONNECT_TIMEOUT_S = 5
READERS = 5  # Connections kept for the API; as many again in a rush.

_SQLITE_WRITER = (
    "PRAGMA synchronous=FULL",
    "PRAGMA cache_size=-65536",  # KiB; assignments for 10,000 devices are 30 MB, which should be written once.
    "PRAGMA wal_autocheckpoint=8192",  # Pages: so that most commits of that size need not tidy up after themselves.
    "PRAGMA journal_size_limit=67108864",
)
_POSTGRESQL = ("postgresql", "postgres", "postgresql+psycopg")
_KEEPALIVE = {  # A server that vanished without a word is noticed within half a minute.
    "connect_timeout": str(CONNECT_TIMEOUT_S),
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "20000",
    "application_name": "muster-controller",
}
_SESSION = (
    "SET synchronous_commit = on",  # Or an acknowledged event could be lost, whatever the server's default is.
    "SET lock_timeout = '10s'",
    "SET statement_timeout = '120s'",
    "SET idle_in_transaction_session_timeout = '30s'",  # Whoever froze while it held the writer's row lets go of it.
)
_REFUSED = (
    DataError,
    IntegrityError,
    sqlite3.DataError,
    sqlite3.IntegrityError,
    OverflowError,
    UnicodeEncodeError,
)
_UNAVAILABLE = (DBAPIError, sqlite3.Error, NoSuchTableError, NoSuchColumnError, PoolTimeout)


@dataclass(frozen=True)
class Database:
    """Where the database is. `label` is for people and logs: the path, or the URL without its password."""

    url: URL = field(repr=False)
    label: str

    @property
    def is_postgresql(self) -> bool:
        return self.url.get_backend_name() == "postgresql"

    def open_writer(self) -> Engine:
        """Return the engine of the writer. A commit has reached the disk when it returns."""
        if self.is_postgresql:
            return self._open_postgresql(pool_size=1, max_overflow=1)
        engine = self._open_sqlite(_SQLITE_WRITER, "BEGIN IMMEDIATE")
        event.listen(engine, "connect", _write_ahead)
        return engine

    def open_reader(self) -> Engine:
        """Return an engine that cannot write; a reader sees one commit throughout and never waits for the writer."""
        if self.is_postgresql:
            engine = self._open_postgresql(pool_size=READERS, max_overflow=READERS, isolation_level="REPEATABLE READ")
            return engine.execution_options(postgresql_readonly=True)
        return self._open_sqlite(("PRAGMA query_only=ON",), "BEGIN")

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Raise LedgerUnavailable or LedgerRefused for what the database driver raises."""
        try:
            yield
        except _REFUSED as error:
            raise LedgerRefused(self.label, _reason(error)) from error
        except _UNAVAILABLE as error:
            raise LedgerUnavailable(self.label, _reason(error)) from error

    def _open_sqlite(self, pragmas: tuple[str, ...], begin: str) -> Engine:
        engine = create_engine(self.url)

        def configure(connection: DBAPIConnection, _record: ConnectionPoolEntry) -> None:
            connection.isolation_level = None  # Or the driver begins transactions of its own, late and deferred.
            _run(connection, (f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}", "PRAGMA foreign_keys=ON", *pragmas))

        def start(connection: Connection) -> None:
            connection.exec_driver_sql(begin)

        event.listen(engine, "connect", configure)
        event.listen(engine, "begin", start)
        return engine

    def _open_postgresql(self, pool_size: int, max_overflow: int, isolation_level: str = "READ COMMITTED") -> Engine:
        engine = create_engine(
            self.url.update_query_dict({key: value for key, value in _KEEPALIVE.items() if key not in self.url.query}),
            pool_pre_ping=True,  # A connection that died with the server is replaced before it is used.
            pool_size=pool_size,
            max_overflow=max_overflow,
            pool_timeout=10.0,
            isolation_level=isolation_level,
        )

        def configure(connection: DBAPIConnection, _record: ConnectionPoolEntry) -> None:
            _run(connection, _SESSION)
            connection.commit()

        event.listen(engine, "connect", configure)
        return engine


def find_database(where: Path | str) -> Database:
    """Return the database at a path, or at a `sqlite:` or `postgresql:` URL.

    Raises:
        LedgerUrlInvalid: the URL does not parse, is of another kind, or needs a driver that is not installed.
    """
    if isinstance(where, Path):
        return Database(URL.create("sqlite", database=str(where.absolute())), str(where))
    try:
        url = make_url(where)
    except ArgumentError as error:
        raise LedgerUrlInvalid(_EXPECTED) from error
    if url.drivername == "sqlite" and url.database and url.database != ":memory:":
        return find_database(Path(url.database))
    if url.drivername not in _POSTGRESQL:
        raise LedgerUrlInvalid(_EXPECTED)
    try:
        import psycopg  # noqa: F401  # Only whoever has PostgreSQL needs it.
    except ImportError as error:
        raise LedgerUrlInvalid("PostgreSQL needs a driver: pip install 'muster-controller[postgres]'") from error
    url = url.set(drivername="postgresql+psycopg")
    safe = url.set(drivername="postgresql", query={})
    return Database(url, safe.render_as_string(hide_password=True))


_EXPECTED = (
    "the database is a URL such as postgresql://user:password@host:5432/muster, or sqlite:////var/lib/muster/muster.db"
)


def _run(connection: DBAPIConnection, statements: tuple[str, ...]) -> None:
    cursor = connection.cursor()
    for statement in statements:
        cursor.execute(statement)
    cursor.close()


def _write_ahead(connection: DBAPIConnection, _record: ConnectionPoolEntry) -> None:
    """Turn the write-ahead log on. SQLite does not wait for others here, whatever `busy_timeout` says: so do we."""
    give_up = time.monotonic() + BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            return _run(connection, ("PRAGMA journal_mode=WAL",))
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > give_up:
                raise
            time.sleep(BUSY_RETRY_S)


def _reason(error: Exception) -> str:
    cause = error.orig if isinstance(error, DBAPIError) else error
    return " ".join(str(cause).split())  # Drivers write several lines.
