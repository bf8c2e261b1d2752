"""Brings a database to the newest schema; run at every start. The migrations ship inside this package."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Engine

from muster_controller.db.engine import translated
from muster_controller.db.errors import LedgerTooNew

MIGRATIONS = Path(__file__).parent / "migrations"


def migrate(engine: Engine, path: Path) -> None:
    """Create or upgrade the tables, all steps in one transaction.

    Raises:
        LedgerTooNew: the database has a revision that this controller does not know.
        LedgerUnavailable: it cannot be opened or written.
    """
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    with translated(path), engine.begin() as connection:
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise LedgerTooNew(path) from error
