"""Pinned, quarantined and decommissioned devices: what rollouts do with them, and what a fleet forgets."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from harness.fleet_stage import MODEL, Stage, presence, release, replace_policy, twin
from muster_controller.api.rollout_presence import Seats, present
from muster_controller.core.rollout.events import Order
from muster_controller.core.rollout.explain import Why
from muster_controller.core.rollout.roll import roll_of
from muster_controller.core.rollout.state import Member, Outcome, Rollout, RolloutState
from muster_controller.core.rollout.waiting import waiting_of
from muster_controller.db.ledger import SqlLedger
from muster_controller.db.snapshot import Committed
from muster_controller.errors import Conflict
from muster_controller.holds import Hold, HoldKind
from muster_shared.ids import DeviceId, EventId
from muster_shared.messages import Event, OutcomeReported
from muster_shared.topics import Channel, DeviceTopic

ALL = replace_policy(waves=(100,), controls_per_device=0)
ONE_BY_ONE = replace_policy(waves=(1, 2), controls_per_device=0)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    path = tmp_path / "muster.db"
    stage = Stage(SqlLedger(path, lambda: stage.now), path)
    for name in ("dev-a", "dev-b", "dev-c"):
        stage.join(name, active=release(1))
    yield stage
    stage.ledger.close()


def _wanted(stage: Stage, device: str) -> int | None:
    found = stage.ledger.desired(DeviceId(device)).models.get(MODEL)
    return None if found is None else found.assignment.release.release


def _now(stage: Stage, rollout: Rollout) -> Rollout:
    found = stage.ledger.rollout(rollout.id)
    assert found is not None
    return found


def _member(stage: Stage, rollout: Rollout, device: str) -> Member:
    return _now(stage, rollout).members[DeviceId(device)]


def _did_well(stage: Stage, rollout: Rollout, member: Member) -> None:
    assert member.wave is not None
    body = OutcomeReported(
        release=rollout.release,
        rollout=rollout.id,
        wave=member.wave,
        good=True,
        reason="because",
        attempt=member.attempt,
    )
    name = EventId(f"o-{member.device}-{member.attempt}")
    stage.hear(member.device, Channel.EVENT, Event(id=name, device=member.device, at=1.0, body=body))


def _why(stage: Stage, rollout: Rollout) -> dict[str, tuple[Why, str]]:
    known = {device.id: device for device in stage.ledger.devices()}
    found = _now(stage, rollout)
    roll = roll_of(found)
    told = waiting_of(found, roll, present(Committed(known, {}, {}, {}), roll, stage.holds, Seats()), stage.now)
    return {each.device: (each.why, each.sentence) for each in told.lines(0, roll.length)}


def test_a_rollout_leaves_a_pinned_device_alone_says_so_and_finishes_without_it(stage: Stage) -> None:
    stage.hold("dev-b", HoldKind.PINNED)

    rollout = stage.roll_out(2, ALL)

    assert (_wanted(stage, "dev-a"), _wanted(stage, "dev-b")) == (2, None)
    assert _why(stage, rollout)["dev-b"] == (Why.PINNED, "pinned by anna: look at it")
    for name in ("dev-a", "dev-c"):
        stage.outcome(name, rollout)
    stage.pass_(1.0)
    assert _now(stage, rollout).state is RolloutState.FINISHED
    assert _wanted(stage, "dev-b") is None


def test_whoever_is_unpinned_gets_what_its_group_runs_by_now(stage: Stage) -> None:
    stage.hold("dev-b", HoldKind.PINNED)
    stage.finish(2, "dev-a", "dev-c")

    stage.let_go("dev-b")
    stage.pass_(1.0)

    assert _wanted(stage, "dev-b") == 2


def test_a_device_that_is_pinned_under_way_is_told_to_stay_and_counts_for_nothing(stage: Stage) -> None:
    rollout = stage.roll_out(2, ALL)
    assert _wanted(stage, "dev-b") == 2

    stage.hold("dev-b", HoldKind.PINNED)
    stage.outcome("dev-b", rollout, good=False)

    last = stage.said.assignments("dev-b")[-1].models[0]
    assert (last.release, last.watch) == (release(1), None)
    member = _member(stage, rollout, "dev-b")
    assert (member.outcome, member.wave, member.is_touched) == (Outcome.PENDING, None, False)
    assert _now(stage, rollout).settled == 0
    assert _now(stage, rollout).in_flight == 2


def test_an_unpinned_device_of_a_rollout_that_still_runs_comes_with_a_later_wave(stage: Stage) -> None:
    rollout = stage.roll_out(2, ONE_BY_ONE)
    first = next(each.device for each in rollout.members.values() if each.is_touched)
    stage.hold(first, HoldKind.PINNED)
    stage.pass_(1.0)
    assert _member(stage, rollout, first).wave is None

    stage.let_go(first)
    for _ in range(4):
        for member in _now(stage, rollout).members.values():
            if member.is_touched and member.outcome is Outcome.PENDING and member.wave is not None:
                _did_well(stage, rollout, member)
        stage.pass_(1.0)

    assert _now(stage, rollout).state is RolloutState.FINISHED
    assert all(each.outcome is Outcome.GOOD for each in _now(stage, rollout).members.values())


def test_an_abort_calls_everybody_back_but_the_pinned_and_does_not_wait_for_them(stage: Stage) -> None:
    rollout = stage.roll_out(2, ALL)
    for name in ("dev-a", "dev-b"):
        stage.outcome(name, rollout)
        stage.join(name, sequence=2, active=release(2))
    stage.hold("dev-b", HoldKind.PINNED)

    stage.fleet.order(rollout.id, Order.ABORT, "anna", "no")
    stage.join("dev-a", sequence=3, active=release(1))
    stage.pass_(1.0)

    assert (_wanted(stage, "dev-a"), _wanted(stage, "dev-b")) == (1, 2)
    assert _now(stage, rollout).state is RolloutState.ABORTED


def test_even_a_rollback_at_once_leaves_the_pinned_alone(stage: Stage) -> None:
    stage.finish(2, "dev-a", "dev-b", "dev-c")
    stage.hold("dev-b", HoldKind.PINNED)

    stage.fleet.roll_back(MODEL, "1.1.0", "anna", "no")

    assert (_wanted(stage, "dev-a"), _wanted(stage, "dev-b")) == (1, 2)


def test_no_rollout_has_a_quarantined_device_and_what_it_reports_counts_for_nothing(stage: Stage) -> None:
    stage.hold("dev-b", HoldKind.QUARANTINED)
    rollout = stage.roll_out(2, ALL)
    assert set(rollout.members) == {"dev-a", "dev-c"}

    stage.hold("dev-c", HoldKind.QUARANTINED)
    stage.outcome("dev-c", rollout, good=False)

    found = _now(stage, rollout)
    assert (found.settled, dict(found.failures)) == (0, {})
    assert _member(stage, rollout, "dev-c").outcome is Outcome.LEFT
    assert _wanted(stage, "dev-c") == 1


def test_a_fleet_that_is_quarantined_whole_has_nobody_for_a_rollout(stage: Stage) -> None:
    for name in ("dev-a", "dev-b", "dev-c"):
        stage.hold(name, HoldKind.QUARANTINED)

    with pytest.raises(Conflict, match="no known device"):
        stage.roll_out(2, ALL)


def test_holds_do_the_same_once_more_after_a_restart_and_nothing_is_told_twice(stage: Stage) -> None:
    stage.roll_out(2, ALL)
    stage.hold("dev-b", HoldKind.PINNED)
    counter = stage.ledger.desired(DeviceId("dev-b")).counter

    stage.restart()
    stage.fleet.held([DeviceId("dev-b")])
    stage.pass_(1.0)

    assert stage.ledger.desired(DeviceId("dev-b")).counter == counter


def test_a_decommissioned_device_is_forgotten_and_its_retained_assignment_taken_off_the_broker(stage: Stage) -> None:
    rollout = stage.roll_out(2, ALL)

    stage.hold("dev-b", HoldKind.GONE)

    assert stage.ledger.device(DeviceId("dev-b")) is None
    assert stage.said.messages[-1] == (DeviceTopic(DeviceId("dev-b"), Channel.ASSIGNMENT), b"", True)
    assert _member(stage, rollout, "dev-b").outcome is Outcome.LEFT
    stage.restart()
    assert [device.id for device in stage.ledger.devices()] == ["dev-a", "dev-c"]
    assert not stage.ledger.desired(DeviceId("dev-b")).envelope


def test_what_the_broker_still_keeps_of_a_decommissioned_device_does_not_bring_it_back(stage: Stage) -> None:
    stage.hold("dev-b", HoldKind.GONE)

    stage.hear("dev-b", Channel.PRESENCE, presence("dev-b"))
    stage.hear("dev-b", Channel.TWIN, twin("dev-b", 5, release(1)))
    assert stage.ledger.device(DeviceId("dev-b")) is None

    stage.now += 5
    stage.hear("dev-b", Channel.TWIN, twin("dev-b", 1, release(1), boot="b2", sent_at=stage.now + 1))
    stage.fleet.held([DeviceId("dev-b")])
    assert stage.ledger.device(DeviceId("dev-b")) is not None


def test_the_assignment_of_a_decommissioned_device_is_taken_off_a_broker_that_brought_it_back(stage: Stage) -> None:
    stage.roll_out(2, ALL)
    stage.hold("dev-b", HoldKind.GONE)
    stage.restart()

    stage.fleet.connected()

    topic = DeviceTopic(DeviceId("dev-b"), Channel.ASSIGNMENT)
    assert [payload for at, payload, retain in stage.said.messages if at == topic and retain] == [b""]


def test_whoever_was_decommissioned_and_is_back_gets_higher_counters_than_before(stage: Stage) -> None:
    stage.finish(2, "dev-a", "dev-b", "dev-c")
    before = stage.ledger.desired(DeviceId("dev-b")).counter
    stage.hold("dev-b", HoldKind.GONE)
    stage.now += 60.0
    again = twin("dev-b", 1, release(1), boot="b2", sent_at=stage.now, counter=before)
    stage.hear("dev-b", Channel.PRESENCE, presence("dev-b", boot="b2", sent_at=stage.now))
    stage.hear("dev-b", Channel.TWIN, again)

    stage.let_go("dev-b")
    stage.pass_(3600.0)

    assert _wanted(stage, "dev-b") == 2
    assert stage.ledger.desired(DeviceId("dev-b")).counter > before > 0


def test_what_was_on_its_way_when_a_device_was_decommissioned_is_no_return(stage: Stage) -> None:
    at = stage.now
    stage.holds[DeviceId("dev-b")] = Hold(DeviceId("dev-b"), HoldKind.GONE, "anna", at)
    stage.now += 0.2
    device = stage.ledger.device(DeviceId("dev-b"))
    assert device is not None
    with stage.ledger.transaction():
        stage.ledger.save_device(replace(device, seen_at=stage.now))

    stage.fleet.held([DeviceId("dev-b")])

    assert stage.ledger.device(DeviceId("dev-b")) is None


def test_whoever_was_decommissioned_in_the_newest_rollout_and_is_back_gets_what_it_brought(stage: Stage) -> None:
    rollout = stage.roll_out(2, ALL)
    stage.hold("dev-b", HoldKind.GONE)
    for name in ("dev-a", "dev-c"):
        _did_well(stage, rollout, _member(stage, rollout, name))
    stage.pass_(3600.0)
    assert _now(stage, rollout).state is RolloutState.FINISHED

    stage.hear("dev-b", Channel.PRESENCE, presence("dev-b", boot="b2", sent_at=stage.now))
    stage.hear("dev-b", Channel.TWIN, twin("dev-b", 1, release(1), boot="b2", sent_at=stage.now))
    stage.let_go("dev-b")
    stage.pass_(3600.0)

    assert _wanted(stage, "dev-b") == 2


def test_a_revoked_device_is_offline_at_once_and_no_rollout_waits_for_it(stage: Stage) -> None:
    rollout = stage.roll_out(2, ALL)

    stage.hold("dev-b", HoldKind.REVOKED)

    device = stage.ledger.device(DeviceId("dev-b"))
    assert device is not None
    assert not device.online
    assert _member(stage, rollout, "dev-b").outcome is Outcome.LEFT
    for name in ("dev-a", "dev-c"):
        _did_well(stage, rollout, _member(stage, rollout, name))
    stage.pass_(3600.0)
    assert _now(stage, rollout).state is RolloutState.FINISHED


def test_a_roll_back_at_once_does_not_wait_for_who_was_revoked(stage: Stage) -> None:
    stage.hold("dev-b", HoldKind.REVOKED)

    rollout = stage.fleet.roll_back(MODEL, "1.2.0", "anna", "it is late")

    assert sorted(rollout.members) == ["dev-a", "dev-c"]


def test_what_the_broker_still_keeps_of_a_revoked_device_does_not_bring_it_back(stage: Stage) -> None:
    stage.hold("dev-b", HoldKind.REVOKED)

    stage.hear("dev-b", Channel.PRESENCE, presence("dev-b"))
    stage.restart()
    stage.hear("dev-b", Channel.PRESENCE, presence("dev-b"))

    device = stage.ledger.device(DeviceId("dev-b"))
    assert device is not None
    assert not device.online


def test_whoever_was_revoked_and_enrols_anew_is_online_and_gets_what_its_group_runs(stage: Stage) -> None:
    stage.hold("dev-b", HoldKind.REVOKED)
    rollout = stage.roll_out(2, ALL)
    for name in ("dev-a", "dev-c"):
        _did_well(stage, rollout, _member(stage, rollout, name))
    stage.pass_(3600.0)

    stage.let_go("dev-b")
    stage.hear("dev-b", Channel.PRESENCE, presence("dev-b", boot="b2", sent_at=stage.now))
    stage.hear("dev-b", Channel.TWIN, twin("dev-b", 1, release(1), boot="b2", sent_at=stage.now))
    stage.pass_(3600.0)

    device = stage.ledger.device(DeviceId("dev-b"))
    assert device is not None
    assert device.online
    assert _wanted(stage, "dev-b") == 2
