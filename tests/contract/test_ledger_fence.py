"""Two controllers at once: however their transactions interleave, nothing that one of them only believed is kept.

Each job is what a handler does: it reads, decides, writes, and starts again when the ledger has moved. The lease is not
even asked for in the first half: the fence alone keeps every outcome right.
"""

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.ledgers import MODEL, A, B, desired, event, rollout, with_members
from harness.postgres import Where
from muster_controller.core.rollout.events import Changes
from muster_controller.core.rollout.state import Outcome
from muster_controller.db import lease
from muster_controller.db.errors import LedgerMoved
from muster_controller.db.ledger import SqlLedger
from muster_controller.db.snapshot import Touched
from muster_controller.ports import Device
from muster_shared.ids import DeviceId, RolloutId

Job = Callable[[SqlLedger], None]

PLENTY = 1000  # Attempts of a job. In a fair race nobody needs more than a few.


@pytest.fixture
def pair(where: Where) -> Iterator[tuple[SqlLedger, SqlLedger]]:
    with SqlLedger(where, lambda: 42.0) as one, SqlLedger(where, lambda: 42.0) as other:
        yield one, other


def carry_out(ledger: SqlLedger, job: Job) -> int:
    """Do `job` in a transaction, from the start whenever the ledger has moved; return how often it had to start."""
    for attempt in range(1, PLENTY):
        try:
            with ledger.transaction():
                job(ledger)
        except LedgerMoved:
            continue
        return attempt
    raise AssertionError("it never got through")


def bump(device: DeviceId) -> Job:
    """What an assignment is: the next counter of a device."""

    def job(ledger: SqlLedger) -> None:
        before = ledger.desired(device)
        ledger.save_desired(replace(desired(device), counter=before.counter + 1))

    return job


def take(name: str, device: DeviceId) -> Job:
    """What an event is: taken once, and then it has its effect once."""

    def job(ledger: SqlLedger) -> None:
        if ledger.take_event(event(name, device)):
            known = ledger.device(device) or Device(device)
            ledger.save_device(replace(known, seen_at=known.seen_at + 1))

    return job


# -- the fence ---------------------------------------------------------------------------------------------------------


def test_what_another_wrote_meanwhile_is_not_written_over(pair: tuple[SqlLedger, SqlLedger]) -> None:
    one, other = pair

    def stale() -> None:
        with one.transaction():
            bump(A)(one)
            carry_out(other, bump(A))

    with pytest.raises(LedgerMoved):
        stale()

    assert one.desired(A).counter == 1  # It looked again by itself ...
    assert carry_out(one, bump(A)) == 1  # ... so that the next attempt gets through.
    assert [each.counter for each in one.issued(A, limit=9)] == [2, 1]


def test_even_writes_that_do_not_touch_each_other_take_turns(pair: tuple[SqlLedger, SqlLedger]) -> None:
    one, other = pair
    carry_out(one, bump(A))

    attempts = carry_out(other, bump(B))

    assert attempts == 2
    assert {each.device: each.counter for each in other.all_desired()} == {A: 1, B: 1}


def test_a_look_tells_whether_another_wrote(where: Where) -> None:
    told: list[Touched] = []
    with SqlLedger(where, lambda: 42.0) as writing, SqlLedger(where, lambda: 42.0, told.append) as watching:
        carry_out(writing, bump(A))

        first, second = watching.catch_up(), watching.catch_up()

        assert (first, second) == (True, False)
        assert watching.committed().desired[A].counter == 1
        assert [each.devices for each in told] == [{A}]


def test_a_rollout_of_another_controller_is_seen_and_so_is_its_end(pair: tuple[SqlLedger, SqlLedger]) -> None:
    one, other = pair
    carry_out(one, lambda ledger: ledger.save_rollout(rollout(), None, Changes()))
    other.catch_up()

    def report(ledger: SqlLedger) -> None:
        before = ledger.rollout(RolloutId("r-1"))
        assert before is not None
        after = with_members(before, replace(before.members[B], outcome=Outcome.GOOD, assigned_at=1.0))
        ledger.save_rollout(after, before, Changes(frozenset({B})))

    carry_out(other, report)
    one.catch_up()

    assert one.rollouts(running=True) == other.rollouts(running=True)
    assert one.rollouts(running=True)[0].members[B].outcome is Outcome.GOOD


DEVICES = st.integers(0, 2)
JOBS = st.one_of(
    st.tuples(st.just("bump"), DEVICES),
    st.tuples(st.just("take"), st.integers(0, 5)),
    st.tuples(st.just("both"), DEVICES),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("run"), st.booleans(), JOBS),
        st.tuples(st.just("interleave"), st.booleans(), JOBS, JOBS),
        st.tuples(st.just("expect"), st.booleans(), st.none()),
        st.tuples(st.just("look"), st.booleans(), st.none()),
        st.tuples(st.just("lead"), st.booleans(), st.none()),
        st.tuples(st.just("restart"), st.booleans(), st.none()),
    ),
    max_size=25,
)
EXAMPLE = itertools.count()


@dataclass
class Model:
    """What must come of it, by counting what was done."""

    prefix: str
    counters: Counter[DeviceId] = field(default_factory=Counter)
    events: set[str] = field(default_factory=set)

    def device(self, number: int) -> DeviceId:
        return DeviceId(f"{self.prefix}-{number}")

    def job(self, kind: str, number: int) -> Job:
        match kind:
            case "bump":
                return bump(self.device(number))
            case "take":
                return take(f"{self.prefix}-e{number}", self.device(number % 3))
        jobs = (bump(self.device(number)), take(f"{self.prefix}-e{number}", self.device(number)))

        def both(ledger: SqlLedger) -> None:
            for job in jobs:
                job(ledger)

        return both

    def done(self, kind: str, number: int) -> None:
        if kind != "take":
            self.counters[self.device(number)] += 1
        if kind != "bump":
            self.events.add(f"{self.prefix}-e{number}")


@given(steps=STEPS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_update_is_lost_and_no_event_counts_twice_however_two_controllers_interleave(
    where: Where, steps: list[tuple[object, ...]]
) -> None:
    model = Model(f"x{next(EXAMPLE)}")
    ledgers = [SqlLedger(where, lambda: 42.0) for _ in range(2)]

    try:
        for step in steps:
            _take_step(where, ledgers, model, step)
        for ledger in ledgers:
            ledger.catch_up()

        for ledger in ledgers:
            for device, counter in model.counters.items():
                assert ledger.desired(device).counter == counter
                told = [each.counter for each in ledger.issued(device, limit=100)]
                assert told == list(range(counter, 0, -1))
            effects = sum(each.seen_at for each in ledger.devices() if each.id.startswith(f"{model.prefix}-"))
            assert effects == len(model.events)
            taken = [each.id for each in ledger.events(None, 1000) if each.id.startswith(f"{model.prefix}-")]
            assert sorted(taken) == sorted(model.events)
    finally:
        for ledger in ledgers:
            ledger.close()


def _take_step(where: Where, ledgers: list[SqlLedger], model: Model, step: tuple[object, ...]) -> None:
    match step:
        case ("run", bool(who), (str(kind), int(number))):
            carry_out(ledgers[who], model.job(kind, number))
            model.done(kind, number)
        case ("interleave", bool(who), (str(kind), int(number)), (str(other_kind), int(other_number))):
            outer, inner = ledgers[who], ledgers[not who]
            try:
                with outer.transaction():
                    model.job(kind, number)(outer)
                    carry_out(inner, model.job(other_kind, other_number))
            except LedgerMoved:
                carry_out(outer, model.job(kind, number))
            model.done(other_kind, other_number)
            model.done(kind, number)
        case ("expect", bool(who), _):
            ledgers[who].expect([event(f"{model.prefix}-e{number}").id for number in range(6)])
        case ("look", bool(who), _):
            ledgers[who].catch_up()
        case ("lead", bool(who), _):
            ledgers[who].lead(f"holder-{who}", "http://here", 1e-6)
        case ("restart", bool(who), _):
            ledgers[who].close()
            ledgers[who] = SqlLedger(where, lambda: 42.0)


def test_two_threads_that_write_as_fast_as_they_can_lose_nothing(where: Where) -> None:
    rounds = 40
    together = threading.Barrier(2)
    failed: list[BaseException] = []

    def write(name: str) -> None:
        try:
            with SqlLedger(where, lambda: 42.0) as ledger:
                together.wait(60.0)
                for number in range(rounds):
                    carry_out(ledger, bump(A))
                    carry_out(ledger, take(f"e-{number}", B))  # Both have all of them.
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(name,)) for name in ("one", "other")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120.0)

    assert failed == []
    with SqlLedger(where, lambda: 42.0) as ledger:
        assert ledger.desired(A).counter == 2 * rounds
        assert [each.counter for each in ledger.issued(A, limit=1000)] == list(range(2 * rounds, 0, -1))
        known = ledger.device(B)
        assert known is not None
        assert known.seen_at == rounds


# -- the lease ---------------------------------------------------------------------------------------------------------


def test_one_leads_and_the_other_is_told_who(pair: tuple[SqlLedger, SqlLedger]) -> None:
    one, other = pair

    assert one.lead("one", "http://one:8080", 60.0).is_ours
    told = other.lead("other", "http://other:8080", 60.0)

    assert (told.is_ours, told.holder, told.url) == (False, "one", "http://one:8080")
    assert one.lead("one", "http://one:8080", 60.0).is_ours


def test_a_lease_that_was_given_up_is_free_at_once(pair: tuple[SqlLedger, SqlLedger]) -> None:
    one, other = pair
    one.lead("one", "http://one:8080", 60.0)

    other.release("other")  # Not its own.
    assert not other.lead("other", "http://other:8080", 60.0).is_ours
    one.release("one")

    assert other.lead("other", "http://other:8080", 60.0).is_ours


def test_a_lease_that_is_not_renewed_runs_out(pair: tuple[SqlLedger, SqlLedger]) -> None:
    one, other = pair
    one.lead("one", "http://one:8080", 0.2)
    gives_up = time.monotonic() + 30.0

    while not other.lead("other", "http://other:8080", 60.0).is_ours:
        assert time.monotonic() < gives_up
        time.sleep(0.02)

    assert not one.lead("one", "http://one:8080", 60.0).is_ours


def test_whoever_takes_over_knows_everything_and_the_former_can_commit_nothing_it_had_begun(
    pair: tuple[SqlLedger, SqlLedger],
) -> None:
    one, other = pair
    one.lead("one", "http://one:8080", 1e-6)
    carry_out(one, bump(A))

    def stale() -> None:
        with one.transaction():
            bump(A)(one)
            assert other.lead("other", "http://other:8080", 60.0).is_ours

    with pytest.raises(LedgerMoved):
        stale()

    assert other.desired(A).counter == 1
    assert carry_out(other, bump(A)) == 1


def test_a_controller_that_starts_again_under_its_name_goes_on_leading_at_once(where: Where) -> None:
    with SqlLedger(where, lambda: 42.0) as killed:
        killed.lead("one", "http://one:8080", 60.0)

    with SqlLedger(where, lambda: 42.0) as again:
        assert again.lead("one", "http://one:9090", 60.0).is_ours
        assert carry_out(again, bump(A)) == 1


def test_a_lease_of_before_the_machine_booted_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    boot_id = tmp_path / "boot_id"
    boot_id.write_text("first\n")
    monkeypatch.setattr(lease, "BOOT_ID", boot_id)
    with (
        SqlLedger(tmp_path / "muster.db", lambda: 42.0) as one,
        SqlLedger(tmp_path / "muster.db", lambda: 1.0) as other,
    ):
        one.lead("one", "http://one:8080", 60.0)
        assert not other.lead("other", "http://other:8080", 60.0).is_ours

        boot_id.write_text("second\n")

        assert other.lead("other", "http://other:8080", 60.0).is_ours


def test_a_lease_from_a_future_that_cannot_be_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BOOT_ID", tmp_path / "there is none")  # So the wall clock serves, and it was set back.
    with (
        SqlLedger(tmp_path / "muster.db", lambda: 42.0) as one,
        SqlLedger(tmp_path / "muster.db", lambda: 1.0) as other,
    ):
        one.lead("one", "http://one:8080", 30 * 86400.0)

        assert other.lead("other", "http://other:8080", 60.0).is_ours


def test_leading_costs_no_generation_while_it_lasts(pair: tuple[SqlLedger, SqlLedger]) -> None:
    one, _ = pair
    one.lead("one", "http://one:8080", 60.0)
    first = one.reader.generation()

    for _ in range(3):
        one.lead("one", "http://one:8080", 60.0)

    assert one.reader.generation() == first
    assert carry_out(one, bump(A)) == 1
    assert one.reader.generation() == first + 1
    assert one.desired(A).models.keys() == {MODEL}
