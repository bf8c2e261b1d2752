"""The tallies of a committed fleet are those of its running rollouts, however these came to be what they are."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from harness.postgres import Where
from harness.rollout_story import Story
from muster_controller.core.rollout import tally as tallies
from muster_controller.core.rollout.events import Changes
from muster_controller.core.rollout.machine import everything
from muster_controller.core.rollout.state import Outcome, Rollout, RolloutState
from muster_controller.core.rollout.tally import tally_of
from muster_controller.db import reader
from muster_controller.db.ledger import SqlLedger
from muster_shared.ids import DeviceId, RolloutId


@pytest.fixture
def ledger(where: Where) -> Iterator[SqlLedger]:
    with SqlLedger(where, lambda: 42.0) as ledger:
        yield ledger


def saved(ledger: SqlLedger, story: Story) -> None:
    """Begin the story's rollout, and let its first wave do well, a transaction each and two in one."""
    with ledger.transaction():
        ledger.save_rollout(story.rollout, None, Changes())
    before, result = story.rollout, story.tick()
    with ledger.transaction():
        ledger.save_rollout(result.rollout, before, result.changes)
        with ledger.transaction():
            for device in list(story.treated()):
                before, result = story.rollout, story.report(device, True)
                ledger.save_rollout(result.rollout, before, result.changes)


def test_tallies_follow_what_is_committed(ledger: SqlLedger) -> None:
    story = Story(devices=12)

    saved(ledger, story)

    fleet = ledger.committed()
    assert fleet.tallies == {story.rollout.id: tally_of(story.rollout)}
    assert fleet.tallies[story.rollout.id].counts["good"] == 2


def test_what_was_rolled_back_is_not_counted(ledger: SqlLedger) -> None:
    story = Story(devices=12)
    saved(ledger, story)
    kept, before = ledger.committed().tallies, story.rollout

    def undone() -> None:
        with ledger.transaction():
            result = story.tick(1000.0)
            ledger.save_rollout(result.rollout, before, result.changes)
            raise RuntimeError("undone")

    with pytest.raises(RuntimeError, match="undone"):
        undone()

    assert ledger.committed().tallies == kept == {before.id: tally_of(before)}


def test_a_rollout_that_ended_has_no_tally(ledger: SqlLedger) -> None:
    story = Story(devices=12)
    saved(ledger, story)

    with ledger.transaction():
        ended = replace(story.rollout, state=RolloutState.FINISHED, ended_at=50.0)
        ledger.save_rollout(ended, story.rollout, Changes())

    assert ledger.committed().tallies == {}


def ended(ledger: SqlLedger, devices: int = 12, name: str = "r1") -> Rollout:
    """Save a rollout that has ended, and forget it."""
    rollout = replace(
        Story(devices=devices).rollout, id=RolloutId(name), state=RolloutState.FINISHED, ended_at=50.0, reason="done"
    )
    with ledger.transaction():
        ledger.save_rollout(rollout, None, everything(rollout))
    ledger.reader.ended.clear()
    return rollout


def test_an_ended_rollout_is_read_once(ledger: SqlLedger) -> None:
    rollout = ended(ledger)

    found = ledger.reader.rollout(rollout.id)

    assert found == rollout
    assert ledger.reader.rollout(rollout.id) is found is ledger.rollout(rollout.id)


def test_what_changes_of_an_ended_rollout_is_what_is_read_from_then_on(ledger: SqlLedger) -> None:
    before = ended(ledger)
    read = ledger.reader.rollout(before.id)
    assert read is not None
    assert ledger.reader.ended.roll(read) is not None
    member = read.members[DeviceId("d00003")]
    after = replace(read, members=read.members.set(member.device, replace(member, outcome=Outcome.GOOD, wave=1)))

    with ledger.transaction():
        ledger.save_rollout(after, read, Changes(frozenset({member.device})))

    assert ledger.reader.rollout(before.id) is after
    roll = ledger.reader.ended.known(after)
    assert roll is not None
    assert roll.tally == tally_of(after) != tally_of(read)


def test_a_rollout_that_ends_takes_its_roll_along(ledger: SqlLedger) -> None:
    story = Story(devices=12)
    saved(ledger, story)

    with ledger.transaction():
        after = replace(story.rollout, state=RolloutState.FINISHED, ended_at=50.0)
        ledger.save_rollout(after, story.rollout, Changes())

    assert ledger.committed().rolls == {}
    assert ledger.reader.rollout(after.id) is after
    roll = ledger.reader.ended.known(after)
    assert roll is not None
    assert roll.tally == tally_of(after)


def test_the_newest_large_ones_are_had_at_hand_before_somebody_asks(
    ledger: SqlLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "WARM_FROM", 10)
    monkeypatch.setattr(reader, "DEVICES_MAX", 30)
    for name, devices in (("large-1", 12), ("small", 9), ("large-2", 12), ("large-3", 12)):
        ended(ledger, devices, name)
    saved(ledger, Story(devices=12))

    stopped = ledger.reader.warm(lambda: True)
    found = ledger.reader.warm()

    assert stopped == []
    assert len(found) == 2
    assert set(found) < {"large-1", "large-2", "large-3"}
    assert set(ledger.reader.ended.taken()) == set(found)


def test_tallies_come_back_with_the_rollouts(where: Where) -> None:
    story = Story(devices=12)
    with SqlLedger(where, lambda: 42.0) as ledger:
        saved(ledger, story)

    with SqlLedger(where, lambda: 42.0) as again:
        assert again.committed().tallies == {story.rollout.id: tally_of(story.rollout)}


def test_a_list_with_what_is_at_hand_is_the_list_without(ledger: SqlLedger) -> None:
    story = Story(devices=12)
    saved(ledger, story)
    running = ledger.committed().running

    (found,) = ledger.reader.summed(10, known=running)
    (other,) = ledger.reader.summed(10, known={story.rollout.id: replace(story.rollout, state=RolloutState.PAUSED)})

    assert found.rollout is running[story.rollout.id]
    assert other.rollout is not found.rollout
    assert tallies.tallied(other.groups) == tally_of(story.rollout)
