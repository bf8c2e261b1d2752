"""A tally that follows every change says what counting all devices again says."""

from collections import Counter
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from harness.rollout_story import Story, policy
from muster_controller.core.rollout.events import Changes, Order, OrderRefused
from muster_controller.core.rollout.state import Outcome
from muster_controller.core.rollout.tally import followed, tally_of
from muster_shared.messages import Refusal, Step

MOVES = ("tick", "good", "bad", "step", "defer", "leave", "join", "held", *(each.value for each in Order))


def move(story: Story, what: str, which: int) -> Changes:
    """Let one thing happen, and return which devices it names."""
    device = sorted(story.rollout.members)[which % len(story.rollout.members)]
    controls = sorted(device for _, device in story.rollout.controls)
    match what:
        case "tick":
            return story.tick(float(which)).changes
        case "good" | "bad":
            return story.report(device, what == "good").changes
        case "step":
            return story.step(device, Step.FAILED, Refusal.SELF_TEST_FAILED).changes
        case "defer":
            return story.step(device, Step.DEFERRED, wait_s=50.0).changes
        case "held":
            return story.report(controls[which % len(controls)], which % 2 == 0).changes if controls else Changes()
        case "leave":
            story.leave(device, is_taken=which % 2 == 0)
            return everybody(story)
        case "join":
            story.join(f"late-{len(story.rollout.members):03}")
            return everybody(story)
        case _:
            return story.order(Order(what), seconds=10.0).changes


def everybody(story: Story) -> Changes:
    """The story does not say of these; every device may have changed."""
    return Changes(frozenset(story.rollout.members), frozenset(story.rollout.controls))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(MOVES), st.integers(0, 150)), max_size=40))
def test_following_every_change_comes_to_what_counting_again_does(moves: list[tuple[str, int]]) -> None:
    story = Story(devices=12, policy=policy(retries=1))
    tally = tally_of(story.rollout)

    for what, which in [("tick", 0), *moves]:
        before = story.rollout
        try:
            changes = move(story, what, which)
        except OrderRefused:
            continue
        tally = followed(tally, before, story.rollout, changes)

        assert tally == tally_of(story.rollout)
        told = [each for each in story.rollout.members.values() if not each.is_taken]
        assert tally.outcomes == Counter(each.outcome.value if each.is_touched else "waiting" for each in told)


def test_changes_of_several_events_are_followed_at_once() -> None:
    story = Story(devices=12)
    before = story.rollout
    changes = story.tick().changes
    for device in list(story.treated()):
        changes |= story.report(device, True).changes
    changes |= story.tick(1.0).changes

    found = followed(tally_of(before), before, story.rollout, changes)

    assert found == tally_of(story.rollout) != tally_of(before)
    assert found.counts["good"] == 2


def test_a_change_that_is_not_named_is_not_counted() -> None:
    story = Story(devices=3)
    member = next(iter(story.rollout.members.values()))
    after = replace(
        story.rollout, members=story.rollout.members.set(member.device, replace(member, outcome=Outcome.LEFT))
    )
    tally = tally_of(story.rollout)

    assert followed(tally, story.rollout, after, Changes()) is tally
    assert followed(tally, story.rollout, after, Changes(frozenset({member.device}))) == tally_of(after)
