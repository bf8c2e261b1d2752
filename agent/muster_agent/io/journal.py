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
from muster_agent.io import sqlite_file
from muster_shared.ids import EventId
from muster_shared.messages import Event, EventBody

OUTBOX_EVENTS_MAX = 10_000  # A few hundred bytes each: some megabytes after months without a broker.
_PAGE_CACHE_KIB = 512
_RANK = {"step": 0, "fault": 1, "refused": 1, "outcome": 2}
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
            self._database = sqlite_file.open_file(path, _SCHEMA, cache_kib=_PAGE_CACHE_KIB)
            self._state = self._read()
        except (sqlite3.DatabaseError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            if sqlite_file.may_be_whole(error):
                raise JournalFailed(f"{path} cannot be opened: {error}") from error
            self._set_aside(error)
            self._database = sqlite_file.open_file(path, _SCHEMA, cache_kib=_PAGE_CACHE_KIB)
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
        with _failing("written"), sqlite_file.transaction(self._database):
            yield self._database

    def _drop(self, database: sqlite3.Connection) -> int:
        (count,) = database.execute("SELECT count(*) FROM outbox").fetchone()
        if count <= self._outbox_events_max:
            return 0
        return database.execute(
            "DELETE FROM outbox WHERE seq IN (SELECT seq FROM outbox ORDER BY rank, seq LIMIT ?)",
            (count - self._outbox_events_max,),
        ).rowcount

    def _read(self) -> DeviceState | None:
        sqlite_file.check(self._database)
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
        aside = sqlite_file.set_aside(self._path)
        log.error("journal_damaged", path=str(self._path), kept_as=str(aside), error=str(error))


@contextmanager
def _failing(what: str) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, msgspec.MsgspecError) as error:
        raise JournalFailed(f"the journal cannot be {what}: {error}; is the disk full?") from error


def _kind(event: Event) -> str:
    return str(type(event.body).__struct_config__.tag)
