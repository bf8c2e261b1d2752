"""The database's part of the error tree.

MusterError
└── LedgerError
    ├── LedgerUnavailable     the file cannot be opened, read or written
    ├── LedgerTooNew          written by a newer controller
    └── LedgerMisused         a write outside a transaction, or from a second thread: a bug of ours
"""

from pathlib import Path

from muster_shared.errors import MusterError


class LedgerError(MusterError):
    """The database refuses something."""


class LedgerUnavailable(LedgerError):
    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"the database {path} cannot be used ({reason}); is the disk full, or the folder read-only?")
        self.path = path
        self.reason = reason


class LedgerTooNew(LedgerError):
    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} was written by a newer controller; install that version, or restore a backup")
        self.path = path


class LedgerMisused(LedgerError):
    """A bug of ours, refused before it writes anything."""
