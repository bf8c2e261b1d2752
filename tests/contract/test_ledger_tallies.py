"""The tallies of a committed fleet are those of its running rollouts, however these came to be what they are."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from harness.postgres import Where
from harness.rollout_story import Story
from muster_controller.core.rollout import tally as tallies
from muster_controller.core.rollout.events import Changes
from muster_controller.core.rollout.state import RolloutState
from muster_controller.core.rollout.tally import tally_of
from muster_controller.db.ledger import SqlLedger


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
