"""Retries by the policy, deferral by the device, and the error conditions that count failures by cause."""

import pytest

from harness.rollout_story import OLD, Story, policy
from muster_controller.core.policy import Threshold
from muster_controller.core.rollout.events import Order
from muster_controller.core.rollout.state import LATE, Outcome, RolloutState
from muster_shared.messages import Refusal, Step

RETRYING = policy(waves=(4,), controls_per_device=0, retries=1, retry_wait_s=20.0)
DEFERRING = policy(waves=(2,), controls_per_device=1, consent=True, defer_s_max=500.0)


def test_a_device_that_failed_before_it_switched_tries_again_and_is_not_counted_yet() -> None:
    story = Story(20, RETRYING)
    story.tick()
    device = story.treated()[0]

    story.fail(device, Refusal.DISK_FULL)
    assert story.member(device).outcome is Outcome.PENDING
    assert story.rollout.due_at <= story.now + 20.1
    story.tick(21.0)

    assert story.assigned[-1].device == device
    assert story.assigned[-1].watch is not None
    assert story.assigned[-1].watch.attempt == 2
    story.report(device, True)
    assert story.member(device).outcome is Outcome.GOOD


def test_the_last_failure_counts() -> None:
    story = Story(20, RETRYING)
    story.tick()
    device = story.treated()[0]
    story.fail(device, Refusal.DISK_FULL)
    story.tick(21.0)

    story.fail(device, Refusal.TIMED_OUT)

    assert story.member(device).outcome is Outcome.BAD
    assert story.member(device).cause == "timed_out"


def test_a_device_that_failed_after_it_switched_does_not_try_again() -> None:
    story = Story(20, RETRYING)
    story.tick()
    device = story.treated()[0]

    story.step(device, Step.ROLLED_BACK)
    story.report(device, False)

    assert story.member(device).outcome is Outcome.BAD
    assert story.member(device).cause == "probation"


def test_the_second_attempt_is_judged_by_its_own_steps() -> None:
    story = Story(20, policy(waves=(4,), controls_per_device=0, retries=2, retry_wait_s=20.0))
    story.tick()
    device = story.treated()[0]
    story.fail(device)
    story.tick(21.0)

    story.report(device, False)

    assert story.member(device).outcome is Outcome.BAD
    assert story.member(device).cause == "probation"


def test_a_failure_that_is_said_twice_does_not_put_the_new_attempt_off() -> None:
    story = Story(20, RETRYING)
    story.tick()
    device = story.treated()[0]
    story.fail(device)
    retry_at = story.member(device).retry_at
    story.now += 10.0

    story.fail(device)

    assert story.member(device).retry_at == retry_at


def test_a_device_that_waits_for_a_new_attempt_cannot_become_silent() -> None:
    story = Story(20, policy(waves=(4,), controls_per_device=0, retries=1, retry_wait_s=500.0))
    story.tick()
    device = story.treated()[0]
    story.fail(device)
    story.step(device, Step.DEFERRED, wait_s=5.0)

    story.tick(story.rollout.policy.deadline_s + 1)

    assert story.member(device).outcome is Outcome.PENDING


def test_a_paused_rollout_neither_tries_again_nor_looks_all_the_time() -> None:
    story = Story(20, RETRYING)
    story.tick()
    story.fail(story.treated()[0])
    story.order(Order.PAUSE)
    told = len(story.assigned)

    story.tick(21.0)

    assert len(story.assigned) == told
    assert story.rollout.due_at > story.now


def test_a_new_attempt_that_is_silent_counts_as_bad() -> None:
    story = Story(20, RETRYING)
    story.tick()
    device = story.treated()[0]
    story.fail(device)
    story.tick(21.0)

    story.tick(story.rollout.policy.deadline_s + 1)

    assert story.member(device).outcome is Outcome.BAD
    assert story.member(device).cause == "silent"


# -- deferral --------------------------------------------------------------------------------------------------------


def test_a_device_that_defers_has_the_time_on_top() -> None:
    story = Story(20, DEFERRING)
    story.tick()
    device = story.treated()[0]

    story.step(device, Step.DEFERRED, wait_s=200.0)
    story.tick(story.rollout.policy.deadline_s + 1)
    assert story.member(device).outcome is Outcome.PENDING
    story.tick(story.rollout.policy.defer_s_max)

    assert story.member(device).outcome is Outcome.BAD


def test_a_device_that_goes_on_has_its_usual_time_from_then_on() -> None:
    story = Story(20, DEFERRING)
    story.tick()
    device = story.treated()[0]
    story.step(device, Step.DEFERRED, wait_s=200.0)
    story.now += 150.0

    story.step(device, Step.TESTING)

    deadline_at = story.member(device).deadline_at
    assert deadline_at is not None
    assert story.now + 100.0 <= deadline_at <= story.now + 101.0
    assert story.rollout.due_at <= deadline_at


def test_a_control_that_defers_has_it_too() -> None:
    story = Story(20, DEFERRING)
    story.tick()
    held = story.held()[0]

    story.step(held, Step.DEFERRED, of=OLD, wait_s=200.0)
    story.tick(story.rollout.policy.deadline_s + 1)

    assert story.rollout.controls[0, held].outcome is Outcome.PENDING


@pytest.mark.parametrize("wait_s", [1e12, float("inf"), float("nan"), -5.0])
def test_no_device_defers_for_longer_than_the_policy_bears(wait_s: float) -> None:
    story = Story(20, DEFERRING)
    story.tick()
    device = story.treated()[0]

    for _ in range(24):
        story.step(device, Step.DEFERRED, wait_s=wait_s)
        story.now += 25.0
    story.tick(1.0)

    assert story.member(device).outcome is Outcome.BAD


def test_a_deferral_shortens_no_deadline() -> None:
    story = Story(20, DEFERRING)
    story.tick()
    device = story.treated()[0]
    deadline_at = story.member(device).deadline_at
    assert deadline_at is not None

    story.step(device, Step.DEFERRED, wait_s=0.0)

    assert (story.member(device).deadline_at or 0.0) >= deadline_at


# -- error conditions ------------------------------------------------------------------------------------------------


def test_so_many_failures_abort_whatever_the_statistics_say() -> None:
    story = Story(40, policy(waves=(20,), alpha=1e-6, abort_when=(Threshold(failures=2),)))
    story.tick()
    first, second, *_ = story.treated()

    story.report(first, False)
    assert story.rollout.state is RolloutState.RUNNING
    story.report(second, False)

    assert story.rollout.state is RolloutState.ABORTING
    assert story.rollout.reason == "2 of 2 devices failed; the policy aborts at 2"


def test_a_share_counts_from_its_minimum_on_also_when_the_device_that_reaches_it_did_well() -> None:
    limit = Threshold(failures="25%", minimum=8)
    story = Story(40, policy(waves=(20,), alpha=1e-6, abort_when=(limit,)))
    story.tick()
    treated = story.treated()

    for number, device in enumerate(treated[:7]):
        story.report(device, number >= 2)
    assert story.rollout.state is RolloutState.RUNNING
    story.report(treated[7], True)

    assert story.rollout.state is RolloutState.ABORTING


def test_a_condition_on_one_cause_does_not_count_the_others() -> None:
    limit = Threshold(failures=2, reason="disk_full")
    story = Story(40, policy(waves=(20,), alpha=1e-6, abort_when=(limit,)))
    story.tick()
    first, second, third, fourth, *_ = story.treated()

    story.fail(first, Refusal.DISK_FULL)
    story.fail(second, Refusal.TIMED_OUT)
    story.report(third, False)
    assert story.rollout.state is RolloutState.RUNNING
    story.fail(fourth, Refusal.DISK_FULL)

    assert story.rollout.state is RolloutState.ABORTING


def test_the_cause_is_known_also_when_the_outcome_overtook_the_step() -> None:
    limit = Threshold(failures=1, reason="disk_full")
    story = Story(40, policy(waves=(20,), alpha=1e-6, abort_when=(limit,)))
    story.tick()
    device = story.treated()[0]

    story.report(device, False)
    story.step(device, Step.FAILED, Refusal.DISK_FULL)

    assert story.member(device).cause == "disk_full"
    assert story.rollout.state is RolloutState.ABORTING


def test_silence_is_a_cause() -> None:
    limit = Threshold(failures=1, reason="silent")
    story = Story(40, policy(waves=(20,), alpha=1e-6, abort_when=(limit,)))
    story.tick()

    story.tick(story.rollout.policy.deadline_s + 1)

    assert "(silent)" in story.rollout.reason


def test_no_device_of_the_beginning_is_taken_for_a_late_joiner() -> None:
    story = Story(100)

    assert all(member.position < LATE for member in story.rollout.members.values())
