"""What unit tests share."""

import shutil
from pathlib import Path

import pytest

from harness.signing import Desk, provision


@pytest.fixture(scope="session")
def signing_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An operator and a controller as `signing.provision` leaves them. Copy it."""
    return provision(tmp_path_factory.mktemp("signing")).folder


@pytest.fixture
def signing_desk(signing_template: Path, tmp_path: Path) -> Desk:
    """An operator and a controller of the test's own."""
    shutil.copytree(signing_template, tmp_path / "desk")
    return Desk(tmp_path / "desk")
