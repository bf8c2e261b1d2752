"""The pace: rate, concurrency, and when it is worth looking again."""

import pytest

from harness.rollout_story import Report, Story, policy, reread
from muster_controller.core.policy import Rate
from muster_controller.core.rollout.events import Assign, Order
from muster_controller.core.rollout.pace import BURST_S, room
from muster_controller.core.rollout.state import RolloutState
from muster_shared.messages import Refusal


def test_a_rate_is_reached_and_never_exceeded() -> None:
    story = Story(40, policy(waves=("100%",), controls_per_device=0, rate=Rate(per_minute=60.0), deadline_s=900.0))

    story.play(60.0)

    assert len(story.told()) == 40
    assert story.assigned_at[-1] - story.assigned_at[0] == pytest.approx(39.0, abs=1.0)


def test_a_controller_that_was_away_floods_nobody() -> None:
    story = Story(80, policy(waves=("100%",), controls_per_device=0, rate=Rate(per_minute=60.0), deadline_s=9000.0))
    story.tick()
    story.rollout = reread(story.rollout)

    story.tick(3600.0)

    assert len(story.told()) <= 1 + BURST_S


def test_an_exponential_rate_grows_with_what_was_told() -> None:
    policy_ = policy(rate=Rate(per_minute=60.0, factor=2.0, every=10, per_minute_max=200.0))

    slow, fast, fastest = (
        room(policy_, released=released, in_flight=0, devices=100, credit=0.0, since_s=1.0).credit
        for released in (0, 10, 90)
    )

    assert (slow, fast, fastest) == pytest.approx((1.0, 2.0, 200 / 60))


def test_a_clock_that_is_set_back_earns_no_credit() -> None:
    story = Story(80, policy(waves=("100%",), controls_per_device=0, rate=Rate(per_minute=60.0), deadline_s=9000.0))
    story.tick()

    story.tick(-1000.0)
    assert len(story.told()) == 1
    story.tick(2.0)

    assert len(story.told()) == 3


def test_never_more_are_under_way_than_may_be_and_a_report_makes_room_at_once() -> None:
    story = Story(20, policy(waves=("100%",), controls_per_device=0, concurrency=3, deadline_s=900.0))
    story.tick()
    assert story.rollout.in_flight == 3

    story.report(story.treated()[0], True)
    assert story.rollout.due_at == story.now
    story.tick()

    assert story.rollout.in_flight == 3
    assert len(story.told()) == 4


def test_a_share_of_the_devices_may_be_under_way() -> None:
    story = Story(50, policy(waves=("100%",), controls_per_device=0, concurrency="10%"))

    story.tick()

    assert story.rollout.in_flight == 5


def test_devices_that_try_again_keep_to_the_rate_as_well() -> None:
    flaky = policy(
        waves=("100%",), controls_per_device=0, rate=Rate(per_minute=60.0), retries=1, retry_wait_s=5.0, alpha=1e-6
    )
    story = Story(10, flaky)

    def answer(assign: Assign) -> Report:
        is_first = assign.watch is not None and assign.watch.attempt == 1
        return Report(1.0, good=not is_first, refusal=Refusal.DISK_FULL if is_first else None)

    story.play(30.0, answer)

    times = story.assigned_at
    assert len(times) == 20
    for first in range(len(times)):
        for last in range(first, len(times)):
            assert last - first + 1 <= BURST_S + (times[last] - times[first]) + 1.001


def test_devices_that_all_wait_to_try_again_do_not_begin_at_once_after_a_pause() -> None:
    flaky = policy(
        waves=("100%",),
        controls_per_device=0,
        rate=Rate(per_minute=60.0),
        retries=1,
        retry_wait_s=5.0,
        deadline_s=900.0,
        alpha=1e-6,
    )
    story = Story(20, flaky)
    story.play(30.0, lambda assign: None)
    for device in story.treated():
        story.fail(device, Refusal.DISK_FULL)
    story.order(Order.PAUSE)
    told = len(story.assigned)

    story.now += 600.0
    story.order(Order.RESUME)
    story.tick()
    assert len(story.assigned) - told == BURST_S
    story.play(30.0, lambda assign: None)

    assert len(story.assigned) - told == 20


def test_a_wave_goes_on_by_itself_where_the_rate_is_fast_and_the_clock_is_coarse() -> None:
    story = Story(90, policy(waves=("100%",), controls_per_device=0, rate=Rate(per_minute=60_000.0)))
    story.now = 1_700_000_000.0

    story.play(60.0)

    assert story.rollout.state is RolloutState.FINISHED
    assert story.ticks < 400


def test_who_was_to_be_held_back_and_left_before_it_was_told_is_never_told() -> None:
    story = Story(40, policy(waves=(10,), controls_per_device=1, rate=Rate(per_minute=6.0), deadline_s=9000.0))
    story.tick()
    untold = sorted(device for (_, device), each in story.rollout.controls.items() if each.assigned_at is None)
    assert untold

    for device in untold:
        story.leave(device)
    for _ in range(30):
        story.tick(10.0)

    assert story.rollout.in_flight > 2
    assert {assign.device for assign in story.assigned}.isdisjoint(untold)
