"""The database's part of the error tree.

MusterError
└── LedgerError
    ├── LedgerUnavailable     the database cannot be opened, reached, read or written; try again later
    ├── LedgerMoved           another process wrote in between; nothing was kept, start again from what is there now
    ├── LedgerRefused         the database takes no such value; trying again does not help
    ├── LedgerUrlInvalid      the setting names no database that can be used
    ├── LedgerTooNew          written by a newer controller
    └── LedgerMisused         a write outside a transaction, or from a second thread: a bug of ours
"""

from muster_shared.errors import MusterError


class LedgerError(MusterError):
    """The database refuses something. `database` is its path or its URL without the password."""


class LedgerUnavailable(LedgerError):
    def __init__(self, database: str, reason: str) -> None:
        if "://" in database:
            hint = "is the server up, and may this user connect and write?"
        elif "locked" in reason:
            hint = "another program holds it for long; is it a backup, or a second controller?"
        else:
            hint = "is the disk full, or the folder read-only?"
        super().__init__(f"the database {database} cannot be used ({reason}); {hint}")
        self.database = database
        self.reason = reason


class LedgerMoved(LedgerError):
    def __init__(self, database: str, seen: int, found: int) -> None:
        super().__init__(
            f"another controller wrote to {database} (generation {found}, seen {seen}); nothing was changed, try again"
        )
        self.database = database
        self.seen = seen
        self.found = found


class LedgerRefused(LedgerError):
    def __init__(self, database: str, reason: str) -> None:
        super().__init__(f"the database {database} does not take a value ({reason}); this is a bug, please report it")
        self.database = database
        self.reason = reason


class LedgerUrlInvalid(LedgerError):
    """Never repeats the URL: it may hold a password."""


class LedgerTooNew(LedgerError):
    def __init__(self, database: str) -> None:
        super().__init__(f"{database} was written by a newer controller; install that version, or restore a backup")
        self.database = database


class LedgerMisused(LedgerError):
    """A bug of ours, refused before it writes anything."""
