"""What the contract suites share: a PostgreSQL server, started when a test first asks for it."""

from collections.abc import Iterator

import pytest

from harness.postgres import Postgres, PostgresMissing, running_postgres


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    try:
        with running_postgres() as server:
            yield server
    except PostgresMissing as missing:
        pytest.skip(str(missing))
