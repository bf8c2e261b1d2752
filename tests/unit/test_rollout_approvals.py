"""Approval gates: who must agree before a wave or the end, and who does not count."""

import pytest

from harness.rollout_story import Story, policy
from muster_controller.core.policy import Approval, Ramp
from muster_controller.core.rollout.events import Order, OrderRefused
from muster_controller.core.rollout.state import RolloutState


def test_the_first_wave_waits_for_whoever_is_named() -> None:
    story = Story(policy=policy(approvals=(Approval(before=1, by=("grace",)),)))
    story.tick()
    assert story.assigned == []
    assert story.rollout.reason == "wave 1 waits for approval by grace: 0 of 1"

    with pytest.raises(OrderRefused, match="bob may not approve"):
        story.order(Order.APPROVE, actor="bob")
    story.order(Order.APPROVE, actor="grace")
    story.tick()

    assert story.rollout.wave == 0


def test_where_nobody_is_named_it_takes_somebody_else_than_the_creator() -> None:
    story = Story(policy=policy(approvals=(Approval(before=2),)))
    story.tick()
    story.all_report()
    story.tick(1.0)
    assert story.rollout.wave == 0

    with pytest.raises(OrderRefused, match="anyone but ada"):
        story.order(Order.APPROVE, actor="ada")
    story.order(Order.APPROVE, actor="bob")
    story.tick()

    assert story.rollout.wave == 1


def test_two_persons_are_two_persons() -> None:
    story = Story(policy=policy(approvals=(Approval(before=1, count=2),)))
    story.tick()

    story.order(Order.APPROVE, actor="bob")
    with pytest.raises(OrderRefused, match="has approved already"):
        story.order(Order.APPROVE, actor="bob")
    story.tick()
    assert story.rollout.wave == -1
    story.order(Order.APPROVE, actor="cleo")
    story.tick()

    assert story.rollout.wave == 0


def test_of_two_gates_before_one_wave_either_may_be_opened_first() -> None:
    gates = (Approval(before=1, by=("grace",)), Approval(before=1, by=("bob",)))
    story = Story(policy=policy(approvals=gates))
    story.tick()

    story.order(Order.APPROVE, actor="bob")
    story.tick()
    assert story.rollout.wave == -1
    story.order(Order.APPROVE, actor="grace")
    story.tick()

    assert story.rollout.wave == 0


def test_the_end_waits_too_and_its_approval_is_not_taken_for_a_wave() -> None:
    story = Story(4, policy(waves=(2,), approvals=(Approval(before="finish", by=("grace",)),)))
    story.tick()
    story.go_on()
    assert story.rollout.state is RolloutState.RUNNING
    assert story.rollout.reason.startswith("the end waits")
    assert story.baseline is None

    story.order(Order.APPROVE, actor="grace")
    story.tick()

    assert story.rollout.state is RolloutState.FINISHED


def test_whoever_approved_the_end_is_asked_again_when_another_wave_came_in_between() -> None:
    story = Story(4, policy(waves=(2, "100%"), approvals=(Approval(before="finish", by=("grace",)),)))
    story.tick()
    story.order(Order.APPROVE, actor="grace")  # Of the first wave she knew, of the second not yet.
    story.go_on()
    story.go_on()

    assert story.rollout.wave == 1
    assert story.rollout.state is RolloutState.RUNNING
    assert story.rollout.reason.startswith("the end waits for approval by grace")

    story.order(Order.APPROVE, actor="grace")
    story.tick()

    assert story.rollout.state is RolloutState.FINISHED


def test_an_approval_at_the_end_counts_for_the_end_also_while_it_is_paused() -> None:
    story = Story(4, policy(waves=(2,), approvals=(Approval(before="every"),)))
    for _ in range(3):
        story.tick(1.0)
        story.order(Order.APPROVE, actor="bob")
        if story.rollout.wave < 1:
            story.tick()
            story.all_report()
            story.tick(1.0)
        if story.rollout.wave == 1 and not story.rollout.open:
            break
    story.order(Order.PAUSE)

    story.order(Order.APPROVE, actor="cleo")

    assert [(each.before, each.by) for each in story.rollout.approvals][-1] == ("finish", "cleo")


def test_a_ramp_asks_before_each_wave_that_it_makes() -> None:
    gate = Approval(before="every")
    story = Story(12, policy(waves=(5, "25%"), ramp=Ramp(first=4), approvals=(gate,), controls_per_device=1))

    asked = []
    for _ in range(40):
        story.tick(1.0)
        if story.rollout.state is RolloutState.FINISHED:
            break
        if "waits for approval" in story.rollout.reason:
            asked.append(story.rollout.reason.split(" for ")[0])
            story.order(Order.APPROVE, actor="bob")
            continue
        story.all_report()

    assert asked == ["wave 1 waits", "wave 2 waits", "the end waits"]


def test_skipping_a_wave_does_not_skip_an_approval() -> None:
    story = Story(policy=policy(approvals=(Approval(before=2, by=("grace",)),)))
    story.tick()

    story.order(Order.SKIP)
    story.tick(1.0)

    assert story.rollout.wave == 0
    assert story.rollout.reason.startswith("wave 2 waits")


def test_an_approval_that_nothing_waits_for_is_refused() -> None:
    story = Story()
    story.tick()

    with pytest.raises(OrderRefused, match="nothing waits"):
        story.order(Order.APPROVE, actor="bob")
