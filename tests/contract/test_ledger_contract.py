"""One suite for every `ports.Ledger`. What comes back equals what went in, whole transactions or nothing."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import event as sqlalchemy_event

from muster_controller.core import rollout as machine
from muster_controller.core.gate import Evidence, Stratum, VerdictKind, evidence
from muster_controller.core.policy import Policy
from muster_controller.core.rollout import Control, Member, Outcome, Rollout, RolloutState, Verdict
from muster_controller.db.errors import LedgerMisused, LedgerTooNew, LedgerUnavailable
from muster_controller.db.ledger import SqlLedger
from muster_controller.db.snapshot import Changes
from muster_controller.db.tables import Row
from muster_controller.ports import Baseline, Desired, Device, Ledger, Note
from muster_shared.assignment import ModelAssignment, Watch
from muster_shared.ids import DeviceId, EventId, ModelName, RolloutId, Sha256
from muster_shared.messages import (
    AssignmentRefused,
    Event,
    FaultSeen,
    Hardware,
    HostTelemetry,
    OutcomeReported,
    Refusal,
    ReleaseRef,
    Step,
    StepReached,
    Twin,
    TwinModel,
    WindowReport,
)
from muster_simulator.observer import Observer
from muster_simulator.ports.ledger import MemoryLedger

A, B = DeviceId("dev-a"), DeviceId("dev-b")
MODEL = ModelName("digits")
Open = Callable[[], Ledger]


def release(number: int) -> ReleaseRef:
    return ReleaseRef(
        model=MODEL,
        version=f"1.{number}.0",
        release=number,
        bundle_sha256=Sha256(f"{number:064x}"),
        bundle_length=1000 + number,
    )


WATCH = Watch(rollout=RolloutId("r-1"), wave=0, window_s=1.5, window_max_s=3.25, requests_min=2, deadline_s=60.0)


def twin(device: DeviceId = A, sequence: int = 1) -> Twin:
    return Twin(
        device=device,
        sent_at=1_700_000_000.123456,
        boot="b1",
        sequence=sequence,
        agent_version="0.1.0",
        counter=3,
        hardware=Hardware(device_class="pi5-cpu", arch="aarch64", runtimes=("onnxruntime",), memory_mb=4096),
        labels={"site": "Malmö", "line": "2"},
        models=(
            TwinModel(model=MODEL, phase="files", active=release(1), desired=release(2), progress=0.5, last_error="x"),
        ),
        host=HostTelemetry(cpu_percent=12.5),
        endpoint="http://127.0.0.1:8000",
    )


def rollout(name: str = "r-1", **changes: Any) -> Rollout:
    found: Evidence = evidence((Stratum(0, "pi5-cpu", 2, 1, 3, 0),), failure_objective=0.02)
    full = Rollout(
        id=RolloutId(name),
        model=MODEL,
        release=release(2),
        previous=release(1),
        policy=Policy(waves=(1, "25%"), alpha=0.01, selector={"site": "oslo"}),
        waves=(1, 1),
        created_at=100.25,
        created_by="anna",
        members={
            A: Member(
                A, "pi5-cpu", 0, 0, Outcome.BAD, "too slow", 101.0, 161.0, Step.SWITCHED, 4096, 2.5, release(1), True
            ),
            B: Member(B, "nuc-cpu", 1),
        },
        controls={(0, B): Control(B, "nuc-cpu", 0, 161.0, Outcome.GOOD, "fine")},
        state=RolloutState.PAUSED,
        reason="too few succeeded",
        wave=0,
        wave_began_at=101.0,
        wave_passed_at=102.0,
        verdicts=(Verdict(103.5, 0, VerdictKind.HOLD, "E = 3.1", found),),
        confirmed_wave=0,
    )
    return replace(full, **changes)


def event(name: str, device: DeviceId = A, body: Any = None) -> Event:
    fault = FaultSeen(model=MODEL, detail="a rotten file")
    return Event(id=EventId(name), device=device, at=5.5, body=body or fault)


@pytest.fixture(params=["sqlite", "memory"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Return how to open the ledger; the second time it is what was committed before."""
    if request.param == "memory":
        ledger = MemoryLedger(Observer())
        yield lambda: ledger
        return
    ledgers: list[SqlLedger] = []

    def open_() -> Ledger:
        for each in ledgers:
            each.close()
        ledgers.append(SqlLedger(tmp_path / "muster.db", lambda: 42.0))
        return ledgers[-1]

    yield open_
    for each in ledgers:
        each.close()


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
    models = {MODEL: ModelAssignment(release=release(2), watch=WATCH)}
    full = Desired(A, counter=7, expires_at=99.5, models=models, envelope=b'{"payload": "\xc3\xa9"}')

    with ledger.transaction():
        ledger.save_desired(full)

    again = opened()
    assert again.desired(A) == full
    assert again.desired(B) == Desired(B)
    assert list(again.all_desired()) == [full]


@pytest.mark.parametrize("full", [rollout(), rollout(previous=None, verdicts=(), controls={}, ended_at=1.0)])
def test_a_rollout_comes_back_as_it_went_in(opened: Open, full: Rollout) -> None:
    ledger = opened()

    with ledger.transaction():
        ledger.save_rollout(full, None)

    again = opened()
    assert again.rollout(full.id) == full
    assert list(again.rollouts(running=True)) == [full]


def test_the_evidence_of_a_stored_verdict_can_be_computed_again(opened: Open) -> None:
    ledger = opened()
    with ledger.transaction():
        ledger.save_rollout(rollout(), None)

    stored = opened().rollout(RolloutId("r-1"))

    assert stored is not None
    found = stored.verdicts[0].evidence
    assert evidence(found.strata, failure_objective=0.02) == found


def test_a_rollout_that_changes_is_stored_as_it_is_after(opened: Open) -> None:
    ledger = opened()
    before = rollout(state=RolloutState.RUNNING)
    with ledger.transaction():
        ledger.save_rollout(before, None)
    after, _ = machine.advance(before, machine.OutcomeArrived(B, 0, True, "late"), 105.0)
    after, _ = machine.advance(after, machine.Ordered(machine.Order.ABORT, "anna", "enough"), 106.0)

    with ledger.transaction():
        ledger.save_rollout(after, before)

    assert opened().rollout(before.id) == after


def test_several_changes_of_a_rollout_in_one_transaction_all_arrive(opened: Open) -> None:
    ledger = opened()
    first = rollout(state=RolloutState.RUNNING, controls={})
    with ledger.transaction():
        ledger.save_rollout(first, None)
    member = replace(first.members[B], wave=0, assigned_at=1.0)
    second = replace(first, members={**first.members, B: member})
    third = replace(second, reason="later")

    with ledger.transaction():
        ledger.save_rollout(second, first)
        ledger.save_rollout(third, second)

    assert opened().rollout(first.id) == third


def test_rollouts_come_newest_first_and_ended_ones_do_not_run(opened: Open) -> None:
    ledger = opened()
    old, new = rollout("r-1", state=RolloutState.FINISHED, created_at=1.0), rollout("r-2", created_at=2.0)

    with ledger.transaction():
        ledger.save_rollout(old, None)
        ledger.save_rollout(new, None)

    assert [each.id for each in ledger.rollouts(running=False)] == ["r-2", "r-1"]
    assert [each.id for each in opened().rollouts(running=True)] == ["r-2"]


def test_a_finished_rollout_that_is_rolled_back_runs_again(opened: Open) -> None:
    ledger = opened()
    done = rollout(state=RolloutState.FINISHED)
    with ledger.transaction():
        ledger.save_rollout(done, None)
    back = replace(done, state=RolloutState.ABORTING)

    with ledger.transaction():
        ledger.save_rollout(back, done)

    assert list(ledger.rollouts(running=True)) == [back]


def test_a_baseline_is_replaced_by_the_next(opened: Open) -> None:
    ledger = opened()
    first = Baseline(release(1), RolloutId("r-1"), {"site": "oslo"})
    with ledger.transaction():
        ledger.save_baseline(first)
    second = Baseline(release(2), RolloutId("r-2"))

    with ledger.transaction():
        ledger.save_baseline(second)

    assert opened().baseline(MODEL) == second
    assert dict(opened().baselines()) == {MODEL: second}
    assert opened().baseline(ModelName("other")) is None


def test_every_kind_of_event_comes_back_newest_first(opened: Open) -> None:
    ledger = opened()
    window = WindowReport(seconds=5.0, requests=10, right=3, latency_ms_p95=7.5)
    bodies = [
        StepReached(release=release(2), step=Step.FAILED, refusal=Refusal.DISK_FULL, detail="full"),
        OutcomeReported(release=release(2), rollout=RolloutId("r-1"), wave=1, good=False, reason="x", window=window),
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


def test_nothing_of_a_transaction_that_fails_is_kept(opened: Open) -> None:
    ledger = opened()
    stored = rollout()
    with ledger.transaction():
        ledger.save_device(Device(A, seen_at=1.0))
        ledger.save_rollout(stored, None)

    def fail() -> None:
        with ledger.transaction():
            ledger.save_device(Device(A, seen_at=2.0))
            ledger.save_device(Device(B))
            ledger.save_desired(Desired(A, counter=9))
            ledger.save_baseline(Baseline(release(1), RolloutId("r-1")))
            ledger.save_rollout(replace(stored, reason="lost"), stored)
            ledger.take_event(event("e-1"))
            ledger.note(Note(1.0, "x", "y", "z"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()

    for each in (ledger, opened()):
        assert list(each.devices()) == [Device(A, seen_at=1.0)]
        assert each.desired(A) == Desired(A)
        assert each.baseline(MODEL) is None
        assert each.rollout(RolloutId("r-1")) == rollout()
        assert not each.has_event(EventId("e-1"))
        assert list(each.notes(5)) == []


def test_a_transaction_sees_what_it_wrote(opened: Open) -> None:
    ledger = opened()

    with ledger.transaction():
        ledger.save_device(Device(A, seen_at=1.0))
        ledger.save_desired(Desired(A, counter=1))
        ledger.save_rollout(rollout(), None)
        ledger.take_event(event("e-1"))

        assert ledger.device(A) == Device(A, seen_at=1.0)
        assert [device.id for device in ledger.devices()] == [A]
        assert ledger.desired(A).counter == 1
        assert list(ledger.rollouts(running=True)) == [rollout()]
        assert [each.id for each in ledger.events(A, 5)] == ["e-1"]


# -- SQLite alone --------------------------------------------------------------------------------------------------


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[SqlLedger]:
    with SqlLedger(tmp_path / "muster.db", lambda: 42.0) as ledger:
        yield ledger


def test_an_inner_transaction_that_fails_is_forgotten_and_the_outer_one_kept(ledger: SqlLedger) -> None:
    def fail() -> None:
        with ledger.transaction():
            ledger.save_device(Device(A, seen_at=2.0))
            raise ZeroDivisionError

    with ledger.transaction():
        ledger.save_device(Device(A, seen_at=1.0))
        with pytest.raises(ZeroDivisionError):
            fail()
        with ledger.transaction():
            ledger.save_device(Device(B))

    assert list(ledger.reader.devices()) == [Device(A, seen_at=1.0), Device(B)]


def test_an_outer_transaction_that_fails_takes_the_inner_ones_with_it(ledger: SqlLedger) -> None:
    def fail() -> None:
        with ledger.transaction():
            with ledger.transaction():
                ledger.save_device(Device(A))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()

    assert ledger.reader.devices() == []
    assert ledger.device(A) is None


def test_a_write_outside_a_transaction_is_refused(ledger: SqlLedger) -> None:
    with pytest.raises(LedgerMisused):
        ledger.save_device(Device(A))


def test_a_rollout_is_written_only_where_it_differs(ledger: SqlLedger) -> None:
    before = rollout(state=RolloutState.RUNNING)
    with ledger.transaction():
        ledger.save_rollout(before, None)
    written: list[tuple[str, int]] = []

    def count(_c: Any, _u: Any, statement: str, parameters: Any, _x: Any, many: bool) -> None:
        if statement.startswith("INSERT"):
            written.append((statement.split()[2], len(parameters) if many else 1))

    sqlalchemy_event.listen(ledger._writer, "before_cursor_execute", count)
    after = replace(before, members={**before.members, A: replace(before.members[A], bytes_fetched=8192)})
    with ledger.transaction():
        ledger.save_rollout(after, before)

    assert written == [("rollout_member", 1)]


def test_a_transaction_that_writes_nothing_costs_no_sql(ledger: SqlLedger) -> None:
    statements: list[str] = []
    sqlalchemy_event.listen(ledger._writer, "before_cursor_execute", lambda *args: statements.append(args[2]))

    with ledger.transaction():
        ledger.devices()
        ledger.rollouts(running=True)

    assert statements == []


def test_a_commit_that_fails_leaves_the_cache_as_it_was(ledger: SqlLedger) -> None:
    with ledger.transaction():
        ledger.save_rollout(rollout(), None)

    def fail() -> None:
        with ledger.transaction():
            ledger.save_device(Device(A))
            ledger.save_rollout(rollout(), None)  # It is there already: the file refuses, whatever the cache says.

    with pytest.raises(LedgerUnavailable):
        fail()

    assert ledger.device(A) is None
    assert ledger.committed().devices == {}


def test_a_commit_says_what_it_touched(tmp_path: Path) -> None:
    told: list[Changes] = []
    with SqlLedger(tmp_path / "muster.db", lambda: 42.0, told.append) as ledger, ledger.transaction():
        ledger.save_device(Device(A))
        ledger.save_rollout(rollout(), None)
        ledger.note(Note(1.0, "x", "y", "z"))

    assert told == [Changes(frozenset({A}), frozenset({RolloutId("r-1")}), 1)]


def test_old_history_is_pruned(tmp_path: Path) -> None:
    now = [10.0]
    with SqlLedger(tmp_path / "muster.db", lambda: now[0]) as ledger:
        for moment in (10.0, 20.0):
            now[0] = moment
            with ledger.transaction():
                ledger.take_event(event(f"e-{moment:g}"))
                ledger.note(Note(moment, "x", "y", "z"))

        ledger.prune(15.0)

        assert [each.id for each in ledger.events(None, 9)] == ["e-20"]
        assert [each.at for each in ledger.notes(9)] == [20.0]


def test_the_migrations_make_the_tables_that_the_code_declares(ledger: SqlLedger) -> None:
    with ledger._writer.connect() as connection:
        differences = compare_metadata(MigrationContext.configure(connection), Row.metadata)

    assert differences == []


def test_a_database_of_a_newer_controller_is_left_alone(tmp_path: Path) -> None:
    with SqlLedger(tmp_path / "muster.db", lambda: 42.0) as ledger, ledger._writer.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")

    with pytest.raises(LedgerTooNew):
        SqlLedger(tmp_path / "muster.db", lambda: 42.0)


def test_a_commit_is_on_disk_before_it_returns(ledger: SqlLedger) -> None:
    with ledger._writer.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
