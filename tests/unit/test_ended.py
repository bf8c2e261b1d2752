"""Ended rollouts at hand: what was read late never hides what was written since, and they stay within bounds."""

from dataclasses import replace

import pytest

from harness.rollout_story import Story
from muster_controller.core.rollout.roll import roll_of
from muster_controller.core.rollout.state import Rollout, RolloutState
from muster_controller.db import ended
from muster_controller.db.ended import Ended
from muster_shared.ids import RolloutId


def over(name: str, devices: int = 3, reason: str = "promoted") -> Rollout:
    rollout = Story(devices=devices).rollout
    return replace(rollout, id=RolloutId(name), state=RolloutState.FINISHED, ended_at=5.0, reason=reason)


def test_what_was_read_is_at_hand_from_then_on() -> None:
    found, rollout = Ended(), over("r1")

    found.offer(rollout, found.moment(rollout.id))

    assert found.get(rollout.id) is rollout
    assert found.get(RolloutId("r2")) is None


def test_what_was_read_before_it_was_written_is_not_kept() -> None:
    found, old, new = Ended(), over("r1"), over("r1", reason="a late device has it, too")
    moment = found.moment(old.id)
    found.wrote(new, None)

    found.offer(old, moment)

    assert found.get(old.id) is new


def test_what_was_read_before_another_process_wrote_is_not_kept() -> None:
    found, rollout = Ended(), over("r1")
    moment = found.moment(rollout.id)
    found.clear()

    found.offer(rollout, moment)

    assert found.get(rollout.id) is None


def test_what_was_read_before_it_was_taken_up_again_is_not_kept() -> None:
    found, rollout = Ended(), over("r1")
    moment = found.moment(rollout.id)
    found.drop(rollout.id)

    found.offer(rollout, moment)

    assert found.get(rollout.id) is None


def test_the_roll_is_taken_once_and_is_of_this_very_version() -> None:
    found, rollout, later = Ended(), over("r1"), over("r1", reason="later")
    found.wrote(rollout, None)

    roll = found.roll(rollout)

    assert found.taken() == {rollout.id: (rollout, roll)}
    assert found.roll(rollout) is roll is found.known(rollout)
    assert found.roll(later) is None
    found.wrote(later, None)
    assert found.known(later) is None
    assert found.known(rollout) is None


def test_a_roll_that_was_followed_to_the_end_is_kept_with_it() -> None:
    found, rollout = Ended(), over("r1")
    roll = roll_of(rollout)

    found.wrote(rollout, roll)

    assert found.roll(rollout) is roll


def test_those_looked_at_longest_ago_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ended, "DEVICES_MAX", 10)
    found = Ended()
    for name in ("r1", "r2", "r3"):
        found.wrote(over(name), None)
    found.get(RolloutId("r1"))

    found.wrote(over("r4"), None)

    assert [name for name in ("r1", "r2", "r3", "r4") if found.get(RolloutId(name))] == ["r1", "r3", "r4"]


def test_the_newest_stays_however_large_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ended, "DEVICES_MAX", 10)
    found = Ended()
    found.wrote(over("r1"), None)

    found.wrote(over("r2", devices=11), None)

    assert found.get(RolloutId("r1")) is None
    assert found.get(RolloutId("r2")) is not None
