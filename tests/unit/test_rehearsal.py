"""Rehearsals against cases that can be reckoned by hand, and against policies that are known to be good for nothing."""

from dataclasses import replace
from datetime import timedelta
from random import Random

import msgspec
import pytest

from muster_controller.core.policy import Approval, Maintenance, Policy, PolicyInvalid, Ramp
from muster_controller.core.rollout import machine
from muster_controller.core.rollout.events import OutcomeArrived
from muster_shared.assignment import Activation, MaintenanceWindow, Trial, Watch
from muster_shared.ids import DeviceId, RolloutId
from muster_simulator.rehearsal import fleet_shape
from muster_simulator.rehearsal.device_model import Arrival, Devices, Look
from muster_simulator.rehearsal.repeat import Order, repeat
from muster_simulator.rehearsal.run import NEW, OLD, START, People, Rehearsal, Result
from muster_simulator.rehearsal.scenarios import Harm, RehearsalRefused, Scenario, own, shocked, standard

POLICY = Policy(waves=(4, 8))
NO_GATE = Policy(waves=("100%",), controls_per_device=0, success_required=0.0, alpha=1e-6, failure_objective=0.5)
NO_GATE_IN_WAVES = msgspec.structs.replace(NO_GATE, waves=(10, "50%"))
QUIET = {"latency_noise": 0.0, "weather": 0.0, "requests_per_hour": 1e6, "fetch_spread": 0.0, "after_report_s": 0.0}
WELL = own(Harm(0.0), 0.0)
SLOWER = own(Harm(0.0, slower=0.2), 0.0)


def _document(classes: object = 40, **shape: object) -> fleet_shape.Document:
    named = classes if isinstance(classes, dict) else {"pi5": classes}
    return fleet_shape.parse(msgspec.json.encode({"classes": named, **QUIET, **shape}), "fleet.json")


def _runs(
    scenario: Scenario, number: int = 5, policy: Policy = POLICY, document: fleet_shape.Document | None = None
) -> list[Result]:
    return repeat(Order(policy, document or _document(), (scenario,), seed=7, runs=number), jobs=1)[0]


def test_a_release_without_any_harm_reaches_everybody_after_three_windows() -> None:
    (found,) = _runs(WELL, 1)

    assert (found.ended, found.exposed, found.harmed, found.waves) == ("finished", 40, 0, 3)
    fetched_and_measured = 60.0 + POLICY.window_s
    assert 3 * fetched_and_measured <= found.seconds <= 3 * fetched_and_measured + 20


def test_a_release_that_breaks_every_device_is_stopped_in_the_first_wave() -> None:
    for found in _runs(own(Harm(0.999999), 0.0)):
        assert (found.ended, found.why) == ("aborted", "failures")
        assert found.exposed == found.harmed == 4
        assert found.seconds == pytest.approx(60.0 + POLICY.window_s, abs=10)


def test_devices_that_fall_silent_are_noticed_at_their_deadline() -> None:
    for found in _runs(own(Harm(0.0, silent=0.999999), 0.0)):
        assert found.ended == "aborted"
        assert found.exposed == found.harmed == 4
        assert POLICY.deadline_s <= found.seconds <= POLICY.deadline_s * 1.01 + 10


def test_a_device_that_finds_out_in_its_self_test_is_heard_of_before_any_window() -> None:
    (found,) = _runs(own(Harm(0.999999, fails="self_test"), 0.0), 1)

    assert found.ended == "aborted"
    assert found.seconds < POLICY.window_s


def test_a_release_that_is_slower_is_stopped_by_latency_alone() -> None:
    for found in _runs(SLOWER, policy=Policy(waves=(20, 40)), document=_document(400)):
        assert (found.ended, found.why) in {("aborted", "latency"), ("paused", "undecided")}
        assert found.exposed == found.harmed == 20


def test_without_traffic_nobody_can_see_that_it_is_slower() -> None:
    found = _runs(SLOWER, policy=Policy(waves=(20, 40)), document=_document(400, idle="100%"))

    assert {each.ended for each in found} == {"finished"}
    assert {each.seconds >= 3 * POLICY.window_max_s for each in found} == {True}


def test_a_policy_without_a_gate_lets_the_harm_through_that_a_gate_stops() -> None:
    harm = own(Harm(0.3), 0.01)
    document = _document({"pi5": 150, "nuc": 50})

    ungated = _runs(harm, 10, NO_GATE, document)
    gated = _runs(harm, 10, Policy(), document)

    assert {(each.ended, each.exposed) for each in ungated} == {("finished", 200)}
    assert sum(each.harmed for each in ungated) == pytest.approx(10 * 200 * harm.excess, rel=0.2)
    assert all(each.ended in ("aborted", "paused") for each in gated)
    assert sum(each.harmed for each in gated) < sum(each.harmed for each in ungated) / 5


def test_harm_in_one_class_harms_no_other() -> None:
    harm = Harm(0.999999, only_class="nuc")
    document = _document({"pi5": 36, "nuc": 4})

    (found,) = _runs(own(harm, 0.0), 1, NO_GATE, document)

    assert (found.exposed, found.harmed) == (40, 4)


def test_devices_that_stay_offline_are_never_told() -> None:
    listed = [{"id": f"d{number}", "device_class": "pi5", "online": number >= 10} for number in range(40)]
    document = fleet_shape.parse(msgspec.json.encode(listed), "fleet.json")

    (found,) = _runs(WELL, 1, document=document)

    assert (found.ended, found.exposed, found.unreached) == ("finished", 30, 10)


def test_a_fleet_that_is_all_offline_begins_when_devices_come_back() -> None:
    (found,) = _runs(WELL, 1, document=_document(12, offline="100%", back_per_hour=2.0))

    assert found.exposed > 0
    assert found.seconds > 60.0


def test_a_device_that_goes_offline_makes_its_report_late() -> None:
    here, gone = (
        _runs(WELL, 5, Policy(waves=("100%",), deadline_s=86400.0 * 30), _document(40, **shape))
        for shape in ({}, {"offline": 0.3, "back_per_hour": 1.0})
    )

    assert {each.ended for each in here + gone} == {"finished"}
    assert sum(each.seconds for each in gone) > 2 * sum(each.seconds for each in here)


def test_a_download_that_takes_too_long_fails_before_it_can_harm() -> None:
    policy = Policy(waves=(4, 8), download_s=600.0)

    (found,) = _runs(own(Harm(0.999999), 0.0), 1, policy, _document(40, fetch_s=1e6))

    assert (found.ended, found.exposed, found.harmed) == ("aborted", 4, 0)
    assert found.seconds == pytest.approx(600.0, abs=10)


def test_a_device_that_may_try_again_is_told_again() -> None:
    broken = own(Harm(0.999999, fails="self_test"), 0.0)
    once, again = (_runs(broken, 1, Policy(waves=(4, 8), retries=retries))[0] for retries in (0, 2))

    assert once.exposed == again.exposed == 4
    assert again.seconds >= once.seconds + 2 * POLICY.retry_wait_s


def test_people_who_approve_late_make_it_last_longer() -> None:
    policy = Policy(waves=(4, 8), approvals=(Approval(before=2, count=2), Approval(before="finish", by=("anna",))))
    soon, late = (
        Rehearsal(policy, _document().select(""), 7, People(seconds)).run(WELL, 0) for seconds in (0.0, 7200.0)
    )

    assert soon.ended == late.ended == "finished"
    assert late.seconds - soon.seconds == pytest.approx(2 * 7200.0, abs=30)


def test_people_who_skip_every_pause_let_more_harm_through() -> None:
    harm = own(Harm(0.1), 0.01)
    order = Order(Policy(), _document({"pi5": 60, "nuc": 40}), (harm,), seed=2, runs=10)

    (careful,), (hasty,) = (repeat(replace(order, people=people), 1) for people in (People(), People(skip_pauses=True)))

    assert "paused" in {each.ended for each in careful}
    assert "paused" not in {each.ended for each in hasty}
    assert sum(each.pauses for each in hasty) >= sum(each.pauses for each in careful) > 0
    assert sum(each.exposed for each in hasty) > sum(each.exposed for each in careful)


def test_devices_switch_and_controls_measure_only_while_their_maintenance_window_is_open() -> None:
    fleet = _document(60, timezones={"Asia/Tokyo": 0.5, "-03:30": 0.5}).select("")
    ids = {DeviceId(f"d{number}"): kind for number, kind in enumerate(fleet.kinds["pi5"])}
    devices = Devices(fleet, ids, WELL, OLD, NEW, START, Random(1))
    window = MaintenanceWindow(start_minute=60, minutes=120)
    asked = Activation(windows=(window,), defer_s_max=2 * 86400.0)
    watch = Watch(rollout=RolloutId("r"), wave=0, window_s=300.0, window_max_s=300.0, activation=asked)
    later = [each for number, device in enumerate(ids) for each in devices.told(device, (OLD, NEW)[number % 2], watch)]

    measured_from = set()
    while later:
        later.sort(key=lambda each: each.at)
        match later.pop(0):
            case Look(at=at) as look:
                devices.now = at
                later += devices.looks(look)
            case Arrival(at=at, event=OutcomeArrived()):
                measured_from.add(at - watch.window_s - START)

    assert len(measured_from) == 2
    for name, at in zip((timedelta(hours=-3.5), timedelta(hours=9)), sorted(measured_from), strict=True):
        assert (at + name.total_seconds()) % 86400.0 == pytest.approx(3600.0, abs=1)


def test_a_rollout_through_nightly_windows_takes_nights_and_calls_nobody_silent() -> None:
    nightly = Maintenance(start="01:00", end="04:00")
    policy = Policy(waves=("100%",), controls_per_device=0, maintenance=(nightly,), defer_s_max=86400.0)

    found = _runs(WELL, 6, policy, _document(20, timezones={"Europe/Berlin": 0.5, "+09:00": 0.5}))

    assert {(each.ended, each.exposed) for each in found} == {("finished", 20)}
    assert max(each.seconds for each in found) > 6 * 3600.0


def test_a_trial_that_disagrees_stops_a_release_before_it_serves() -> None:
    trial = Trial(requests_min=10)
    policy = Policy(waves=(4, 8), trial=trial)

    (found,) = _runs(own(Harm(0.0, disagreeing=0.999999), 0.0), 1, policy)

    assert (found.ended, found.exposed, found.harmed) == ("aborted", 4, 0)


def test_the_same_seed_gives_the_same_answer_on_any_number_of_processes() -> None:
    document = fleet_shape.parse(b"classes: {pi5: 20, nuc: 10}\noffline: 10%\nback_per_hour: 1\n", "fleet.yaml")
    scenarios = standard(0.01, document.select("").classes)[:2]
    order = Order(Policy(), document, scenarios, seed=3, runs=11)

    alone = repeat(order, jobs=1)
    together = repeat(order, jobs=2)
    other = repeat(replace(order, seed=4), jobs=1)

    assert alone == together
    assert alone != other


def test_one_run_can_be_repeated_by_itself() -> None:
    rehearsal = Rehearsal(Policy(), _document(60, latency_noise=0.1).select(""), seed=5)
    scenario = standard(0.05, rehearsal.fleet.classes)[1]

    all_of_them = [rehearsal.run(scenario, number) for number in range(6)]

    assert rehearsal.run(scenario, 4) == all_of_them[4]
    assert len(set(all_of_them)) > 1


def test_looking_around_less_often_changes_nothing_but_the_work() -> None:
    fleet = _document({"pi5": 40, "nuc": 20}, latency_noise=0.08, fetch_spread=0.5).select("")
    policy = Policy(soak_s=900.0, ramp=Ramp(first=5))
    scenario = standard(0.02, fleet.classes)[1]
    often = Rehearsal(policy, fleet, 1, look_s=machine.LOOK_S)
    seldom = Rehearsal(policy, fleet, 1)
    usual = machine.LOOK_S

    pairs = [(often.run(scenario, number), seldom.run(scenario, number)) for number in range(6)]

    assert all(replace(more, advances=0) == replace(less, advances=0) for more, less in pairs)
    assert sum(more.advances for more, _ in pairs) > sum(less.advances for _, less in pairs)
    assert usual == machine.LOOK_S


def test_a_shock_to_the_whole_fleet_begins_with_the_second_wave() -> None:
    calm, shaken = (
        _runs(scenario, 10, NO_GATE_IN_WAVES, _document(60)) for scenario in (own(Harm(0.1), 0.1), shocked(0.1))
    )

    assert {each.ended for each in calm + shaken} == {"finished"}
    assert {each.harmed for each in calm + shaken} == {0}


def test_a_policy_that_the_fleet_cannot_satisfy_is_refused_before_anything_is_run() -> None:
    with pytest.raises(PolicyInvalid, match="names no device"):
        Rehearsal(Policy(selector="site=berlin"), _document().select("site=berlin"), 1)


def test_harm_in_a_class_that_the_policy_does_not_select_is_refused() -> None:
    with pytest.raises(RehearsalRefused, match="nuc"):
        _runs(own(Harm(0.5, only_class="nuc"), 0.01), 1)
