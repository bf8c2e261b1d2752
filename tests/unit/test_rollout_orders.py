"""Orders: pause, resume, skip, retry, extend, abort; each does what it says, and nothing else."""

from dataclasses import replace

import pytest

from harness.rollout_story import NEW, Story, policy
from muster_controller.core.gate.strata import VerdictKind
from muster_controller.core.policy import Rate
from muster_controller.core.rollout.events import Order, OrderRefused
from muster_controller.core.rollout.state import Outcome, Pause, RolloutState


@pytest.mark.parametrize(
    ("order", "state"),
    [
        (Order.RESUME, RolloutState.RUNNING),
        (Order.PAUSE, RolloutState.PAUSED),
        (Order.ABORT, RolloutState.FINISHED),
        (Order.ABORT, RolloutState.ABORTED),
        (Order.ABORT, RolloutState.ABORTING),
        (Order.SKIP, RolloutState.FINISHED),
        (Order.SKIP, RolloutState.RUNNING),
        (Order.RETRY, RolloutState.ABORTING),
        (Order.EXTEND, RolloutState.FINISHED),
        (Order.APPROVE, RolloutState.ABORTED),
        (Order.ROLL_BACK, RolloutState.RUNNING),
        (Order.ROLL_BACK, RolloutState.ABORTED),
    ],
)
def test_an_order_that_does_not_fit_is_refused_by_name(order: Order, state: RolloutState) -> None:
    story = Story()
    story.rollout = replace(story.rollout, state=state)

    with pytest.raises(OrderRefused, match=f"is {state.value}; it cannot {order.value} now"):
        story.order(order)


def test_nothing_is_told_to_new_devices_while_it_is_paused() -> None:
    story = Story(20, policy(waves=(6,), rate=Rate(per_minute=60.0)))
    story.tick()
    told = len(story.assigned)

    story.order(Order.PAUSE)
    story.tick(30.0)
    assert len(story.assigned) == told
    story.order(Order.RESUME)
    story.tick(1.0)

    assert len(story.assigned) > told


def test_resuming_is_not_approving_an_undecided_wave() -> None:
    story = Story(20, policy(waves=(4, 4), failure_objective=0.5))
    story.tick()
    story.all_report(bad=1)
    story.tick(1.0)

    with pytest.raises(OrderRefused, match="undecided"):
        story.order(Order.RESUME)

    assert story.rollout.pause is Pause.UNDECIDED


def test_skipping_lets_one_wave_pass_and_not_the_later_ones() -> None:
    story = Story(20, policy(waves=(4, 4), failure_objective=0.5))
    story.tick()
    story.all_report(bad=1)
    story.tick(1.0)
    assert story.rollout.state is RolloutState.PAUSED

    story.order(Order.SKIP, actor="grace")
    assert "grace" in story.rollout.reason
    story.tick(1.0)
    assert story.rollout.wave == 1
    story.all_report(bad=1)
    story.tick(1.0)

    assert story.rollout.state is RolloutState.PAUSED
    assert story.rollout.wave == 1


def test_resuming_does_not_start_a_wave_while_devices_have_yet_to_report() -> None:
    story = Story()
    story.tick()

    story.order(Order.PAUSE)
    story.order(Order.RESUME)
    story.tick(1.0)

    assert story.rollout.wave == 0


def test_who_was_not_told_when_a_wave_was_skipped_comes_with_the_next() -> None:
    story = Story(20, policy(waves=(6, 4), concurrency=2, controls_per_device=1))
    story.tick()
    left = story.rollout.queue
    assert len(left) == 4

    story.order(Order.SKIP)
    story.tick(1.0)

    assert story.rollout.wave == 1
    assert set(story.rollout.queue) >= set(left[:2])
    story.all_report()
    for device in story.treated(0):
        story.report(device, True, 0)
    story.go_on()
    assert set(story.told()) >= set(left)


def test_a_wave_of_which_nobody_was_told_cannot_be_skipped() -> None:
    story = Story(20, policy(waves=(2, 6), rate=Rate(per_minute=0.001), controls_per_device=0))
    story.tick()
    story.all_report()
    story.tick(61_000.0)
    story.all_report()
    story.tick(1.0)
    assert story.rollout.wave == 1
    assert not story.treated()

    with pytest.raises(OrderRefused, match="no device of wave 2 was told yet"):
        story.order(Order.SKIP)


def test_a_device_that_is_still_watched_beside_a_skipped_wave_is_not_silent_when_it_is_told_something_else() -> None:
    story = Story(4, policy(waves=(2, 2), controls_per_device=1))
    story.tick()
    held = story.held()

    story.order(Order.SKIP)
    story.tick(1.0)
    assert set(held) == set(story.treated(1))
    story.tick(story.rollout.policy.deadline_s + 1)

    assert {story.rollout.controls[0, device].outcome for device in held} == {Outcome.LEFT}


def test_skipping_does_not_skip_an_abort() -> None:
    story = Story(20, policy(waves=(4, 4), controls_per_device=0))
    story.tick()

    story.order(Order.SKIP)
    for device in story.treated(0):
        story.report(device, False, 0)

    assert story.rollout.state is RolloutState.ABORTING


# -- retry and extend ------------------------------------------------------------------------------------------------


def test_retrying_tells_the_failed_once_more_and_keeps_what_was_counted() -> None:
    story = Story(20, policy(waves=(4,), failure_objective=0.5))
    story.tick()
    story.all_report(bad=1)
    story.tick(1.0)
    (failed,) = [device for device in story.treated() if story.member(device).outcome is Outcome.BAD]
    counts = story.rollout.strata
    story.assigned.clear()

    story.order(Order.RETRY)

    assert [(each.device, each.release, each.watch and each.watch.attempt) for each in story.assigned] == [
        (failed, NEW, 2)
    ]
    story.report(failed, True)
    assert story.member(failed).second is Outcome.GOOD
    assert story.member(failed).outcome is Outcome.BAD
    assert story.rollout.strata == counts


def test_retrying_twice_is_refused_until_the_first_time_has_come_to_an_end() -> None:
    story = Story(20, policy(waves=(4,), failure_objective=0.5))
    story.tick()
    story.all_report(bad=1)
    story.tick(1.0)
    story.order(Order.RETRY)

    with pytest.raises(OrderRefused, match="trying again already"):
        story.order(Order.RETRY)

    story.tick(story.rollout.policy.deadline_s + 1)
    story.order(Order.RETRY)
    assert story.member(story.assigned[-1].device).attempt == 3


def test_a_failed_device_that_another_rollout_took_over_is_not_retried() -> None:
    story = Story(20, policy(waves=(4,), failure_objective=0.5))
    story.tick()
    story.all_report(bad=1)
    (failed,) = [device for device in story.treated() if story.member(device).outcome is Outcome.BAD]
    story.leave(failed, is_taken=True)

    with pytest.raises(OrderRefused, match="no device has failed"):
        story.order(Order.RETRY)

    assert story.member(failed).outcome is Outcome.BAD


def test_extending_gives_both_arms_more_time_and_tells_the_device() -> None:
    story = Story()
    story.tick()
    story.assigned.clear()

    story.order(Order.EXTEND, seconds=50.0)
    story.tick(story.rollout.policy.deadline_s + 10.0)

    assert {each.watch and each.watch.deadline_s for each in story.assigned} == {150.0}
    assert story.rollout.settled == 0
    story.tick(50.0)
    assert story.rollout.settled == 2


@pytest.mark.parametrize("seconds", [0.0, -1.0, 1e9, float("nan")])
def test_an_extension_without_measure_is_refused(seconds: float) -> None:
    story = Story()
    story.tick()

    with pytest.raises(OrderRefused, match="an extension is from"):
        story.order(Order.EXTEND, seconds=seconds)


def test_an_order_to_abort_is_a_verdict_with_a_name() -> None:
    story = Story()
    story.tick()

    story.order(Order.ABORT, actor="grace")

    assert story.said() == [VerdictKind.ABORT]
    assert "grace" in story.rollout.verdicts[0].reason
