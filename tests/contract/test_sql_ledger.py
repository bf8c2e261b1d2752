"""What `SqlLedger` promises beyond the port, on SQLite and on PostgreSQL: nesting, cost, pruning, and hard times."""

import sqlite3
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from harness.ledgers import MODEL, R1, A, B, C, desired, event, large_rollout, rollout, with_members
from harness.postgres import Postgres, Where
from muster_controller.core.rollout.events import Changes
from muster_controller.core.rollout.state import Outcome
from muster_controller.db.engine import find_database
from muster_controller.db.errors import LedgerMisused, LedgerRefused, LedgerTooNew, LedgerUnavailable, LedgerUrlInvalid
from muster_controller.db.ledger import SqlLedger
from muster_controller.db.snapshot import Touched
from muster_controller.db.tables import Row
from muster_controller.ports import Baseline, Device, Note
from muster_shared.ids import DeviceId, EventId, RolloutId


@pytest.fixture
def ledger(where: Where) -> Iterator[SqlLedger]:
    with SqlLedger(where, lambda: 42.0) as ledger:
        yield ledger


def rows_written(ledger: SqlLedger, write: Callable[[], None]) -> int:
    """Return how many rows `write` inserted or updated."""
    if not ledger._database.is_postgresql:
        before = _changes(ledger)
        write()
        return _changes(ledger) - before
    written: list[int] = []

    def count(_c: Any, cursor: Any, statement: str, *_rest: Any) -> None:
        if statement.startswith(("INSERT", "UPDATE", "DELETE")):
            written.append(cursor.rowcount)

    sqlalchemy.event.listen(ledger._writer, "after_cursor_execute", count)
    write()
    return sum(written)


def _changes(ledger: SqlLedger) -> int:
    """Return the rows that the writer's connection to SQLite has changed since it was opened."""
    with ledger._writer.connect() as connection:
        driver = connection.connection.driver_connection
        assert isinstance(driver, sqlite3.Connection)
        return driver.total_changes


def test_an_inner_transaction_that_fails_is_forgotten_and_the_outer_one_kept(ledger: SqlLedger) -> None:
    def fail() -> None:
        with ledger.transaction():
            ledger.save_device(Device(A, seen_at=2.0))
            ledger.save_desired(desired(counter=1))
            raise ZeroDivisionError

    with ledger.transaction():
        ledger.save_device(Device(A, seen_at=1.0))
        with pytest.raises(ZeroDivisionError):
            fail()
        with ledger.transaction():
            ledger.save_device(Device(B))

    stored = ledger.reader.everything()
    assert stored.devices == {A: Device(A, seen_at=1.0), B: Device(B)}
    assert stored.desired == {}
    assert ledger.reader.issued(A, limit=5) == []


def test_an_outer_transaction_that_fails_takes_the_inner_ones_with_it(ledger: SqlLedger) -> None:
    def fail() -> None:
        with ledger.transaction():
            with ledger.transaction():
                ledger.save_device(Device(A))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()

    assert ledger.reader.everything().devices == {}
    assert ledger.device(A) is None


def test_inner_transactions_put_their_changes_of_one_rollout_together(ledger: SqlLedger, where: Where) -> None:
    first = rollout()
    with ledger.transaction():
        ledger.save_rollout(first, None, Changes())
    second = with_members(first, replace(first.members[B], assigned_at=1.0))
    third = with_members(second, replace(first.members[C], assigned_at=2.0))

    with ledger.transaction():
        with ledger.transaction():
            ledger.save_rollout(second, first, Changes(frozenset({B})))
        with ledger.transaction():
            ledger.save_rollout(third, second, Changes(frozenset({C})))

    with SqlLedger(where, lambda: 42.0) as again:
        assert again.rollout(R1) == third


def test_a_write_outside_a_transaction_is_refused(ledger: SqlLedger) -> None:
    with pytest.raises(LedgerMisused):
        ledger.save_device(Device(A))


def test_a_second_thread_is_refused(ledger: SqlLedger) -> None:
    refused: list[Exception] = []

    def intrude() -> None:
        try:
            with ledger.transaction():
                pass
        except LedgerMisused as error:
            refused.append(error)

    with ledger.transaction():
        thread = threading.Thread(target=intrude)
        thread.start()
        thread.join(10.0)

    assert len(refused) == 1


def test_of_a_rollout_only_the_named_rows_are_written(ledger: SqlLedger) -> None:
    before = large_rollout("r-1", 500)
    with ledger.transaction():
        ledger.save_rollout(before, None, Changes())
    device = DeviceId("dev-00007")
    after = with_members(before, replace(before.members[device], outcome=Outcome.BAD))

    def save() -> None:
        with ledger.transaction():
            ledger.save_rollout(after, before, Changes(frozenset({device})))

    assert rows_written(ledger, save) == 3  # The rollout, the device, and the writer's row.


def test_a_transaction_that_writes_nothing_costs_no_sql(ledger: SqlLedger) -> None:
    statements: list[str] = []
    sqlalchemy.event.listen(ledger._writer, "before_cursor_execute", lambda *args: statements.append(args[2]))

    with ledger.transaction():
        ledger.devices()
        ledger.rollouts(running=True)

    assert statements == []


def test_events_that_were_looked_up_together_are_not_looked_up_again(ledger: SqlLedger) -> None:
    with ledger.transaction():
        ledger.take_event(event("e-1"))
    ledger.prune(0.0)  # It forgets what it had in memory.
    statements: list[str] = []
    sqlalchemy.event.listen(ledger.reader._engine, "before_cursor_execute", lambda *args: statements.append(args[2]))

    ledger.expect([EventId("e-1"), EventId("e-2"), EventId("e-3")])
    asked = len(statements)
    with ledger.transaction():
        assert ledger.take_event(event("e-2"))
        assert ledger.take_event(event("e-3"))
        assert not ledger.take_event(event("e-3"))

    assert len(statements) == asked
    assert ledger.has_event(EventId("e-1"))
    assert ledger.has_event(EventId("e-2"))


def test_a_commit_that_is_refused_leaves_the_cache_as_it_was(ledger: SqlLedger) -> None:
    with ledger.transaction():
        ledger.save_rollout(rollout(), None, Changes())

    def fail() -> None:
        with ledger.transaction():
            ledger.save_device(Device(A))
            ledger.save_rollout(rollout(), None, Changes())  # It is there already: the database refuses.

    with pytest.raises(LedgerRefused):
        fail()

    assert ledger.device(A) is None
    assert dict(ledger.committed().devices) == {}
    with ledger.transaction():
        ledger.save_device(Device(B))
    assert set(ledger.reader.everything().devices) == {B}


def test_a_number_that_no_column_holds_is_refused(ledger: SqlLedger) -> None:
    before = rollout()

    def fail() -> None:
        with ledger.transaction():
            ledger.save_rollout(with_members(before, replace(before.members[A], bytes_fetched=2**70)), None, Changes())

    with pytest.raises(LedgerRefused):
        fail()

    assert ledger.reader.rollouts() == []


def test_a_commit_says_what_it_touched(where: Where) -> None:
    told: list[Touched] = []
    with SqlLedger(where, lambda: 42.0, told.append) as ledger, ledger.transaction():
        ledger.save_device(Device(A))
        ledger.save_rollout(rollout(), None, Changes())
        ledger.note(Note(1.0, "x", "y", "z"))

    assert told == [Touched(frozenset({A}), frozenset({RolloutId("r-1")}), 1)]


def test_what_is_committed_is_one_object_until_the_next_commit(ledger: SqlLedger) -> None:
    with ledger.transaction():
        ledger.save_baseline(Baseline(rollout().release, R1, "site=oslo", 1.0))
        ledger.save_baseline(Baseline(rollout().release, R1, "", 2.0))

    first = ledger.committed()
    assert ledger.committed() is first
    with ledger.transaction():
        ledger.save_device(Device(A))

    assert [each.selector for each in first.baselines[MODEL]] == ["", "site=oslo"]
    assert A not in first.devices
    assert A in ledger.committed().devices


def test_old_history_is_pruned_but_not_what_a_device_ran_then(where: Where) -> None:
    now = [10.0]
    with SqlLedger(where, lambda: now[0]) as ledger:
        for moment in (10.0, 20.0):
            now[0] = moment
            with ledger.transaction():
                ledger.take_event(event(f"e-{moment:g}"))
                ledger.note(Note(moment, "x", "y", "z"))
        for counter, at in ((1, 5.0), (2, 10.0), (3, 20.0)):
            with ledger.transaction():
                ledger.save_desired(desired(counter=counter, at=at))
        with ledger.transaction():
            ledger.save_desired(desired(B, counter=1, at=1.0))

        ledger.prune(15.0)

        assert [each.id for each in ledger.events(None, 9)] == ["e-20"]
        assert [each.at for each in ledger.notes(9)] == [20.0]
        assert [each.counter for each in ledger.issued(A, limit=9)] == [3, 2]
        assert [each.counter for each in ledger.issued(B, limit=9)] == [1]
        with ledger.transaction():
            ledger.save_device(Device(A))  # The fence moved with it.


def test_the_migrations_make_the_tables_that_the_code_declares(ledger: SqlLedger) -> None:
    with ledger._writer.connect() as connection:
        differences = compare_metadata(MigrationContext.configure(connection), Row.metadata)

    assert differences == []


def test_a_database_of_a_newer_controller_is_left_alone(where: Where) -> None:
    with SqlLedger(where, lambda: 42.0) as ledger, ledger._writer.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")

    with pytest.raises(LedgerTooNew):
        SqlLedger(where, lambda: 42.0)


def test_controllers_that_start_together_on_an_empty_database_take_turns(where: Where) -> None:
    failed: list[BaseException] = []
    together = threading.Barrier(3)

    def start() -> None:
        together.wait(30.0)
        try:
            SqlLedger(where, lambda: 42.0).close()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=start) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60.0)

    assert failed == []


# -- SQLite alone ------------------------------------------------------------------------------------------------------


def test_a_writer_waits_for_another_that_turns_the_log_on(tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "muster.db", isolation_level=None, check_same_thread=False)
    other.execute("CREATE TABLE something (x)")
    other.execute("BEGIN IMMEDIATE")
    opened: list[SqlLedger] = []
    thread = threading.Thread(target=lambda: opened.append(SqlLedger(tmp_path / "muster.db", lambda: 42.0)))

    thread.start()
    thread.join(0.3)  # It has met the lock by then, or will: either way it must end well.
    other.execute("COMMIT")
    other.close()
    thread.join(30.0)

    assert len(opened) == 1
    opened[0].close()


def test_a_commit_to_sqlite_is_on_disk_before_it_returns(tmp_path: Path) -> None:
    with SqlLedger(tmp_path / "muster.db", lambda: 42.0) as ledger, ledger._writer.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1


def test_a_file_that_is_no_database_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "muster.db").write_bytes(b"something else" * 100)

    with pytest.raises(LedgerUnavailable, match=r"muster\.db"):
        SqlLedger(tmp_path / "muster.db", lambda: 42.0)


def test_a_sqlite_url_is_the_file_that_it_names(tmp_path: Path) -> None:
    with SqlLedger(f"sqlite:///{tmp_path}/muster.db", lambda: 42.0):
        pass

    assert (tmp_path / "muster.db").exists()


# -- PostgreSQL alone --------------------------------------------------------------------------------------------------


def test_a_commit_to_postgresql_is_on_disk_before_it_returns(postgres: Postgres) -> None:
    with SqlLedger(postgres.new_database(), lambda: 42.0) as ledger, ledger._writer.connect() as connection:
        assert connection.exec_driver_sql("SHOW synchronous_commit").scalar() == "on"


def test_a_postgresql_that_restarts_is_used_again(postgres: Postgres) -> None:
    with SqlLedger(postgres.new_database(), lambda: 42.0) as ledger:
        with ledger.transaction():
            ledger.save_device(Device(A, seen_at=1.0))

        postgres.restart()

        with ledger.transaction():
            ledger.save_device(Device(B))
        assert set(ledger.reader.everything().devices) == {A, B}
        assert ledger.reader.events(limit=1) == []


def test_a_commit_that_is_cut_off_is_unavailable_and_then_works_again(postgres: Postgres) -> None:
    with SqlLedger(postgres.new_database(), lambda: 42.0) as ledger:
        cut(ledger, "INSERT", postgres.restart)

        def save() -> None:
            with ledger.transaction():
                ledger.save_device(Device(A))

        with pytest.raises(LedgerUnavailable):
            save()
        assert ledger.device(A) is None
        save()
        assert set(ledger.reader.everything().devices) == {A}


def test_a_commit_whose_answer_got_lost_is_known_at_the_next_look(postgres: Postgres) -> None:
    with SqlLedger(postgres.new_database(), lambda: 42.0) as ledger:
        original = ledger._writer.dialect.do_commit

        def committed_but_cut_off(connection: Any) -> None:
            ledger._writer.dialect.do_commit = original  # type: ignore[method-assign]
            original(connection)
            raise psycopg.OperationalError("the connection is gone")

        ledger._writer.dialect.do_commit = committed_but_cut_off  # type: ignore[method-assign]

        def save() -> bool:
            with ledger.transaction():
                return ledger.take_event(event("e-1"))

        with pytest.raises(LedgerUnavailable):
            save()
        assert save() is False
        assert len(ledger.events(None, 5)) == 1


@pytest.mark.parametrize(
    "url",
    [
        "mysql://root:secret@db/muster",
        "secret",
        "postgresql+asyncpg://u:secret@db/muster",
        "sqlite://",
        "sqlite:///:memory:",
        "http://secret@x",
    ],
)
def test_a_url_of_another_kind_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(LedgerUrlInvalid) as refused:
        find_database(url)

    assert "secret" not in str(refused.value)


def test_a_password_is_in_no_message() -> None:
    url = "postgres://muster:s3cret@127.0.0.1:1/muster?password=s3cret&connect_timeout=1"
    database = find_database(url)

    with pytest.raises(LedgerUnavailable) as unavailable:
        SqlLedger(url, lambda: 42.0)

    assert database.label == "postgresql://muster:***@127.0.0.1:1/muster"
    assert "s3cret" not in f"{database!r} {unavailable.value} {unavailable.value.__cause__}"


def cut(ledger: SqlLedger, statement: str, action: Callable[[], None]) -> None:
    """Have `action` happen once, right before `statement`."""

    def before(_c: Any, _u: Any, said: str, *_rest: Any) -> None:
        if said.startswith(statement):
            sqlalchemy.event.remove(ledger._writer, "before_cursor_execute", before)
            action()

    sqlalchemy.event.listen(ledger._writer, "before_cursor_execute", before)
