"""One suite for every `ports.Ledger`. What comes back equals what went in, whole transactions or nothing."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from harness.ledgers import (
    MODEL,
    R1,
    TERMS,
    A,
    B,
    C,
    desired,
    event,
    large_rollout,
    point,
    release,
    rollout,
    twin,
    wanted,
    with_members,
)
from harness.postgres import Postgres, Where
from muster_controller.core.gate.evidence import evidence
from muster_controller.core.gate.strata import VerdictKind
from muster_controller.core.rollout.events import Changes
from muster_controller.core.rollout.state import Control, Member, Outcome, Rollout, RolloutState, Verdict
from muster_controller.db.ledger import SqlLedger
from muster_controller.ports import Baseline, Desired, Device, Issued, Ledger, Note
from muster_shared.ids import DeviceId, EventId, ModelName, RolloutId
from muster_shared.messages import (
    AssignmentRefused,
    FaultSeen,
    OutcomeReported,
    Refusal,
    Step,
    StepReached,
    WindowReport,
)
from muster_simulator.observer import Observer
from muster_simulator.ports.ledger import MemoryLedger

Open = Callable[[], Ledger]


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Return how to open the ledger; the second time it is what was committed before."""
    if request.param == "memory":
        ledger = MemoryLedger(Observer())
        yield lambda: ledger
        return
    where: Where = tmp_path / "muster.db"
    if request.param == "postgresql":
        server: Postgres = request.getfixturevalue("postgres")
        where = server.new_database()
    ledgers: list[SqlLedger] = []

    def open_() -> Ledger:
        for each in ledgers:
            each.close()
        ledgers.append(SqlLedger(where, lambda: 42.0))
        return ledgers[-1]

    yield open_
    for each in ledgers:
        each.close()


def saved(ledger: Ledger, new: Rollout) -> Rollout:
    """Save a new rollout in a transaction of its own."""
    with ledger.transaction():
        ledger.save_rollout(new, None, Changes())
    return new


# -- devices -----------------------------------------------------------------------------------------------------------


def test_a_device_comes_back_as_it_went_in(opened: Open) -> None:
    ledger = opened()
    full = Device(A, online=True, boot="b1", seen_at=123.456, twin=twin())

    with ledger.transaction():
        ledger.save_device(full)
        ledger.save_device(Device(B))

    again = opened()
    assert again.device(A) == full
    assert list(again.devices()) == [full, Device(B)]
    assert again.device(DeviceId("nobody")) is None


def test_what_a_device_should_run_comes_back_as_it_went_in(opened: Open) -> None:
    ledger = opened()
    full = desired()

    with ledger.transaction():
        ledger.save_desired(full)

    again = opened()
    assert again.desired(A) == full
    assert again.desired(B) == Desired(B)
    assert list(again.all_desired()) == [full]


def test_what_a_device_was_told_is_kept_whenever_the_counter_rose(opened: Open) -> None:
    ledger = opened()

    for told in (desired(counter=1, number=1, at=10.0), desired(counter=2, number=2, at=20.0), desired(B, 5, 3, 25.0)):
        with ledger.transaction():
            ledger.save_desired(told)
    with ledger.transaction():
        ledger.save_desired(replace(ledger.desired(A), envelope=b"the same, said again"))

    first, second = (Issued(A, number, number * 10.0, {MODEL: wanted(number)}) for number in (1, 2))
    again = opened()
    assert list(again.issued(A, limit=9)) == [second, first]
    assert list(again.issued(A, limit=1)) == [second]
    assert list(again.issued(A, until=19.0, limit=9)) == [first]
    assert list(again.issued(A, until=10.0, limit=9)) == [first]
    assert list(again.issued(A, until=9.0, limit=9)) == []
    assert list(again.issued(C, limit=9)) == []


def test_a_device_that_is_told_twice_in_one_transaction_has_two_lines_of_history(opened: Open) -> None:
    ledger = opened()

    with ledger.transaction():
        ledger.save_desired(desired(counter=1, at=10.0))
        ledger.save_desired(desired(counter=2, at=10.0))

        assert [each.counter for each in ledger.issued(A, limit=9)] == [2, 1]

    assert [each.counter for each in opened().issued(A, limit=9)] == [2, 1]


def test_text_that_a_database_could_choke_on_is_taken(opened: Open) -> None:
    ledger = opened()

    with ledger.transaction():
        ledger.save_device(Device(A, boot="a\0b"))
        ledger.note(Note(1.0, "x\0", "y", "'; DROP TABLE device; -- \N{PILE OF POO} \0", "z%s%(a)s?:b"))
        ledger.take_event(event("e-1", body=FaultSeen(model=None, detail="nul \0 inside")))

    again = opened()
    assert again.device(A) is not None
    assert again.notes(1)[0].detail.startswith("'; DROP TABLE device; -- \N{PILE OF POO}")
    assert again.notes(1)[0].actor == "z%s%(a)s?:b"
    assert again.events(A, 1) == [event("e-1", body=FaultSeen(model=None, detail="nul \0 inside"))]


# -- rollouts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "full",
    [
        pytest.param(rollout(), id="with everything"),
        pytest.param(
            rollout(previous=None, verdicts=(), approvals=(), controls=(), pause=None, ended_at=1.0), id="with little"
        ),
    ],
)
def test_a_rollout_comes_back_as_it_went_in(opened: Open, full: Rollout) -> None:
    saved(opened(), full)

    again = opened()
    assert again.rollout(full.id) == full
    assert list(again.rollouts(running=True)) == [full]


def test_the_binned_latency_of_a_stratum_survives_a_restart(opened: Open) -> None:
    ledger = opened()
    before = saved(ledger, rollout())
    key = (0, "pi5-cpu")
    counted = replace(before.strata[key], latency=((-3, 2), (12, 2)))
    after = replace(before, strata={**before.strata, key: counted})

    with ledger.transaction():
        ledger.save_rollout(after, before, Changes())

    again = opened().rollout(R1)
    assert again is not None
    assert again.strata[key].latency == ((-3, 2), (12, 2))
    assert again == after


def test_the_evidence_of_a_stored_verdict_can_be_computed_again(opened: Open) -> None:
    saved(opened(), rollout())

    stored = opened().rollout(R1)

    assert stored is not None
    found = stored.verdicts[0].evidence
    assert evidence(found.strata, TERMS) == found


def test_a_rollout_that_changes_is_stored_as_it_is_after(opened: Open) -> None:
    ledger = opened()
    before = saved(ledger, rollout())
    found = before.verdicts[0].evidence
    control = replace(before.controls[0, C], outcome=Outcome.GOOD, assigned_at=99.0)
    after = with_members(
        replace(
            before,
            controls=before.controls.set((0, C), control),
            state=RolloutState.ABORTING,
            verdicts=(*before.verdicts, Verdict(110.0, 1, VerdictKind.ABORT, "E = 31", found)),
        ),
        replace(before.members[B], wave=1, assigned_at=104.0, attempt=1),
        Member(DeviceId("late"), "pi5-cpu", 4),
    )

    with ledger.transaction():
        ledger.save_rollout(after, before, Changes(frozenset({B, DeviceId("late")}), frozenset({(0, C)})))

    assert opened().rollout(before.id) == after


def test_several_changes_of_a_rollout_in_one_transaction_all_arrive(opened: Open) -> None:
    ledger = opened()
    first = saved(ledger, rollout(controls=()))
    second = with_members(first, replace(first.members[B], assigned_at=1.0))
    control = Control(DeviceId("dev-e"), "nuc-cpu", 1, B, 1.0)
    third = with_members(replace(second, reason="later", controls=second.controls.set((1, control.device), control)))
    fourth = with_members(third, replace(third.members[B], outcome=Outcome.GOOD), replace(third.members[C], attempt=3))

    with ledger.transaction():
        ledger.save_rollout(second, first, Changes(frozenset({B})))
        ledger.save_rollout(third, second, Changes(frozenset(), frozenset({(1, control.device)})))
        ledger.save_rollout(fourth, third, Changes(frozenset({B, C})))

    assert opened().rollout(first.id) == fourth


def test_a_new_rollout_that_changes_in_the_same_transaction_is_stored_whole(opened: Open) -> None:
    ledger = opened()
    first = rollout()
    second = with_members(first, replace(first.members[B], assigned_at=1.0))

    with ledger.transaction():
        ledger.save_rollout(first, None, Changes())
        ledger.save_rollout(second, first, Changes(frozenset({B})))

    assert opened().rollout(first.id) == second


def test_a_rollout_of_thousands_of_devices_comes_back(opened: Open) -> None:
    full = saved(opened(), large_rollout("r-large", 3000))

    assert opened().rollout(full.id) == full


def test_rollouts_come_newest_first_and_ended_ones_do_not_run(opened: Open) -> None:
    ledger = opened()
    saved(ledger, rollout("r-2", created_at=2.0))
    saved(ledger, rollout("r-1", state=RolloutState.FINISHED, created_at=1.0))

    assert [each.id for each in ledger.rollouts(running=False)] == ["r-2", "r-1"]
    assert [each.id for each in opened().rollouts(running=True)] == ["r-2"]


def test_a_finished_rollout_that_is_rolled_back_runs_again(opened: Open) -> None:
    ledger = opened()
    done = saved(ledger, rollout(state=RolloutState.FINISHED))
    back = replace(done, state=RolloutState.ABORTING)

    with ledger.transaction():
        ledger.save_rollout(back, done, Changes())

    assert list(ledger.rollouts(running=True)) == [back]
    assert opened().rollout(done.id) == back


def test_the_points_of_a_chart_come_oldest_first(opened: Open) -> None:
    ledger = opened()
    saved(ledger, rollout("r-2"))

    with ledger.transaction():
        ledger.save_rollout(rollout(), None, Changes())
        for number in (2, 1):
            ledger.save_point(R1, point(number))
        ledger.save_point(RolloutId("r-2"), point(5))

        assert list(ledger.points(R1)) == [point(2), point(1)]
    with ledger.transaction():
        ledger.save_point(R1, point(3))

    assert list(opened().points(R1)) == [point(2), point(1), point(3)]
    assert list(opened().points(RolloutId("r-2"))) == [point(5)]


# -- baselines ---------------------------------------------------------------------------------------------------------


def test_baselines_of_a_model_come_newest_first_and_the_same_group_has_one(opened: Open) -> None:
    ledger = opened()
    everyone = Baseline(release(1), RolloutId("r-1"), "", 10.0)
    oslo = Baseline(release(2), RolloutId("r-2"), "site=oslo", 20.0)
    other = Baseline(release(1, ModelName("faces")), RolloutId("r-3"), "", 5.0)
    with ledger.transaction():
        for each in (everyone, oslo, other):
            ledger.save_baseline(each)
    everyone_now = Baseline(release(3), RolloutId("r-4"), "", 30.0)

    with ledger.transaction():
        assert list(ledger.baselines(MODEL)) == [oslo, everyone]
        ledger.save_baseline(everyone_now)

        assert list(ledger.baselines(MODEL)) == [everyone_now, oslo]

    assert list(opened().baselines(MODEL)) == [everyone_now, oslo]
    assert list(opened().baseline_models()) == [MODEL, ModelName("faces")]
    assert list(opened().baselines(ModelName("none"))) == []


# -- history -----------------------------------------------------------------------------------------------------------


def test_every_kind_of_event_comes_back_newest_first(opened: Open) -> None:
    ledger = opened()
    window = WindowReport(seconds=5.0, requests=10, right=3, latency_ms_p95=7.5)
    bodies = [
        StepReached(release=release(2), step=Step.FAILED, refusal=Refusal.DISK_FULL, detail="full"),
        OutcomeReported(release=release(2), rollout=R1, wave=1, good=False, reason="x", window=window),
        AssignmentRefused(refusal=Refusal.EXPIRED, counter=None, detail="a month ago"),
        FaultSeen(model=None, detail="hot"),
    ]
    events = [event(f"e-{index}", body=body) for index, body in enumerate(bodies)]

    with ledger.transaction():
        for each in events:
            assert ledger.take_event(each)
        ledger.take_event(event("other", B))

    again = opened()
    assert list(again.events(A, 10)) == events[::-1]
    assert list(again.events(None, 2)) == [event("other", B), events[-1]]


def test_an_event_is_taken_once_in_a_transaction_later_and_after_a_restart(opened: Open) -> None:
    ledger = opened()

    with ledger.transaction():
        assert ledger.take_event(event("e-1"))
        assert not ledger.take_event(event("e-1"))
    with ledger.transaction():
        assert not ledger.take_event(event("e-1"))

    again = opened()
    with again.transaction():
        assert not again.take_event(event("e-1"))
    assert again.has_event(EventId("e-1"))
    assert not again.has_event(EventId("e-2"))
    assert len(again.events(None, 10)) == 1


def test_notes_come_newest_first(opened: Open) -> None:
    ledger = opened()
    notes = [Note(float(index), "wave_started", "r-1", f"wave {index}", "anna") for index in range(3)]

    with ledger.transaction():
        for note in notes:
            ledger.note(note)

    assert list(opened().notes(2)) == [notes[2], notes[1]]


# -- transactions ------------------------------------------------------------------------------------------------------


def test_nothing_of_a_transaction_that_fails_is_kept(opened: Open) -> None:
    ledger = opened()
    stored = saved(ledger, rollout())
    with ledger.transaction():
        ledger.save_device(Device(A, seen_at=1.0))

    def fail() -> None:
        with ledger.transaction():
            ledger.save_device(Device(A, seen_at=2.0))
            ledger.save_device(Device(B))
            ledger.save_desired(desired(counter=9))
            ledger.save_baseline(Baseline(release(1), R1))
            ledger.save_rollout(replace(stored, reason="lost"), stored, Changes())
            ledger.save_point(R1, point(1))
            ledger.take_event(event("e-1"))
            ledger.note(Note(1.0, "x", "y", "z"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()

    for each in (ledger, opened()):
        assert list(each.devices()) == [Device(A, seen_at=1.0)]
        assert each.desired(A) == Desired(A)
        assert list(each.issued(A, limit=5)) == []
        assert list(each.baselines(MODEL)) == []
        assert each.rollout(R1) == rollout()
        assert list(each.points(R1)) == []
        assert not each.has_event(EventId("e-1"))
        assert list(each.notes(5)) == []


def test_a_transaction_sees_what_it_wrote(opened: Open) -> None:
    ledger = opened()

    with ledger.transaction():
        ledger.save_device(Device(A, seen_at=1.0))
        ledger.save_desired(desired(counter=1))
        ledger.save_rollout(rollout(), None, Changes())
        ledger.take_event(event("e-1"))
        ledger.note(Note(1.0, "x", "y", "z"))

        assert ledger.device(A) == Device(A, seen_at=1.0)
        assert [device.id for device in ledger.devices()] == [A]
        assert ledger.desired(A).counter == 1
        assert list(ledger.rollouts(running=True)) == [rollout()]
        assert [each.id for each in ledger.events(A, 5)] == ["e-1"]
        assert [each.what for each in ledger.notes(5)] == ["x"]
