"""What the controller's log does not say."""

from collections.abc import Iterator

import pytest
import structlog

from muster_controller.config import ServerConfig
from muster_controller.logs import configure_logs

SECRET = "s3cret"


@pytest.fixture
def _restored() -> Iterator[None]:
    before = structlog.get_config()
    yield
    structlog.configure(**before)


@pytest.mark.usefixtures("_restored")
@pytest.mark.parametrize("as_json", [True, False])
def test_a_traceback_shows_where_and_not_with_what(as_json: bool, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(as_json=as_json, verbose=False)

    def connect() -> None:
        password = SECRET
        raise ConnectionError(f"no answer to {len(password)} letters")

    try:
        connect()
    except ConnectionError:
        structlog.get_logger().exception("connect_failed")

    said = capsys.readouterr().err
    assert "connect_failed" in said
    assert "no answer" in said
    assert f"'{SECRET}'" not in said


def test_the_configuration_does_not_show_the_password_of_the_database() -> None:
    config = ServerConfig(database=f"postgresql://muster:{SECRET}@db/muster")

    assert SECRET not in repr(config)
