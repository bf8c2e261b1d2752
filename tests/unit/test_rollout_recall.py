"""The way back: who is told what after an abort, a rollback by hand, or when another rollout takes over."""

import pytest

from harness.rollout_story import NEW, OLD, OLDER, Story, policy
from muster_controller.core.rollout import recall
from muster_controller.core.rollout.events import Order, Superseded
from muster_controller.core.rollout.state import RolloutState
from muster_shared.ids import RolloutId
from muster_shared.messages import Step


def test_aborting_calls_back_those_that_are_still_updating() -> None:
    story = Story()
    story.tick()
    treated = story.treated()
    story.step(treated[0], Step.FETCHING)
    story.assigned.clear()

    story.order(Order.ABORT)

    assert [(assign.device, assign.release, assign.watch) for assign in story.assigned] == [
        (device, OLD, None) for device in treated
    ]
    assert story.rollout.state is RolloutState.ABORTING


def test_an_aborting_rollout_ends_when_everyone_who_can_is_back() -> None:
    story = Story()
    story.tick()
    first, second = story.treated()
    story.active[first] = NEW
    story.active[second] = NEW
    story.order(Order.ABORT)

    story.tick(1.0)
    assert story.rollout.state is RolloutState.ABORTING
    story.runs(first, OLD)
    story.online.discard(second)
    story.tick(1.0)

    assert story.rollout.state is RolloutState.ABORTED
    assert story.member(first).returned
    assert not story.member(second).returned


def test_an_aborting_rollout_does_not_wait_for_ever() -> None:
    story = Story()
    story.tick()
    story.active[story.treated()[0]] = NEW
    story.order(Order.ABORT)
    story.tick()

    story.tick(recall.GIVE_UP_S + story.rollout.policy.deadline_s + 1)

    assert story.rollout.state is RolloutState.ABORTED


def test_stop_calls_back_those_in_flight_waits_for_them_and_leaves_the_others() -> None:
    story = Story(policy=policy(on_abort="stop", waves=(4,), controls_per_device=0))
    story.tick()
    done, *under_way = story.treated()
    for device in (done, *under_way):
        story.active[device] = NEW
    story.report(done, True)
    story.assigned.clear()

    story.order(Order.ABORT)
    assert {assign.device: assign.release for assign in story.assigned} == dict.fromkeys(under_way, OLD)
    story.tick(1.0)
    assert story.rollout.state is RolloutState.ABORTING
    for device in under_way:
        story.runs(device, OLD)
    story.tick(1.0)

    assert story.rollout.state is RolloutState.ABORTED
    assert not story.member(done).returned


def test_freeze_tells_nobody_anything() -> None:
    story = Story(policy=policy(on_abort="freeze"))
    story.tick()
    story.assigned.clear()

    story.order(Order.ABORT)

    assert story.rollout.state is RolloutState.ABORTED
    assert story.assigned == []


@pytest.mark.parametrize("on_abort", ["roll_back", "stop", "freeze"])
def test_a_finished_rollout_is_rolled_back_by_hand_on_every_device(on_abort: str) -> None:
    story = Story(4, policy(waves=(4,), on_abort=on_abort))
    story.tick()
    story.all_report()
    story.tick(1.0)
    for device in story.active:
        story.active[device] = NEW
    story.assigned.clear()

    story.order(Order.ROLL_BACK)
    story.tick(1.0)

    assert {assign.device for assign in story.assigned} == set(story.rollout.members)
    assert {assign.release for assign in story.assigned} == {OLD}
    assert story.baseline == OLD
    assert story.rollout.state is RolloutState.ABORTING
    for device in story.active:
        story.runs(device, OLD)
    story.tick(1.0)
    assert story.rollout.state is RolloutState.ABORTED
    assert all(member.returned for member in story.rollout.members.values())


def test_a_device_that_ran_something_else_is_called_back_to_what_it_ran() -> None:
    story = Story()
    odd = min(story.rollout.members.values(), key=lambda member: member.position).device
    story.active[odd] = OLDER
    story.tick()
    assert odd in story.treated()

    story.assigned.clear()
    story.order(Order.ABORT)

    homes = {assign.device: assign.release for assign in story.assigned}
    assert homes.pop(odd) == OLDER
    assert set(homes.values()) == {OLD}


def test_a_failed_device_that_tries_again_is_called_back_too() -> None:
    story = Story(20, policy(waves=(4,), failure_objective=0.5))
    story.tick()
    story.all_report(bad=1)
    story.tick(1.0)
    story.order(Order.RETRY)

    story.order(Order.ABORT)

    assert all(story.last_told()[device] == OLD for device in story.treated())


@pytest.mark.parametrize("reports", [False, True])
def test_a_device_that_another_rollout_took_over_is_not_called_back(reports: bool) -> None:
    story = Story()
    story.tick()
    taken, other = story.treated()
    if reports:
        story.report(taken, True)
    story.leave(taken, is_taken=True)
    story.assigned.clear()

    story.order(Order.ABORT)

    assert [assign.device for assign in story.assigned] == [other]


def test_a_report_that_comes_after_the_abort_changes_nothing() -> None:
    story = Story(policy=policy(on_abort="stop", controls_per_device=0))
    story.tick()
    device = story.treated()[0]
    story.active[device] = NEW
    story.order(Order.ABORT)
    before = story.rollout

    story.report(device, True)

    assert story.rollout == before


def test_without_anything_to_go_back_to_an_abort_ends_at_once() -> None:
    story = Story(previous=None)
    story.tick()

    story.order(Order.ABORT)

    assert story.rollout.state is RolloutState.ABORTED
    assert story.last_told() == dict.fromkeys(story.treated(), NEW)


def test_who_was_queued_or_held_back_is_free_after_an_abort() -> None:
    story = Story(20, policy(waves=(6,), concurrency=2, controls_per_device=2))
    story.tick()

    story.order(Order.ABORT)

    assert story.rollout.queue == ()
    assert story.rollout.open == {0: 2}
    assert set(story.told()) == set(story.treated())


def test_a_rollout_that_another_one_supersedes_leaves_everything_to_it() -> None:
    story = Story(20, policy(waves=(6,), concurrency=2))
    story.tick()
    story.assigned.clear()

    story.tell(Superseded(RolloutId("r2")))

    assert story.rollout.state is RolloutState.ABORTED
    assert story.assigned == []
    assert story.rollout.queue == ()


# -- at once ---------------------------------------------------------------------------------------------------------


def test_a_rollback_at_once_tells_everybody_without_a_gate_and_finishes_when_they_run_it() -> None:
    story = Story(6, policy(waves=("100%",), controls_per_device=0), at_once=True)
    story.online.discard(next(iter(sorted(story.online))))

    story.tick()
    assert len(story.assigned) == 6
    assert {assign.watch for assign in story.assigned} == {None}
    assert story.baseline == NEW
    for device in sorted(story.active):
        story.runs(device, NEW)
    story.tick(1.0)

    assert story.rollout.state is RolloutState.FINISHED
    assert story.said() == []


def test_a_rollback_at_once_sees_who_runs_it_though_nobody_said_so() -> None:
    story = Story(3, policy(waves=("100%",), controls_per_device=0), at_once=True)
    story.tick()
    for device in story.active:
        story.active[device] = NEW

    story.tick(1.0)

    assert story.rollout.state is RolloutState.FINISHED


def test_a_rollback_at_once_does_not_say_that_silent_devices_run_it() -> None:
    story = Story(3, policy(waves=("100%",), controls_per_device=0), at_once=True)
    story.tick()
    story.runs(sorted(story.active)[0], NEW)

    story.tick(story.rollout.policy.deadline_s + 1)

    assert story.rollout.state is RolloutState.FINISHED
    assert story.rollout.reason.startswith("1 of 3 devices run it")
