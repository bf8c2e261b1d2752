"""The ledger: what of each day's budget is spent, which windows were counted, sums so far, and what waits to be sent.

    periods   what a period cost, once; whether it is closed        nonces    of windows that were taken
    pending   sums of a cell and period, never a single window      outbox    noised sums until the controller has them

One SQLite file, WAL with `synchronous=FULL`: a transaction that returned survives power loss, one that did not leaves
nothing. So what was charged is there if and only if the noised sums are, and noise is never drawn again for the same
windows. Deleted rows are overwritten. The file is as secret as the mixer's key: sums without noise are in it.

It does not decide anything: `batching` does. A ledger that does not read is never set aside, as the budget is in it.
"""

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from muster_controller.mixer.accounting import NANO
from muster_controller.mixer.batching import OLD_S, OpenPeriod, Pending, Period
from muster_controller.mixer.errors import MixLedgerDamaged, MixLedgerUnavailable
from muster_shared.metrics import DAY_S, Budget, Cell, Kind, Mixed

LEDGER_FILE: Final = "ledger.db"
"""In a mixer's folder."""
VERSION: Final = 1
OUTBOX_MAX: Final = 20_000  # Of some kilobytes each; the oldest go first, counted: what they cost stays spent.
PERIODS_KEPT_S: Final = 400 * DAY_S
_LOCK_TIMEOUT_S: Final = 10.0
_WAL_BYTES_MAX: Final = 16 * 1024 * 1024

Counter = Literal["windows", "refused", "repeated", "too_late", "suppressed", "out_of_budget", "outbox_dropped"]

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS periods (
    start INTEGER NOT NULL, length_s INTEGER NOT NULL, day INTEGER NOT NULL, taken INTEGER NOT NULL DEFAULT 0,
    rho_nano INTEGER NOT NULL DEFAULT 0, releases INTEGER NOT NULL DEFAULT 0, published_at INTEGER,
    closed INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (start, length_s)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS periods_day ON periods (day);
CREATE TABLE IF NOT EXISTS nonces (
    start INTEGER NOT NULL, length_s INTEGER NOT NULL, nonce BLOB NOT NULL, PRIMARY KEY (start, length_s, nonce)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pending (
    start INTEGER NOT NULL, length_s INTEGER NOT NULL, cell BLOB NOT NULL, devices INTEGER NOT NULL,
    opened_at INTEGER NOT NULL, sums BLOB NOT NULL, PRIMARY KEY (start, length_s, cell)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS pending_opened ON pending (start, length_s, opened_at);
CREATE TABLE IF NOT EXISTS outbox (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, batch TEXT NOT NULL UNIQUE, body BLOB NOT NULL
);
"""
_NOT_DAMAGE: Final = frozenset(
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
Row = tuple[Any, ...]  # As SQLite returns it: the edge.
_cells = msgspec.json.Decoder(Cell)
_sums = msgspec.msgpack.Decoder(dict[Kind, dict[int, int]])


@dataclass(frozen=True)
class Waiting:
    """A message of the outbox; `seq` rises."""

    seq: int
    batch: str
    body: bytes


class MixLedger:
    """The ledger in the file `path`. One thread uses it. What it raises: MixLedgerUnavailable, MixLedgerDamaged."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        """Open or make it; `read_only` beside a mixer that runs."""
        self._path = path
        with self._failing():
            self._database = self._open(read_only=read_only)

    def close(self) -> None:
        with suppress(sqlite3.Error):
            self._database.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything inside is on the disk when it ends well, and nothing of it otherwise."""
        with self._failing():
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._database.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # A full disk may have rolled it back already.
                    self._database.execute("ROLLBACK")
                raise

    # -- the budget ----------------------------------------------------------------------------------------------------

    def charge(self, period: Period, release: int, budget: int) -> bool:
        """Pay for a period, inside a transaction; whether it is paid for now.

        A period is paid for once, by the dearest of its releases: each holds other devices than the others.

        Args:
            release: rho in 10^-9.
            budget: of the day that the period is of, likewise.
        """
        self._begin_period(period)
        (paid,) = self._one("SELECT rho_nano FROM periods WHERE start = ? AND length_s = ?", period)
        (spent,) = self._one("SELECT coalesce(sum(rho_nano), 0) FROM periods WHERE day = ?", (period.day,))
        if spent + max(0, release - paid) > budget:
            return False
        self._run("UPDATE periods SET rho_nano = max(rho_nano, ?) WHERE start = ? AND length_s = ?", (release, *period))
        return True

    def budgets(self, limit: int, budget: int) -> tuple[Budget, ...]:
        """Return the days of which something was published, newest first; `budget` in 10^-9 of rho."""
        rows = self._all(
            "SELECT day, sum(rho_nano) FROM periods WHERE rho_nano > 0 GROUP BY day ORDER BY day DESC LIMIT ?", (limit,)
        )
        return tuple(Budget(day=day, rho_spent=spent / NANO, rho_budget=budget / NANO) for day, spent in rows)

    # -- windows -------------------------------------------------------------------------------------------------------

    def is_closed(self, period: Period) -> bool:
        """Whether windows of that period come too late."""
        row = self._find("SELECT closed FROM periods WHERE start = ? AND length_s = ?", period)
        return row is not None and bool(row[0])

    def note(self, period: Period, nonce: str) -> bool:
        """Note that a window was taken, inside a transaction; False: it was before."""
        sql = "INSERT OR IGNORE INTO nonces VALUES (?, ?, ?)"
        return self._run(sql, (*period, bytes.fromhex(nonce))) == 1

    def pending(self, period: Period, cell: Cell) -> Pending | None:
        row = self._find(
            "SELECT devices, sums, opened_at FROM pending WHERE start = ? AND length_s = ? AND cell = ?",
            (*period, _key(cell)),
        )
        return None if row is None else Pending(row[0], _sums.decode(row[1]), row[2])

    def save(self, period: Period, cell: Cell, pending: Pending, taken: int) -> None:
        """Put sums in the place of those before, with `taken` windows more, inside a transaction."""
        self._begin_period(period)
        body = msgspec.msgpack.encode(pending.sums)
        values = (*period, _key(cell), pending.devices, pending.opened_at, body)
        self._run("INSERT OR REPLACE INTO pending VALUES (?, ?, ?, ?, ?, ?)", values)
        self._run("UPDATE periods SET taken = taken + ? WHERE start = ? AND length_s = ?", (taken, *period))

    def noted(self) -> int:
        """Return how many nonces there are."""
        (number,) = self._one("SELECT coalesce(sum(taken), 0) FROM periods WHERE NOT closed", ())
        return int(number)

    def cells(self) -> int:
        """Return how many pending sums there are."""
        return int(self._one("SELECT count(*) FROM pending", ())[0])

    # -- periods -------------------------------------------------------------------------------------------------------

    def open_periods(self) -> tuple[OpenPeriod, ...]:
        """Return those that have pending sums, oldest first."""
        rows = self._all(
            "SELECT start, length_s, min(opened_at), (SELECT published_at FROM periods AS p"
            " WHERE p.start = pending.start AND p.length_s = pending.length_s)"
            " FROM pending GROUP BY start, length_s ORDER BY start, length_s",
            (),
        )
        return tuple(OpenPeriod(Period(start, length), opened, published) for start, length, opened, published in rows)

    def pendings(self, period: Period) -> Mapping[Cell, Pending]:
        """Return all pending sums of a period."""
        rows = self._all("SELECT cell, devices, sums, opened_at FROM pending WHERE start = ? AND length_s = ?", period)
        return {_cells.decode(cell): Pending(number, _sums.decode(sums), at) for cell, number, sums, at in rows}

    def releases(self, period: Period) -> int:
        """Return how many times sums of it were published."""
        row = self._find("SELECT releases FROM periods WHERE start = ? AND length_s = ?", period)
        return 0 if row is None else int(row[0])

    def publish(self, period: Period, messages: Sequence[Mixed], now: float) -> None:
        """Put what was charged for into the outbox, inside the transaction of the charge."""
        published = self._run(
            "UPDATE periods SET releases = releases + 1, published_at = ?"
            " WHERE start = ? AND length_s = ? AND rho_nano > 0",
            (int(now), *period),
        )
        assert published == 1, "nothing is published that was not charged for"
        for one in messages:
            self._run("INSERT INTO outbox (batch, body) VALUES (?, ?)", (one.batch, msgspec.json.encode(one)))
        beyond = self.outbox_size() - OUTBOX_MAX
        if beyond > 0:
            self._run("DELETE FROM outbox WHERE seq IN (SELECT seq FROM outbox ORDER BY seq LIMIT ?)", (beyond,))
            self.count({"outbox_dropped": beyond})

    def drop(self, period: Period, cells: Sequence[Cell]) -> None:
        """Forget pending sums, which were published or never will be, inside a transaction."""
        for cell in cells:
            self._run("DELETE FROM pending WHERE start = ? AND length_s = ? AND cell = ?", (*period, _key(cell)))

    def end(self, period: Period) -> None:
        """Close a period: nothing of it is taken any more. Inside a transaction."""
        self._begin_period(period)
        self._run("UPDATE periods SET closed = 1 WHERE start = ? AND length_s = ?", period)
        self._run("DELETE FROM nonces WHERE start = ? AND length_s = ?", period)

    def end_old(self, now: float) -> None:
        """Close every period that is older than what is taken, and forget those that ended PERIODS_KEPT_S ago."""
        rows = self._all(
            "SELECT start, length_s FROM periods AS p WHERE NOT closed AND start + length_s < ? AND NOT EXISTS"
            " (SELECT 1 FROM pending WHERE pending.start = p.start AND pending.length_s = p.length_s)",
            (int(now - OLD_S),),
        )
        if not rows and self._find("SELECT 1 FROM periods WHERE start < ?", (int(now - PERIODS_KEPT_S),)) is None:
            return
        with self.transaction():
            for start, length in rows:
                self.end(Period(start, length))
            self._run("DELETE FROM periods WHERE closed AND start < ?", (int(now - PERIODS_KEPT_S),))

    def wipe_traces(self) -> None:
        """Empty the write-ahead log, in which sums of a few windows may stand."""
        with self._failing():
            self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    # -- the outbox ----------------------------------------------------------------------------------------------------

    def outbox(self, after: int, limit: int) -> tuple[Waiting, ...]:
        """Return what waits to be acknowledged beyond `after`, oldest first."""
        rows = self._all("SELECT seq, batch, body FROM outbox WHERE seq > ? ORDER BY seq LIMIT ?", (after, limit))
        return tuple(Waiting(*row) for row in rows)

    def outbox_size(self) -> int:
        return int(self._one("SELECT count(*) FROM outbox", ())[0])

    def acknowledged(self, batches: Sequence[str]) -> int:
        """Forget batches that the controller has; how many there were."""
        with self.transaction():
            return sum(self._run("DELETE FROM outbox WHERE batch = ?", (batch,)) for batch in batches)

    # -- counters ------------------------------------------------------------------------------------------------------

    def count(self, more: Mapping[Counter, int]) -> None:
        """Add to the counters, inside a transaction."""
        for name, number in more.items():
            if number:
                self._run(
                    "INSERT INTO counters VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value + ?",
                    (name, number, number),
                )

    def counters(self) -> Mapping[str, int]:
        """Return totals since the ledger was begun; those of 0 may be left out."""
        return dict(self._all("SELECT name, value FROM counters", ()))

    # -- SQLite --------------------------------------------------------------------------------------------------------

    def _begin_period(self, period: Period) -> None:
        self._run("INSERT OR IGNORE INTO periods (start, length_s, day) VALUES (?, ?, ?)", (*period, period.day))

    def _run(self, sql: str, values: Sequence[object]) -> int:
        with self._failing():
            return self._database.execute(sql, tuple(values)).rowcount

    def _all(self, sql: str, values: Sequence[object]) -> list[Row]:
        with self._failing():
            return self._database.execute(sql, tuple(values)).fetchall()

    def _find(self, sql: str, values: Sequence[object]) -> Row | None:
        rows = self._all(sql, values)
        return rows[0] if rows else None

    def _one(self, sql: str, values: Sequence[object]) -> Row:
        return self._all(sql, values)[0]

    def _open(self, *, read_only: bool) -> sqlite3.Connection:
        if read_only:
            database = sqlite3.connect(f"{self._path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
        else:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.touch(mode=0o600)
            database = sqlite3.connect(self._path, timeout=_LOCK_TIMEOUT_S, isolation_level=None)
        try:
            (version,) = database.execute("PRAGMA user_version").fetchone()
            if version > VERSION:
                raise MixLedgerDamaged(f"{self._path} was written by a newer muster; install that one")
            if not read_only:
                database.execute("PRAGMA journal_mode = WAL").fetchall()
                database.execute("PRAGMA synchronous = FULL")
                database.execute("PRAGMA secure_delete = ON").fetchall()
                database.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES_MAX}").fetchall()
                (verdict,) = database.execute("PRAGMA quick_check(1)").fetchone()
                if verdict != "ok":
                    raise sqlite3.DatabaseError(verdict)
                database.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {VERSION}; COMMIT;")
        except BaseException:
            database.close()
            raise
        return database

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code in _NOT_DAMAGE:
                raise MixLedgerUnavailable(
                    f"{self._path} cannot be used: {error}; see to its disk and permissions"
                ) from error
            raise MixLedgerDamaged(
                f"{self._path} is damaged ({error}); restore it, or wait until the day is over and begin a new one: "
                "what was spent of today's budget is in it"
            ) from error


def _key(cell: Cell) -> bytes:
    return msgspec.json.encode(cell)
