"""Waves: who is in one, who is held back beside it, when it passes, and what it is when nobody is there."""

from math import log

import pytest

from harness.rollout_story import NEW, OLD, Story, names, policy
from muster_controller.core.gate.evidence import HOLD, evidence
from muster_controller.core.gate.strata import VerdictKind
from muster_controller.core.policy import Ramp, Rate, Weights
from muster_controller.core.rollout.draft import terms
from muster_controller.core.rollout.events import Order
from muster_controller.core.rollout.state import Outcome, RolloutState, waiting
from muster_shared.ids import DeviceId


def test_the_first_wave_has_every_class_and_watches_as_many_held_back() -> None:
    story = Story()

    story.tick()

    treated = [story.member(device) for device in story.treated()]
    assert {member.device_class for member in treated} == {"pi5", "nuc"}
    assert len(story.rollout.controls) == 2
    assert set(story.told(OLD)) == set(story.held())
    assert set(story.told(NEW)) == set(story.treated())


def test_each_control_is_held_back_for_one_treated_device_of_its_class() -> None:
    story = Story(60, policy(waves=(6,), controls_per_device=3), classes=3)

    story.tick()

    for control in story.rollout.controls.values():
        partner = story.member(control.partner)
        assert partner.device_class == control.device_class
        assert control.device in partner.controls
    dealt = [device for treated in story.treated() for device in story.member(treated).controls]
    assert len(dealt) == len(set(dealt)) == 18
    assert not set(dealt) & set(story.treated())


def test_a_rollout_that_does_well_reaches_everyone_and_becomes_the_baseline() -> None:
    story = Story()
    story.tick()

    while story.rollout.state is RolloutState.RUNNING:
        story.all_report()
        story.tick(1.0)

    assert story.rollout.state is RolloutState.FINISHED
    assert story.baseline == NEW
    assert story.said() == [VerdictKind.PROMOTE] * 3
    assert not waiting(story.rollout)


def test_a_wave_below_its_success_threshold_does_not_start_the_next() -> None:
    story = Story(policy=policy(waves=(5,), failure_objective=0.5, success_required=0.9))
    story.tick()

    story.all_report(bad=1)
    story.tick(1.0)
    story.tick(1000.0)

    assert story.rollout.state is RolloutState.PAUSED
    assert story.rollout.wave == 0
    assert "4 of 5 devices succeeded; 90% is required" in story.rollout.reason


@pytest.mark.parametrize(("required", "devices", "good"), [(0.55, 20, 11), (0.7, 10, 7), (0.1, 30, 3)])
def test_exactly_the_share_that_is_required_is_enough(required: float, devices: int, good: int) -> None:
    story = Story(devices + 1, policy(waves=(devices,), failure_objective=0.5, success_required=required, alpha=1e-6))
    story.tick()

    story.all_report(bad=devices - good)
    story.tick(1.0)

    assert "required" not in story.rollout.reason


def test_an_undecidable_gate_pauses() -> None:
    story = Story(60, policy(waves=(5,), success_required=0.5, controls_per_device=10), classes=1)
    story.tick()

    story.all_report(bad=1)
    story.tick(1.0)

    assert story.rollout.state is RolloutState.PAUSED
    assert story.rollout.verdicts[-1].evidence.hold_e >= HOLD
    assert VerdictKind.PROMOTE not in story.said()


def test_two_bad_of_five_abort_when_controls_do_well() -> None:
    weights = Weights(failures=0.85, latency=0.15, agreement=0.0)
    story = Story(60, policy(waves=(5,), controls_per_device=10, weights=weights), classes=1)
    story.tick()
    for device in story.held():
        story.report(device, True)

    first, second, *_ = story.treated()
    story.report(first, False)
    assert story.rollout.state is RolloutState.RUNNING
    story.report(second, False)

    assert story.rollout.state is RolloutState.ABORTING
    assert story.said()[-1] is VerdictKind.ABORT


def test_silent_devices_fail_at_their_deadline() -> None:
    story = Story()
    story.tick()

    story.tick(story.rollout.policy.deadline_s + 1)

    assert [story.member(device).outcome for device in story.treated()] == [Outcome.BAD, Outcome.BAD]
    assert {story.member(device).cause for device in story.treated()} == {"silent"}
    assert VerdictKind.PROMOTE not in story.said()
    assert story.rollout.wave == 0


def test_silence_counts_for_controls_too() -> None:
    story = Story()
    story.tick()
    for device in story.treated():
        story.report(device, True)

    story.tick(story.rollout.policy.deadline_s + 1)

    assert {story.rollout.controls[0, device].outcome for device in story.held(0)} == {Outcome.BAD}


def test_silence_counts_while_the_rollout_is_paused() -> None:
    story = Story(policy=policy(waves=(5,), controls_per_device=0))
    story.tick()
    story.order(Order.PAUSE)

    story.tick(story.rollout.policy.deadline_s + 1)

    assert story.rollout.state is RolloutState.ABORTING


def test_a_report_after_the_deadline_does_not_turn_bad_into_good() -> None:
    story = Story(policy=policy(failure_objective=0.5, success_required=0.0))
    story.tick()
    device = story.treated()[0]
    story.tick(story.rollout.policy.deadline_s + 1)

    story.report(device, True, 0)

    assert story.member(device).outcome is Outcome.BAD


def test_the_first_report_counts_and_repeats_do_not() -> None:
    story = Story()
    story.tick()
    device = story.treated()[0]

    story.report(device, True)
    story.report(device, False)

    assert story.member(device).outcome is Outcome.GOOD


def test_a_report_of_another_wave_is_of_nobody() -> None:
    story = Story()
    story.tick()

    result = story.report(story.treated()[0], False, 7)

    assert result.changes.members == frozenset()
    assert story.rollout.settled == 0


def test_empty_data_does_not_pass() -> None:
    story = Story()
    story.tick()

    for _ in range(5):
        story.tick(10.0)

    assert story.rollout.wave == 0
    assert story.said() == []


def test_what_was_promoted_without_being_seen_is_named() -> None:
    story = Story(30, policy(waves=(3,)))
    story.tick()

    story.all_report()
    story.tick(1.0)

    assert story.rollout.verdicts[-1].reason.endswith("nothing was seen of latency")


# -- who is there ----------------------------------------------------------------------------------------------------


def test_late_joiners_that_nobody_let_in_do_not_bypass_the_waves() -> None:
    story = Story()
    story.tick()
    late = DeviceId("d99")
    story.online.add(late)
    story.active[late] = OLD

    story.report(late, True)
    story.go_on()

    assert late not in story.rollout.members
    assert late not in story.told()


def test_a_late_joiner_waits_for_the_last_wave_even_when_it_is_of_a_new_class() -> None:
    story = Story(20, policy(waves=(2, 3)))
    story.tick()
    late = story.join("new", "jetson")

    story.all_report()
    story.tick(1.0)
    assert story.rollout.wave == 1
    assert late not in story.treated()
    story.all_report()
    story.tick(1.0)

    assert late in story.treated(2)
    assert [story.member(device).position for device in story.treated(2)][-1] == story.member(late).position


def test_a_rollout_that_waits_for_somebody_looks_at_once_when_a_device_joins() -> None:
    story = Story(2)
    story.online.clear()
    story.tick()

    story.join("new")

    assert story.rollout.due_at == story.now


def test_a_device_that_left_before_its_turn_is_told_nothing_and_may_come_back() -> None:
    story = Story()
    story.tick()
    waits = waiting(story.rollout)[-1].device

    story.leave(waits)
    story.go_on()
    assert waits not in story.told()

    assert story.member(waits).outcome is Outcome.LEFT
    assert story.rollout.state is RolloutState.FINISHED


def test_a_device_that_comes_into_the_group_again_takes_part_again() -> None:
    story = Story()
    story.tick()
    waits = waiting(story.rollout)[-1].device
    story.leave(waits)

    story.join(waits, "nuc")
    story.go_on()

    assert story.told().count(waits) == 1


def test_a_device_that_leaves_while_it_is_queued_does_not_hold_the_wave_open() -> None:
    story = Story(20, policy(waves=(4,), concurrency=1, controls_per_device=2))
    story.tick()
    queued = story.rollout.queue[-1]

    story.leave(queued)
    for _ in range(3):
        story.all_report()
        story.tick(1.0)

    assert story.rollout.wave == 1
    assert queued not in story.told()


def test_a_device_that_leaves_after_it_was_told_counts_on() -> None:
    story = Story()
    story.tick()
    first = story.treated()[0]

    story.leave(first)
    story.tick(story.rollout.policy.deadline_s + 1)

    assert story.member(first).outcome is Outcome.BAD


def test_a_device_that_another_rollout_took_over_counts_no_longer() -> None:
    story = Story()
    story.tick()
    first = story.treated()[0]

    story.leave(first, is_taken=True)

    assert story.member(first).is_taken
    assert sum(stratum.treated for stratum in story.rollout.strata.values()) == 1


def test_a_wave_that_was_taken_over_altogether_is_no_evidence() -> None:
    story = Story(30, policy(waves=(3, 6), controls_per_device=0))
    story.tick()
    taken = story.treated()

    for device in taken:
        story.leave(device, is_taken=True)
    story.tick(1.0)

    assert VerdictKind.PROMOTE not in story.said()
    assert story.rollout.wave == 0
    assert len([device for device in story.treated() if device not in taken]) == 3


def test_devices_that_were_offline_before_their_wave_wait_and_are_not_counted() -> None:
    story = Story()
    gone = names(1)[0]
    story.online.discard(gone)
    story.tick()

    story.go_on()

    assert story.rollout.state is RolloutState.FINISHED
    assert [member.device for member in waiting(story.rollout)] == [gone]
    assert "1 offline" in story.rollout.reason


def test_a_fleet_that_is_offline_altogether_is_not_promoted() -> None:
    story = Story()
    story.online.clear()

    story.tick()
    story.tick(10_000.0)

    assert story.rollout.state is RolloutState.RUNNING
    assert story.rollout.wave == -1


def test_a_wave_of_which_everybody_went_offline_before_being_told_begins_again() -> None:
    story = Story(12, policy(waves=(1, 4), rate=Rate(per_minute=1.0), controls_per_device=1))
    story.tick()
    story.all_report()
    story.tick(1.0)
    assert story.rollout.wave == 1
    assert not story.treated()

    gone = set(story.rollout.queue)
    story.online -= gone
    story.tick(61.0)

    assert story.said() == [VerdictKind.PROMOTE]
    assert story.rollout.wave == 1
    assert story.rollout.queue
    assert not gone & set(story.rollout.queue)


def test_a_first_wave_that_nobody_was_told_of_does_not_finish_the_rollout() -> None:
    story = Story(3, policy(waves=(3,), concurrency=1, controls_per_device=0))
    story.tick()
    (told,) = story.treated()
    story.leave(told, is_taken=True)

    story.online.clear()
    story.tick(1.0)
    story.tick(1000.0)

    assert story.rollout.state is RolloutState.RUNNING
    assert story.rollout.wave == -1
    assert story.said() == []


# -- latency ---------------------------------------------------------------------------------------------------------


def test_latency_is_set_against_the_controls_once_all_of_them_have_reported() -> None:
    story = Story(20, policy(waves=(1,), controls_per_device=2), classes=1)
    story.tick()
    (treated,), (first, second) = story.treated(), story.held()

    story.report(treated, True, latency=log(1.2))
    story.report(first, True, latency=0.0)
    assert not story.member(treated).is_paired
    story.report(second, True, latency=0.0)

    assert story.rollout.strata[0, "nuc"].latency == ((36, 1),)


def test_latency_is_set_against_the_others_when_a_control_has_left() -> None:
    story = Story(20, policy(waves=(1,), controls_per_device=2), classes=1)
    story.tick()
    (treated,), (first, second) = story.treated(), story.held()
    story.report(treated, True, latency=log(1.2))
    story.report(first, True, latency=0.0)

    story.leave(second, is_taken=True)

    assert story.rollout.strata[0, "nuc"].latency == ((36, 1),)


def test_a_slow_release_is_aborted_though_every_device_says_good() -> None:
    story = Story(1200, policy(waves=(100,), controls_per_device=10), classes=1)
    story.tick()

    for device in story.held():
        story.report(device, True, latency=0.0)
    for device in story.treated():
        story.report(device, True, latency=log(1.2))

    assert story.rollout.state is RolloutState.ABORTING
    assert "latency" in story.rollout.reason


# -- the ramp --------------------------------------------------------------------------------------------------------


def test_a_ramp_takes_as_many_as_the_evidence_bears_and_reaches_everyone() -> None:
    story = Story(400, policy(ramp=Ramp(first=5, factor=4.0), waves=(5, "25%"), controls_per_device=2))
    story.tick()

    story.go_on()

    assert story.rollout.state is RolloutState.FINISHED
    assert story.rollout.waves[0] == 5
    assert all(later <= 4 * sooner for sooner, later in zip(story.rollout.waves, story.rollout.waves[1:], strict=False))
    assert sum(story.rollout.waves) == 400


# -- what is stored --------------------------------------------------------------------------------------------------


def test_every_verdict_can_be_computed_again_from_what_is_stored() -> None:
    story = Story()
    story.tick()
    story.all_report()
    story.tick(1.0)

    (verdict,) = story.rollout.verdicts

    assert evidence(verdict.evidence.strata, terms(story.rollout)) == verdict.evidence


def test_a_soak_delays_the_next_wave() -> None:
    story = Story(policy=policy(soak_s=30.0))
    story.tick()
    story.all_report()

    story.tick(1.0)
    assert story.rollout.wave == 0
    assert story.rollout.due_at == story.now + 30.0
    story.tick(31.0)

    assert story.rollout.wave == 1


def test_the_chart_has_a_point_for_every_verdict_and_for_every_move_of_the_evidence() -> None:
    story = Story(60, policy(waves=(5,), controls_per_device=10, success_required=0.0), classes=1)
    story.tick()

    story.all_report(bad=1)

    assert story.plots[-1].e == pytest.approx(story.rollout.plotted_e)
    assert story.plots[-1].bad == 1
    assert len(story.plots) >= 2
