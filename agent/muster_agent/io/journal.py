"""The journal: the device's state and its outbox in one SQLite file, so that one transaction covers both.

    state   one row, the whole `DeviceState` as JSON       outbox   events until the controller acknowledges them

The outbox is bounded. When it is full the oldest steps go first (the twin says where a device stands), then faults and
refusals, outcomes last: the gate counts them. What was dropped is counted. WAL with `synchronous=FULL`: a commit that
returned survives power loss.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import get_args

import msgspec
import structlog

from muster_agent.core.state import DeviceState
from muster_agent.errors import JournalFailed
from muster_shared.ids import EventId
from muster_shared.messages import Event, EventBody

OUTBOX_EVENTS_MAX = 10_000  # A few hundred bytes each: some megabytes after months without a broker.
LOCK_TIMEOUT_S = 10.0
_PAGE_CACHE_KIB = 512
_WAL_BYTES_MAX = 1024 * 1024
_RANK = {"step": 0, "fault": 1, "refused": 1, "outcome": 2}
_NOT_DAMAGE = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_READONLY,
    }
)
"""The file system refuses; the journal itself may be fine."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS state (id INTEGER PRIMARY KEY CHECK (id = 1), body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS outbox (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, at REAL NOT NULL, kind TEXT NOT NULL,
    rank INTEGER NOT NULL, body BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS outbox_rank ON outbox (rank, seq);
"""

assert {kind.__struct_config__.tag for kind in get_args(EventBody)} == set(_RANK)

log = structlog.get_logger()
_state_decoder = msgspec.json.Decoder(DeviceState)
_event_decoder = msgspec.json.Decoder(Event)


class SqliteJournal:
    """`ports.Journal` in the file `path`. One thread uses it, the conductor's."""

    def __init__(self, path: Path, *, outbox_events_max: int = OUTBOX_EVENTS_MAX) -> None:
        """Open or make the journal. A file that is not a whole journal is set aside, and an empty one begins.

        Raises:
            JournalFailed: the folder cannot be written.
        """
        self.dropped = 0
        """Events that the full outbox dropped since the start."""
        self._path = path
        self._outbox_events_max = outbox_events_max
        try:
            self._database = _open(path)
            self._state = self._read()
        except (sqlite3.DatabaseError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in _NOT_DAMAGE:
                raise JournalFailed(f"{path} cannot be opened: {error}") from error
            self._set_aside(error)
            self._database = _open(path)
            self._state = None

    def load(self) -> DeviceState | None:
        return self._state

    def commit(self, state: DeviceState, events: Sequence[Event]) -> None:
        """See `ports.Journal`. Raises JournalFailed, and then nothing of it is there."""
        rows = [(event.id, event.at, _kind(event), _RANK[_kind(event)], msgspec.json.encode(event)) for event in events]
        with self._transaction() as database:
            database.execute("INSERT OR REPLACE INTO state VALUES (1, ?)", (msgspec.json.encode(state),))
            database.executemany("INSERT OR IGNORE INTO outbox (id, at, kind, rank, body) VALUES (?, ?, ?, ?, ?)", rows)
            dropped = self._drop(database) if rows else 0
        self._state = state
        if dropped:
            if not self.dropped:
                log.warning("outbox_full", events_max=self._outbox_events_max)
            self.dropped += dropped

    def pending(self, limit: int) -> Sequence[Event]:
        with _failing("read"):
            rows = self._database.execute("SELECT body FROM outbox ORDER BY seq LIMIT ?", (limit,)).fetchall()
        return [_event_decoder.decode(body) for (body,) in rows]

    def forget(self, ids: Sequence[EventId]) -> None:
        with self._transaction() as database:
            database.executemany("DELETE FROM outbox WHERE id = ?", [(event_id,) for event_id in ids])

    def close(self) -> None:
        with suppress(sqlite3.Error):
            self._database.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with _failing("written"):
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
                self._database.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # A full disk may have rolled it back already.
                    self._database.execute("ROLLBACK")
                raise

    def _drop(self, database: sqlite3.Connection) -> int:
        (count,) = database.execute("SELECT count(*) FROM outbox").fetchone()
        if count <= self._outbox_events_max:
            return 0
        return database.execute(
            "DELETE FROM outbox WHERE seq IN (SELECT seq FROM outbox ORDER BY rank, seq LIMIT ?)",
            (count - self._outbox_events_max,),
        ).rowcount

    def _read(self) -> DeviceState | None:
        (verdict,) = self._database.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise sqlite3.DatabaseError(verdict)
        row = self._database.execute("SELECT body FROM state").fetchone()
        state = None if row is None else _state_decoder.decode(row[0])
        for seq, body in self._database.execute("SELECT seq, body FROM outbox").fetchall():
            try:
                _event_decoder.decode(body)
            except (
                msgspec.MsgspecError,
                UnicodeDecodeError,
            ) as error:  # Of another agent version; the state is worth more.
                log.warning("event_unreadable", seq=seq, error=str(error))
                self._database.execute("DELETE FROM outbox WHERE seq = ?", (seq,))
        return state

    def _set_aside(self, error: Exception) -> None:
        with suppress(AttributeError):
            self.close()
        aside = self._path.with_name(f"{self._path.name}.damaged")
        log.error("journal_damaged", path=str(self._path), kept_as=str(aside), error=str(error))
        for suffix in ("-wal", "-shm"):
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
        self._path.replace(aside)


def _open(path: Path) -> sqlite3.Connection:
    # Autocommit: transactions are written out. Made in `main`, used by the conductor's thread alone.
    database = sqlite3.connect(path, timeout=LOCK_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=FULL")
    database.execute(f"PRAGMA journal_size_limit={_WAL_BYTES_MAX}")
    database.execute(f"PRAGMA cache_size=-{_PAGE_CACHE_KIB}")
    database.executescript(_SCHEMA)
    return database


@contextmanager
def _failing(what: str) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, msgspec.MsgspecError) as error:
        raise JournalFailed(f"the journal cannot be {what}: {error}; is the disk full?") from error


def _kind(event: Event) -> str:
    return str(type(event.body).__struct_config__.tag)
