"""What the contract suites share: the databases that a store must do with."""

from pathlib import Path

import pytest

from harness.postgres import Postgres, Where


@pytest.fixture(params=["sqlite", "postgresql"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Where:
    """Return where an empty database is."""
    if request.param == "sqlite":
        return tmp_path / "muster.db"
    server: Postgres = request.getfixturevalue("postgres")
    return server.new_database()
