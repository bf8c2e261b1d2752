"""A few of the kills of `kill_nine.py`, at each run of the suite."""

from pathlib import Path

import pytest

from integration.kill_nine import run

pytestmark = pytest.mark.broker


def test_an_agent_killed_in_the_middle_of_updates_always_comes_back_with_a_model(tmp_path: Path) -> None:
    tally = run(kills=8, seed=3, folder=tmp_path)

    assert tally.answered_by_previous + tally.answered_by_new == 8
