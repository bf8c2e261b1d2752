"""The ledger of a mixer: what is charged once, what is refused, what survives, and what is gone."""

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muster_controller.mixer import ledger as ledger_module
from muster_controller.mixer.accounting import budget_nano, release_nano
from muster_controller.mixer.batching import OLD_S, OpenPeriod, Pending, Period
from muster_controller.mixer.errors import MixLedgerDamaged, MixLedgerUnavailable
from muster_controller.mixer.ledger import PERIODS_KEPT_S, MixLedger
from muster_shared.ids import ModelName
from muster_shared.metrics import DAY_S, HOUR_S, RELEASES_A_DAY, RHO_DAY, Cell, Kind, Mixed

DAY = Period(20_000 * DAY_S, DAY_S)
HOURS = [Period(DAY.start + hour * HOUR_S, HOUR_S) for hour in range(24)]
CELL = Cell(model=ModelName("digits"), version="1.0.0", device_class="pi5", classes=10)
RELEASE, BUDGET = release_nano(RHO_DAY), budget_nano(RHO_DAY)
NONCE = "0123456789abcdef" * 2


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "mixer" / "ledger.db"


@pytest.fixture
def ledger(path: Path) -> Iterator[MixLedger]:
    opened = MixLedger(path)
    yield opened
    opened.close()


def charge(ledger: MixLedger, period: Period, release: int = RELEASE, budget: int = BUDGET) -> bool:
    with ledger.transaction():
        return ledger.charge(period, release, budget)


def batch(name: str) -> Mixed:
    return Mixed(
        batch=name,
        mixer="one",
        cell=CELL,
        period_start=DAY.start,
        period_s=DAY_S,
        devices=20,
        sums={Kind.DRIFT: (1, 2, 3, 4)},
        sigma={Kind.DRIFT: 5.0},
        mixed_at=0.0,
    )


def test_a_day_pays_for_all_its_periods_and_for_each_once(ledger: MixLedger) -> None:
    paid = [charge(ledger, period) for period in [*HOURS, DAY, DAY, HOURS[3]]]

    assert all(paid)
    (budget,) = ledger.budgets(40, BUDGET)
    assert budget.day == 20_000
    assert budget.rho_spent == pytest.approx(RELEASES_A_DAY * RELEASE / 1e9)
    assert budget.rho_spent <= budget.rho_budget == RHO_DAY


def test_a_spent_budget_refuses_and_that_of_the_next_day_does_not(ledger: MixLedger) -> None:
    for period in HOURS[:20]:
        assert charge(ledger, period)

    lowered = budget_nano(0.05)

    assert not charge(ledger, HOURS[20], release_nano(0.05), lowered)
    assert charge(ledger, Period(DAY.end, HOUR_S), release_nano(0.05), lowered)


def test_a_day_that_is_published_again_with_less_noise_pays_the_difference(ledger: MixLedger) -> None:
    charge(ledger, DAY, release_nano(0.01))

    charge(ledger, DAY)
    charge(ledger, DAY, release_nano(0.01))

    assert ledger.budgets(1, BUDGET)[0].rho_spent == pytest.approx(RELEASE / 1e9)


@given(charges=st.lists(st.tuples(st.sampled_from([*HOURS, DAY]), st.integers(1, 3 * RELEASE)), max_size=60))
@settings(max_examples=25, deadline=None)
def test_whatever_is_charged_never_exceeds_the_budget(
    tmp_path_factory: pytest.TempPathFactory, charges: list[tuple[Period, int]]
) -> None:
    ledger = MixLedger(tmp_path_factory.mktemp("ledger") / "ledger.db")

    for period, release in charges:
        charge(ledger, period, release)

    assert all(one.rho_spent <= one.rho_budget for one in ledger.budgets(40, BUDGET))
    ledger.close()


def test_what_was_committed_is_there_after_the_process_died_and_the_rest_is_not(path: Path, ledger: MixLedger) -> None:
    child = os.fork()
    if child == 0:  # It dies within a transaction, as by kill -9.
        dying = MixLedger(path)
        with dying.transaction():
            dying.charge(HOURS[0], RELEASE, BUDGET)
            dying.publish(HOURS[0], [batch("a")], 5.0)
        dying._database.execute("BEGIN IMMEDIATE")
        dying.charge(HOURS[1], RELEASE, BUDGET)
        dying.publish(HOURS[1], [batch("b")], 5.0)
        os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9

    reopened = MixLedger(path)

    assert [one.batch for one in reopened.outbox(0, 10)] == ["a"]
    assert reopened.budgets(40, BUDGET)[0].rho_spent == RELEASE / 1e9
    reopened.close()


def test_sums_come_back_as_they_were(ledger: MixLedger) -> None:
    pending = Pending(7, {Kind.CLASSES: {0: 64, 9: 384}, Kind.LATENCY: {}}, HOURS[0].end)

    with ledger.transaction():
        ledger.save(HOURS[0], CELL, pending, 7)

    assert ledger.pending(HOURS[0], CELL) == pending
    assert ledger.pendings(HOURS[0]) == {CELL: pending}
    assert ledger.pending(HOURS[1], CELL) is None
    assert ledger.open_periods() == (OpenPeriod(HOURS[0], HOURS[0].end),)
    assert (ledger.noted(), ledger.cells()) == (7, 1)


def test_a_nonce_is_new_once_in_each_period_until_the_period_is_closed(ledger: MixLedger) -> None:
    with ledger.transaction():
        seen = [ledger.note(period, NONCE) for period in (HOURS[0], HOURS[0], HOURS[1])]
        ledger.end(HOURS[0])

    assert seen == [True, False, True]
    assert ledger.is_closed(HOURS[0])
    assert not ledger.is_closed(HOURS[1])


def test_nothing_of_the_sums_is_left_in_the_files_once_they_are_published(path: Path, ledger: MixLedger) -> None:
    secret = {Kind.CLASSES: {place: 0x5EC2E7 for place in range(10)}}
    with ledger.transaction():
        ledger.save(HOURS[0], CELL, Pending(20, secret, 1), 20)
    mark = (0x5EC2E7).to_bytes(4, "big")
    files = [path, path.with_name("ledger.db-wal")]
    assert any(mark in one.read_bytes() for one in files)

    with ledger.transaction():
        ledger.drop(HOURS[0], [CELL])
        ledger.end(HOURS[0])
    ledger.wipe_traces()

    assert not any(mark in one.read_bytes() for one in files if one.exists())


def test_old_periods_are_closed_and_their_nonces_and_at_last_they_are_forgotten(ledger: MixLedger) -> None:
    with ledger.transaction():
        ledger.charge(DAY, RELEASE, BUDGET)
        ledger.note(DAY, NONCE)

    ledger.end_old(DAY.end + OLD_S)
    assert not ledger.is_closed(DAY)
    ledger.end_old(DAY.end + OLD_S + 1)
    assert ledger.is_closed(DAY)
    assert ledger.budgets(40, BUDGET)
    ledger.end_old(DAY.end + PERIODS_KEPT_S + 1)

    assert ledger.budgets(40, BUDGET) == ()


def test_the_outbox_keeps_what_is_not_acknowledged_in_order(ledger: MixLedger) -> None:
    charge(ledger, DAY)
    with ledger.transaction():
        ledger.publish(DAY, [batch(name) for name in "abc"], 5.0)

    ledger.acknowledged(["b", "unknown"])

    assert [one.batch for one in ledger.outbox(0, 10)] == ["a", "c"]
    assert [one.batch for one in ledger.outbox(ledger.outbox(0, 1)[0].seq, 10)] == ["c"]
    assert ledger.releases(DAY) == 1


def test_a_full_outbox_drops_the_oldest_and_counts_them(ledger: MixLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "OUTBOX_MAX", 3)

    charge(ledger, DAY)
    with ledger.transaction():
        ledger.publish(DAY, [batch(name) for name in "abcde"], 5.0)

    assert [one.batch for one in ledger.outbox(0, 10)] == ["c", "d", "e"]
    assert ledger.counters() == {"outbox_dropped": 2}


def test_a_damaged_ledger_is_refused_and_left_where_it_is(path: Path, ledger: MixLedger) -> None:
    charge(ledger, DAY)
    ledger.close()
    raw = bytearray(path.read_bytes())
    raw[:200] = b"\0" * 200
    path.write_bytes(raw)

    with pytest.raises(MixLedgerDamaged, match="what was spent"):
        MixLedger(path)

    assert path.read_bytes() == raw


def test_a_ledger_of_a_newer_version_is_refused(path: Path, ledger: MixLedger) -> None:
    ledger.close()
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version = 99")
    database.close()

    with pytest.raises(MixLedgerDamaged, match="newer muster"):
        MixLedger(path)


def test_a_ledger_that_another_holds_is_unavailable_and_nothing_was_written(path: Path, ledger: MixLedger) -> None:
    ledger._database.execute("PRAGMA busy_timeout = 1")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    with pytest.raises(MixLedgerUnavailable):
        charge(ledger, DAY)

    other.execute("ROLLBACK")
    other.close()
    assert ledger.budgets(40, BUDGET) == ()
    assert charge(ledger, DAY)


def test_a_ledger_is_read_beside_the_mixer_that_writes_it(path: Path, ledger: MixLedger) -> None:
    charge(ledger, DAY)

    reader = MixLedger(path, read_only=True)

    assert len(reader.budgets(40, BUDGET)) == 1
    with pytest.raises(MixLedgerUnavailable):
        charge(reader, HOURS[0])
    reader.close()


def test_only_its_owner_may_read_the_ledger(path: Path, ledger: MixLedger) -> None:
    assert path.stat().st_mode & 0o077 == 0
