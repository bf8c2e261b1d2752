"""The book on disk: one SQLite file of its own, `metrics.sqlite`, so that a full or damaged one costs metrics only.

    fact   running hour and totals, as JSON      part   one release in one period, as JSON      taken   periods
    detector   what the detectors of a release remember, opaque

`keep` is one transaction and durable when it returns (WAL, `synchronous=FULL`). The running hour is kept once a minute:
kill -9 or a power cut costs the inferences of a minute at most, and no window, since a window is kept with its nonce
before it is handed over. The file is bounded; what the book bounds fits into it many times over.
"""

import sqlite3
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec
import structlog

from muster_agent.errors import JournalFailed
from muster_agent.io import sqlite_file
from muster_agent.metrics.book import Book, Key, Part, Running, Totals
from muster_agent.metrics.windows import Place
from muster_shared.ids import Sha256

FILE = "metrics.sqlite"
BYTES_MAX = 64 * 1024 * 1024
_PAGE_CACHE_KIB = 256
_SCHEMA = """
CREATE TABLE IF NOT EXISTS fact (name TEXT PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS part (
    period_s INTEGER NOT NULL, start INTEGER NOT NULL, release TEXT NOT NULL, body BLOB NOT NULL,
    PRIMARY KEY (period_s, start, release)
);
CREATE TABLE IF NOT EXISTS taken (
    start INTEGER NOT NULL, period_s INTEGER NOT NULL, PRIMARY KEY (start, period_s)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS detector (bundle TEXT PRIMARY KEY, state BLOB NOT NULL) WITHOUT ROWID;
"""

log = structlog.get_logger()
_running = msgspec.json.Decoder(Running)
_totals = msgspec.json.Decoder(Totals)
_part = msgspec.json.Decoder(Part)


class MetricsJournal:
    """One `Book` in the file `path`. From any thread; one after the other."""

    def __init__(self, path: Path, *, bytes_max: int = BYTES_MAX) -> None:
        """Open or make the file at the first use; it may be that the disk is full now, and not later."""
        self._path = path
        self._bytes_max = bytes_max
        self._lock = threading.Lock()
        self._database: sqlite3.Connection | None = None
        self._taken: set[tuple[int, int]] = set()
        self._detectors: dict[Sha256, bytes] = {}

    def load(self, place: Place) -> Book:
        """Return what was kept. A file that is not a whole journal is set aside, and an empty book begins.

        Raises:
            JournalFailed: the file cannot be opened; the book begins in memory.
        """
        try:
            database = self._open()
            book = _read(database, place)
            self._detectors = dict(database.execute("SELECT bundle, state FROM detector"))
        except (sqlite3.DatabaseError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            if sqlite_file.may_be_whole(error):
                self.close()
                raise JournalFailed(f"{self._path} cannot be opened: {error}; is the disk full?") from error
            self._set_aside(error)
            return Book(place)
        self._taken = set(book.taken)
        return book

    def keep(self, book: Book) -> None:
        """Write what changed since the last time. Raises JournalFailed, and then nothing of it is there."""
        if not book.is_dirty and not book.dirty:
            return
        gone = [(key.period_s, key.start, _name(key)) for key in book.dirty if key not in book.parts]
        there = [
            (key.period_s, key.start, _name(key), msgspec.json.encode(book.parts[key]))
            for key in book.dirty
            if key in book.parts
        ]
        with self._lock:
            self._write(book, gone, there)

    def recall(self, bundle: Sha256) -> bytes:
        """Return what the detectors of a release remembered when the book was loaded; empty: nothing."""
        return self._detectors.get(bundle, b"")

    def remember(self, states: Mapping[Sha256, bytes]) -> None:
        """Keep what detectors remember, in place of what was kept before; another time, if the disk is full."""
        with self._lock, suppress(sqlite3.Error):
            database = self._open()
            with sqlite_file.transaction(database):
                database.execute("DELETE FROM detector")
                database.executemany("INSERT INTO detector VALUES (?, ?)", list(states.items()))

    def close(self) -> None:
        with self._lock:
            self._shut()

    def _shut(self) -> None:
        database, self._database = self._database, None
        if database is not None:
            with suppress(sqlite3.Error):
                database.close()

    def _write(
        self, book: Book, gone: Sequence[tuple[int, int, str]], there: Sequence[tuple[int, int, str, bytes]]
    ) -> None:
        facts = [("running", msgspec.json.encode(book.running)), ("totals", msgspec.json.encode(book.totals))]
        try:
            database = self._open()
            with sqlite_file.transaction(database):
                database.executemany("INSERT OR REPLACE INTO fact VALUES (?, ?)", facts)
                database.executemany("DELETE FROM part WHERE period_s = ? AND start = ? AND release = ?", gone)
                database.executemany("INSERT OR REPLACE INTO part VALUES (?, ?, ?, ?)", there)
                database.executemany("DELETE FROM taken WHERE start = ? AND period_s = ?", self._taken - book.taken)
                database.executemany("INSERT OR IGNORE INTO taken VALUES (?, ?)", book.taken - self._taken)
        except sqlite3.Error as error:
            raise JournalFailed(f"{self._path} cannot be written: {error}; is the disk full?") from error
        self._taken = set(book.taken)
        book.kept()

    def _open(self) -> sqlite3.Connection:
        if self._database is None:
            self._database = sqlite_file.open_file(
                self._path, _SCHEMA, cache_kib=_PAGE_CACHE_KIB, bytes_max=self._bytes_max
            )
        return self._database

    def _set_aside(self, error: Exception) -> None:
        self.close()
        aside = sqlite_file.set_aside(self._path)
        log.error("metrics_journal_damaged", path=str(self._path), kept_as=str(aside), error=str(error))


def read(path: Path, place: Place) -> Book:
    """Return the book in `path` without changing it, for people while no agent runs. Raises JournalFailed."""
    try:
        database = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=sqlite_file.LOCK_TIMEOUT_S)
        try:
            return _read(database, place)
        finally:
            database.close()
    except (sqlite3.Error, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise JournalFailed(f"{path} cannot be read: {error}") from error


def _read(database: sqlite3.Connection, place: Place) -> Book:
    sqlite_file.check(database)
    facts: dict[str, bytes] = dict(database.execute("SELECT name, body FROM fact"))
    return Book(
        place,
        _running.decode(facts["running"]) if "running" in facts else Running(),
        [_part.decode(body) for (body,) in database.execute("SELECT body FROM part ORDER BY period_s, start, release")],
        database.execute("SELECT start, period_s FROM taken"),
        _totals.decode(facts["totals"]) if "totals" in facts else Totals(),
    )


def _name(key: Key) -> str:
    release = key.release
    return f"{release.model} {release.version} {release.bundle_sha256}"
