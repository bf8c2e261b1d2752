"""A mixer that dies at every single statement of its ledger, one after the other: what it counts, charges, publishes.

A child process does one step and dies just before its n-th statement, as by kill -9; then the step is done again from
the file, as the next start would. n goes on until a child comes through.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.mixing import CELL, DAY_START, Stage, window
from muster_controller.mixer.batching import HOUR_CLOSES_S
from muster_controller.mixer.config import MixerConfig
from muster_controller.mixer.noise import OsRandom
from muster_shared.ids import FleetId
from muster_shared.metrics import HOUR_S, RELEASES_A_DAY, RHO_DAY, UNITS, Kind, Window

CLOSES = DAY_START + HOUR_S + HOUR_CLOSES_S
DIED = 9
STATEMENTS_MAX = 400
SOUTH = CELL.__class__(model=CELL.model, version=CELL.version, device_class="orin", classes=CELL.classes)


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    """An hour with two cells that may be published and one that may not, and noise that is never the same again."""
    folder = tmp_path / "mixer"
    folder.mkdir()
    stage = Stage(folder, MixerConfig("one", FleetId("test")))
    stage.now = DAY_START + HOUR_S + 600
    small = CELL.__class__(model=CELL.model, version="9.9.9", device_class="orin", classes=CELL.classes)
    for cell, number in ((CELL, 25), (SOUTH, 20), (small, 3)):
        stage.send(window(stage.rng, cell=cell) for _ in range(number))
    stage.ledger.close()
    return stage


def dies_at(number: int, stage: Stage, step: Callable[[], object]) -> bool:
    """Do `step` in a child that dies before its statement `number`; whether it died."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            stage.open()
            left = number

            def count(_statement: str) -> None:
                nonlocal left
                left -= 1
                if left < 0:
                    os._exit(DIED)

            stage.ledger._database.set_trace_callback(count)
            step()
            status = 0
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, DIED), "the step failed in another way"
    return status == DIED


def every_death(stage: Stage, tmp_path: Path, step: Callable[[], object], look: Callable[[], None]) -> int:
    """Let `step` die at each of its statements, `look` at what is there each time; how many there were."""
    whole = tmp_path / "whole"
    shutil.copytree(stage.folder, whole)
    for number in range(STATEMENTS_MAX):
        shutil.rmtree(stage.folder)
        shutil.copytree(whole, stage.folder)
        died = dies_at(number, stage, step)
        stage.open()
        stage.mixer._below = OsRandom()
        look()
        stage.ledger.close()
        if not died:
            return number
    raise AssertionError("the step does not end")


def test_dying_while_an_hour_is_published_publishes_it_once_with_one_noise(stage: Stage, tmp_path: Path) -> None:
    def publish() -> None:
        stage.mixer._below = OsRandom()
        stage.at(CLOSES)

    def look() -> None:
        before = {one.batch: one for one in stage.outbox()}  # The dead one may have sent these.
        stage.at(CLOSES)
        after = {one.batch: one for one in stage.outbox()}

        assert all(after[name] == one for name, one in before.items()), "nothing has two contents"
        assert sorted(one.devices for one in after.values()) == [20, 25]
        (budget,) = stage.mixer.state("k", 0.0).budgets
        assert budget.rho_spent == pytest.approx(RHO_DAY / RELEASES_A_DAY)
        assert stage.counted() == {"windows": 48, "suppressed": 3}

    assert every_death(stage, tmp_path, publish, look) > 10


def test_dying_while_windows_are_counted_counts_each_once_when_they_come_again(stage: Stage, tmp_path: Path) -> None:
    more: list[Window] = [window(stage.rng, units={Kind.CLASSES: {5: UNITS}}) for _ in range(5)]
    stage.open()
    before = stage.ledger.pendings(stage.ledger.open_periods()[0].period)[CELL]
    stage.ledger.close()

    def look() -> None:
        stage.send(more)  # Nobody acknowledged them, so the broker brings them again.
        after = stage.ledger.pendings(stage.ledger.open_periods()[0].period)[CELL]

        assert after.devices == before.devices + 5
        assert after.sums[Kind.CLASSES][5] == before.sums[Kind.CLASSES].get(5, 0) + 5 * UNITS
        assert stage.counted()["windows"] == 53

    assert every_death(stage, tmp_path, lambda: stage.send(more), look) > 10
