"""What all tests share: logs that are as they were for each module, and a PostgreSQL server for who asks for it."""

from collections.abc import Iterator

import pytest
import structlog

from harness.postgres import Postgres, PostgresMissing, running_postgres


@pytest.fixture(scope="module", autouse=True)
def _logs_as_they_were() -> Iterator[None]:
    """What one module, or a program that it runs in this process, makes of the logs ends with it."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    try:
        with running_postgres() as server:
            yield server
    except PostgresMissing as missing:
        pytest.skip(str(missing))
