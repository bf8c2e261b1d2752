"""SQLite files that survive power loss and damage: opened, written and set aside the same way by every journal.

WAL with `synchronous=FULL`: a transaction that returned is on the disk. What is in a file, and what a journal makes of
an error, is its own.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LOCK_TIMEOUT_S = 10.0
_WAL_BYTES_MAX = 1024 * 1024
_PAGE_BYTES = 4096
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


def open_file(path: Path, schema: str, *, cache_kib: int, bytes_max: int | None = None) -> sqlite3.Connection:
    """Open or make the file. Autocommit, for transactions are written out; any thread may use it, one at a time.

    Args:
        schema: Statements that make what is not there yet.
        bytes_max: How large it may become; beyond that SQLite says that the disk is full.
    Raises:
        sqlite3.Error: see `may_be_whole`.
    """
    database = sqlite3.connect(path, timeout=LOCK_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    try:
        database.execute(f"PRAGMA page_size={_PAGE_BYTES}")
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=FULL")
        database.execute(f"PRAGMA journal_size_limit={_WAL_BYTES_MAX}")
        database.execute(f"PRAGMA cache_size=-{cache_kib}")
        if bytes_max is not None:
            database.execute(f"PRAGMA max_page_count={bytes_max // _PAGE_BYTES}")
        database.executescript(schema)
    except BaseException:
        database.close()
        raise
    return database


def check(database: sqlite3.Connection) -> None:
    """Raise sqlite3.DatabaseError unless the pages of the file are whole."""
    (verdict,) = database.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise sqlite3.DatabaseError(verdict)


def may_be_whole(error: Exception) -> bool:
    """Return whether it is the file system that refuses; the file itself may be fine."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _NOT_DAMAGE


@contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[None]:
    """Everything inside is on the disk when it ends well, and nothing of it otherwise."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):  # A full disk may have rolled it back already.
            database.execute("ROLLBACK")
        raise


def set_aside(path: Path) -> Path:
    """Move a damaged file, which nobody has open, out of the way; return where it is now. Raises OSError."""
    aside = path.with_name(f"{path.name}.damaged")
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    path.replace(aside)
    return aside
