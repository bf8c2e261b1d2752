"""Rollouts that meet: conflicts, groups that change, late joiners, what an abort leaves behind, the way back."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.fleet_stage import MODEL, Stage, presence, release, replace_policy
from muster_controller.core.policy import Rate
from muster_controller.core.rollout.events import Order
from muster_controller.core.rollout.state import LATE, Outcome, Rollout, RolloutState
from muster_controller.db.ledger import SqlLedger
from muster_controller.errors import Conflict
from muster_shared.ids import DeviceId, EventId
from muster_shared.messages import Event, FaultSeen
from muster_shared.topics import Channel

ALL = replace_policy(waves=(100,), controls_per_device=0)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    path = tmp_path / "muster.db"
    stage = Stage(SqlLedger(path, lambda: 1000.0), path)
    yield stage
    stage.ledger.close()


def _fleet(stage: Stage, count: int, number: int = 1, **labels: str) -> list[str]:
    names = [f"dev-{index:02}" for index in range(count)]
    for name in names:
        stage.join(name, active=release(number), labels=labels)
    return names


def _wanted(stage: Stage, device: str) -> int:
    return stage.ledger.desired(DeviceId(device)).models[MODEL].assignment.release.release


def _now(stage: Stage, rollout: Rollout) -> Rollout:
    found = stage.ledger.rollout(rollout.id)
    assert found is not None
    return found


def test_rollouts_of_one_model_that_share_no_device_run_side_by_side(stage: Stage) -> None:
    stage.join("dev-o", active=release(1), labels={"site": "oslo"})
    stage.join("dev-b", active=release(1), labels={"site": "bergen"})

    stage.roll_out(2, replace_policy(selector="site=oslo"))
    stage.roll_out(3, replace_policy(selector="site=bergen"))

    assert (_wanted(stage, "dev-o"), _wanted(stage, "dev-b")) == (2, 3)


def test_a_rollout_that_would_share_devices_is_refused_and_says_with_which(stage: Stage) -> None:
    _fleet(stage, 3)
    first = stage.roll_out(2, ALL)

    with pytest.raises(Conflict, match=f"{first.id}.*has 3 of these devices.*priority above 0"):
        stage.roll_out(3, ALL)


def test_a_higher_priority_takes_its_devices_over_and_both_say_so(stage: Stage) -> None:
    _fleet(stage, 2, site="oslo")
    stage.join("dev-b", active=release(1), labels={"site": "bergen"})
    low = stage.roll_out(2, ALL)

    high = stage.roll_out(3, replace_policy(waves=(100,), selector="site=oslo", priority=5))

    left = _now(stage, low).members[DeviceId("dev-00")]
    assert (left.outcome, left.reason) == (Outcome.LEFT, f"rollout {high.id} of priority 5 took it over")
    assert [_wanted(stage, device) for device in ("dev-00", "dev-01", "dev-b")] == [3, 3, 2]
    stage.outcome("dev-b", low)
    stage.pass_(1.0)
    assert _now(stage, low).state is RolloutState.FINISHED
    for device in ("dev-00", "dev-01"):
        stage.outcome(device, high)
    stage.pass_(1.0)
    stage.pass_(3600.0)
    assert [_wanted(stage, device) for device in ("dev-00", "dev-01", "dev-b")] == [3, 3, 2]


def test_a_rollout_that_loses_all_its_devices_is_superseded(stage: Stage) -> None:
    _fleet(stage, 2)
    low = stage.roll_out(2, ALL)

    high = stage.roll_out(3, replace_policy(waves=(100,), priority=1))

    assert _now(stage, low).state is RolloutState.ABORTED
    assert _now(stage, low).reason == f"superseded by {high.id}"
    assert _wanted(stage, "dev-00") == 3


@pytest.mark.parametrize("what", ["stop", "freeze"])
def test_what_an_abort_leaves_where_it_is_stays_there(stage: Stage, what: str) -> None:
    names = _fleet(stage, 2)
    first = stage.roll_out(2, replace_policy(waves=(100,)))
    for name in names:
        stage.outcome(name, first)
        stage.join(name, sequence=5, active=release(2))
    stage.pass_(1.0)
    rollout = stage.roll_out(3, replace_policy(waves=(1, 100), on_abort=what, controls_per_device=0))
    treated = next(member.device for member in _now(stage, rollout).members.values() if member.wave == 0)
    stage.outcome(treated, rollout, "second")
    stage.join(treated, sequence=9, active=release(3))

    stage.fleet.order(rollout.id, Order.ABORT, "anna", "for a reason")
    for _ in range(5):
        stage.pass_(600.0)

    assert _wanted(stage, treated) == 3
    assert _now(stage, rollout).state is RolloutState.ABORTED


def test_a_device_that_moves_to_another_group_follows_its_baseline_and_the_history_says_why(stage: Stage) -> None:
    stage.join("dev-o", active=release(1), labels={"site": "oslo"})
    stage.join("dev-b", active=release(1), labels={"site": "bergen"})
    for number, device, site in ((2, "dev-o", "oslo"), (3, "dev-b", "bergen")):
        rollout = stage.roll_out(number, replace_policy(selector=f"site={site}", waves=(100,)))
        stage.outcome(device, rollout)
        stage.join(device, sequence=5, active=release(number), labels={"site": site})
        stage.pass_(1.0)

    stage.join("dev-o", sequence=6, active=release(2), labels={"site": "bergen"})
    stage.pass_(1.0)

    assert _wanted(stage, "dev-o") == 3
    notes = [note for note in stage.ledger.notes(10) if note.what == "device_follows_baseline"]
    assert [(note.subject, note.detail) for note in notes] == [
        ("dev-o", "digits 1.2.0 -> 1.3.0: its group is now site=bergen")
    ]


def test_a_device_that_leaves_the_group_before_its_turn_is_not_told(stage: Stage) -> None:
    _fleet(stage, 3, site="oslo")
    rollout = stage.roll_out(2, replace_policy(selector="site=oslo", waves=(1, 1, 1), controls_per_device=0))
    waiting = next(member.device for member in rollout.members.values() if member.wave is None)

    stage.join(waiting, sequence=2, active=release(1), labels={"site": "bergen"})

    left = _now(stage, rollout).members[waiting]
    assert left.outcome is Outcome.LEFT
    assert "not in the group 'site=oslo' any more" in left.reason


def test_a_late_joiner_is_let_in_behind_the_others_where_the_policy_says_so(stage: Stage) -> None:
    _fleet(stage, 2)
    rollout = stage.roll_out(2, replace_policy(waves=(1, 1), late_joiners="last_wave", controls_per_device=0))

    stage.join("dev-late", active=release(1))

    late = _now(stage, rollout).members[DeviceId("dev-late")]
    assert late.position >= LATE
    assert late.wave is None


def test_a_late_joiner_gets_nothing_where_the_policy_says_never(stage: Stage) -> None:
    names = _fleet(stage, 2)
    rollout = stage.roll_out(2, replace_policy(waves=(100,), late_joiners="never"))
    for name in names:
        stage.outcome(name, rollout)
    stage.pass_(1.0)

    stage.join("dev-late", active=release(1))
    stage.pass_(60.0)

    assert stage.said.assignments("dev-late") == []


def test_late_joiners_come_no_faster_than_the_policy_lets_them(stage: Stage) -> None:
    names = _fleet(stage, 1)
    policy = replace_policy(waves=(100,), rate=Rate(per_minute=6.0))
    rollout = stage.roll_out(2, policy)
    stage.outcome(names[0], rollout)
    stage.pass_(1.0)

    for number in range(30):
        stage.join(f"late-{number:02}", active=release(1))
    told = 0
    for _ in range(24):
        stage.pass_(5.0)
        told = sum(bool(stage.said.assignments(f"late-{number:02}")) for number in range(30))

    assert 8 <= told <= 14, told  # Six a minute over two minutes.


def test_a_rollback_at_once_tells_everybody_also_who_is_offline_and_supersedes_what_runs(stage: Stage) -> None:
    names = _fleet(stage, 4, number=2)
    stage.hear("dev-03", Channel.PRESENCE, presence("dev-03", online=False))
    running = stage.roll_out(3, replace_policy(waves=(1, 100), controls_per_device=0))

    back = stage.fleet.roll_back(MODEL, "1.1.0", "anna", "it is 2 a.m.")

    assert [_wanted(stage, name) for name in names] == [1, 1, 1, 1]
    assert all(stage.said.assignments(name)[-1].models[0].watch is None for name in names)
    assert _now(stage, running).reason == f"superseded by {back.id}"
    for name in names:
        stage.join(name, sequence=20, active=release(1))
    stage.pass_(1.0)
    assert _now(stage, back).state is RolloutState.FINISHED
    assert stage.ledger.baselines(MODEL)[0].release == release(1)


def test_a_device_whose_files_rotted_is_told_again_and_tries_again(stage: Stage) -> None:
    names = _fleet(stage, 2)
    stage.finish(2, *names)
    before = stage.said.assignments("dev-00")[-1]
    fault = Event(
        id=EventId("rot"),
        device=DeviceId("dev-00"),
        at=1.0,
        body=FaultSeen(model=MODEL, detail="files are damaged"),
    )

    stage.hear("dev-00", Channel.EVENT, fault)
    stage.hear("dev-00", Channel.EVENT, fault)

    after = stage.said.assignments("dev-00")[-1]
    assert after.counter == before.counter + 1
    assert after.models[0].release == release(2)
    watches = before.models[0].watch, after.models[0].watch
    assert watches[0] is not None
    assert watches[1] is not None
    assert watches[1].attempt == watches[0].attempt + 1


def test_a_device_that_a_rollout_has_not_told_yet_is_told_again_when_its_files_rot(stage: Stage) -> None:
    names = _fleet(stage, 3)
    stage.finish(1, *names)
    running = stage.roll_out(2, replace_policy(waves=(1, 100), controls_per_device=0))
    waiting = next(name for name in names if not _now(stage, running).members[DeviceId(name)].is_touched)
    before = stage.ledger.desired(DeviceId(waiting)).counter
    fault = Event(id=EventId("rot"), device=DeviceId(waiting), at=1.0, body=FaultSeen(model=MODEL, detail="damaged"))

    stage.hear(waiting, Channel.EVENT, fault)

    assert _wanted(stage, waiting) == 1
    assert stage.ledger.desired(DeviceId(waiting)).counter == before + 1


def test_files_of_an_aborted_release_that_rotted_are_not_given_again(stage: Stage) -> None:
    _fleet(stage, 2)
    first = stage.roll_out(1, ALL)
    stage.fleet.order(first.id, Order.ABORT, "ada", "wrong labels")
    stage.pass_(1.0)
    assert _now(stage, first).state is RolloutState.ABORTED
    counter = stage.ledger.desired(DeviceId("dev-00")).counter
    fault = Event(id=EventId("rot"), device=DeviceId("dev-00"), at=1.0, body=FaultSeen(model=MODEL, detail="damaged"))

    stage.hear("dev-00", Channel.EVENT, fault)

    assert _wanted(stage, "dev-00") == 1
    assert stage.ledger.desired(DeviceId("dev-00")).counter == counter


def test_a_fault_in_a_rollout_is_left_to_the_rollout(stage: Stage) -> None:
    _fleet(stage, 2)
    stage.roll_out(2, ALL)
    counter = stage.ledger.desired(DeviceId("dev-00")).counter
    fault = Event(id=EventId("rot"), device=DeviceId("dev-00"), at=1.0, body=FaultSeen(model=MODEL, detail="damaged"))

    stage.hear("dev-00", Channel.EVENT, fault)

    assert stage.ledger.desired(DeviceId("dev-00")).counter == counter


def test_a_controller_that_was_restarted_with_its_seed_draws_no_name_twice(stage: Stage) -> None:
    _fleet(stage, 4)
    first = stage.roll_out(2)
    stage.fleet.order(first.id, Order.ABORT, "anna", "not yet")
    stage.pass_(200.0)

    stage.restart()
    _fleet(stage, 4)
    second = stage.roll_out(2)

    assert second.id != first.id
    assert _now(stage, first).state is RolloutState.ABORTED
