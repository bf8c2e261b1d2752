"""Brings a database to the newest schema; run at every start. The migrations ship inside this package."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, Engine

from muster_controller.db.engine import Database
from muster_controller.db.errors import LedgerTooNew

MIGRATIONS = Path(__file__).parent / "migrations"
LOCK = 0x6D757374  # "must": whoever migrates a PostgreSQL database first has the others wait.


def migrate(engine: Engine, database: Database) -> None:
    """Create or upgrade the tables, all steps in one transaction; controllers that start together take turns.

    Raises:
        LedgerTooNew: the database has a revision that this controller does not know.
        LedgerUnavailable: it cannot be opened or written.
    """
    with database.translated(), engine.begin() as connection:
        if database.is_postgresql:
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({LOCK})")
        try:
            upgrade(connection, "head")
        except CommandError as error:
            raise LedgerTooNew(database.label) from error


def upgrade(connection: Connection, revision: str) -> None:
    """Bring the schema to `revision` in the transaction of `connection`."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, revision)
