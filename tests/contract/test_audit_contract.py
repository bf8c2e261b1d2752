"""The audit log on SQLite and PostgreSQL: in the transaction of the change, without a gap, whoever writes and dies."""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest
import structlog
from sqlalchemy import Connection, text

from harness.ledgers import A
from harness.postgres import Where
from muster_controller.acting import Acting, act_as
from muster_controller.audit.book import AuditBook
from muster_controller.audit.chain import Flaw, Report, Stored
from muster_controller.audit.checkpoint import open_signer
from muster_controller.db.audit import DETAIL_MAX, AuditReader, append, append_all
from muster_controller.db.engine import find_database
from muster_controller.db.errors import LedgerMoved, LedgerUnavailable
from muster_controller.db.ledger import SqlLedger
from muster_controller.db.side import SideDatabase
from muster_controller.errors import AuditBroken
from muster_controller.ports import Device, Note

ANNA = Acting("anna", "req-1", "lunch")
WAIT_S = 30.0

WRITER = """
import itertools, sys
from pathlib import Path
from muster_controller.acting import Acting
from muster_controller.db.audit import append
from muster_controller.db.engine import find_database
from muster_controller.db.side import SideDatabase
where = sys.argv[1] if "://" in sys.argv[1] else Path(sys.argv[1])
with SideDatabase(find_database(where)) as side:
    for number in itertools.count():
        with side.transaction() as connection:
            append(connection, Acting("writer"), "token.create", f"t-{number}", "x" * 200, float(number))
        print(number, flush=True)
"""


@pytest.fixture
def ledger(where: Where) -> Iterator[SqlLedger]:
    with SqlLedger(where, lambda: 42.0) as ledger:
        yield ledger


@pytest.fixture
def side(where: Where, ledger: SqlLedger) -> Iterator[SideDatabase]:
    with SideDatabase(find_database(where)) as side:
        yield side


@pytest.fixture
def reader(where: Where, ledger: SqlLedger) -> Iterator[AuditReader]:
    reader = AuditReader(find_database(where))
    yield reader
    reader.close()


def order(ledger: SqlLedger, what: str = "rollout_pause", subject: str = "r-1") -> None:
    """What the fleet does when a person orders something."""
    with act_as(ANNA), ledger.transaction():
        ledger.save_device(Device(A, seen_at=1.0))
        ledger.note(Note(5.5, what, subject, "said", ANNA.actor))


def oldest_first(reader: AuditReader) -> list[Stored]:
    return list(reversed(reader.lines(limit=1000)))


def checked(reader: AuditReader) -> Report:
    return AuditBook(reader, "plant", None, lambda: 0.0).verify()


def meddle(side: SideDatabase, *statements: str) -> None:
    """Do what somebody with the database in hand can do."""
    with side.transaction() as connection:
        for statement in statements:
            connection.execute(text(statement))


# -- together with the change ------------------------------------------------------------------------------------------


def test_what_the_fleet_changes_is_there_with_actor_reason_and_request(ledger: SqlLedger, reader: AuditReader) -> None:
    order(ledger)

    (line,) = reader.lines(limit=9)

    assert (line.ordinal, line.at, line.actor, line.action) == (1, 5.5, "anna", "rollout.pause")
    assert (line.subject, line.detail, line.reason, line.request_id) == ("r-1", "said", "lunch", "req-1")
    assert checked(reader).holds


def test_what_devices_report_does_not_make_it_grow(ledger: SqlLedger, reader: AuditReader) -> None:
    with ledger.transaction():
        for what in ("fault_seen", "assignment_refused", "device_follows_baseline"):
            ledger.note(Note(1.0, what, "dev-a", "said", "dev-a"))

    assert len(ledger.notes(9)) == 3
    assert reader.lines(limit=9) == []


def test_what_is_rolled_back_leaves_nothing(ledger: SqlLedger, reader: AuditReader) -> None:
    def inner() -> None:
        with ledger.transaction():
            ledger.note(Note(1.0, "rollout_abort", "r-1", "inner"))
            raise KeyError

    with ledger.transaction():
        ledger.note(Note(1.0, "rollout_pause", "r-1", "outer"))
        with pytest.raises(KeyError):
            inner()

    assert [line.detail for line in reader.lines(limit=9)] == ["outer"]


def test_a_controller_that_is_fenced_off_leaves_nothing(where: Where, ledger: SqlLedger, reader: AuditReader) -> None:
    with SqlLedger(where, lambda: 42.0) as other:
        order(other, "rollout_abort", "by the one that leads")

        with pytest.raises(LedgerMoved):
            order(ledger, "rollout_resume", "by the one that only believes it")

    assert [line.subject for line in oldest_first(reader)] == ["by the one that leads"]
    assert checked(reader).holds


def test_text_that_a_database_could_choke_on_still_has_its_hash(side: SideDatabase, reader: AuditReader) -> None:
    with side.transaction() as connection:
        append(connection, Acting("a\0b", "é", "'; --\n\t"), "x", "\N{PILE OF POO}", "y" * (DETAIL_MAX + 1), 1 / 3)

    (line,) = reader.lines(limit=9)

    assert checked(reader).holds
    assert (line.actor, len(line.detail), line.at) == ("a\N{REPLACEMENT CHARACTER}b", DETAIL_MAX, 1 / 3)


# -- several who write -------------------------------------------------------------------------------------------------


def run_all(*jobs: Callable[[], None]) -> None:
    """Run each in a thread of its own; raise what one of them raised."""
    raised: list[BaseException] = []

    def guarded(job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=guarded, args=(job,), daemon=True) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert not any(thread.is_alive() for thread in threads), "somebody waits for somebody else"
    if raised:
        raise raised[0]


def test_many_writers_at_once_leave_no_gap(where: Where, ledger: SqlLedger, reader: AuditReader) -> None:
    each_writes = 15
    with ExitStack() as stack:
        sides = [stack.enter_context(SideDatabase(find_database(where))) for _ in range(2)]

        def beside(side: SideDatabase) -> Callable[[], None]:
            def job() -> None:
                for number in range(each_writes):
                    with side.transaction() as connection:
                        append(connection, Acting("side"), "token.create", f"t-{number}", "", 1.0)

            return job

        def fleet() -> None:
            for _ in range(each_writes):
                order(ledger)

        run_all(beside(sides[0]), beside(sides[0]), beside(sides[1]), fleet)

    assert [line.ordinal for line in oldest_first(reader)] == list(range(1, 4 * each_writes + 1))
    assert checked(reader).holds


def test_the_ledger_waits_for_a_side_transaction_that_appends(
    ledger: SqlLedger, side: SideDatabase, reader: AuditReader
) -> None:
    begun, fleet_has_begun = threading.Event(), threading.Event()

    def beside() -> None:
        with side.transaction() as connection:
            append(connection, Acting("side"), "token.create", "t", "", 1.0)
            begun.set()
            assert fleet_has_begun.wait(WAIT_S)

    def fleet() -> None:
        assert begun.wait(WAIT_S)
        with act_as(ANNA), ledger.transaction():
            ledger.note(Note(5.5, "rollout_pause", "r-1", "said", "anna"))
            fleet_has_begun.set()

    run_all(beside, fleet)

    assert [line.action for line in oldest_first(reader)] == ["token.create", "rollout.pause"]
    assert checked(reader).holds


def test_an_open_transaction_of_the_fleet_holds_nobody_up(
    ledger: SqlLedger, side: SideDatabase, reader: AuditReader
) -> None:
    with act_as(ANNA), ledger.transaction():
        ledger.note(Note(5.5, "rollout_pause", "r-1", "said", "anna"))
        with side.transaction() as connection:  # From another thread, were this real.
            append(connection, Acting("side"), "token.create", "t", "", 1.0)

    assert [line.action for line in oldest_first(reader)] == ["token.create", "rollout.pause"]


def test_a_writer_that_is_killed_leaves_whole_lines(where: Where, ledger: SqlLedger, reader: AuditReader) -> None:
    for _ in range(3):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(where)], stdout=subprocess.PIPE, text=True)
        try:
            assert writer.stdout is not None
            said = [writer.stdout.readline() for _ in range(5)]
            assert said[-1], "the writer did not start"
        finally:
            writer.kill()
            writer.wait(WAIT_S)
            if writer.stdout is not None:
                writer.stdout.close()
        order(ledger)

    report = checked(reader)

    assert report.holds, report.breaks
    assert report.lines >= 3 * 6


# -- reading -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def ten(side: SideDatabase) -> None:
    with side.transaction() as connection:
        for number in range(1, 11):
            who = Acting("anna" if number % 2 else "ben", f"req-{number}")
            append(connection, who, "rollout.pause" if number < 6 else "token.create", f"s-{number}", "", float(number))


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"actor": "ben"}, [10, 8, 6, 4, 2]),
        ({"actor": "ben", "before": 8, "limit": 2}, [6, 4]),
        ({"subject": "s-3"}, [3]),
        ({"action": "rollout.pause", "since": 4.0}, [5, 4]),
        ({"action": "rollout."}, [5, 4, 3, 2, 1]),
        ({"action": "rollout"}, []),
        ({"action": "%."}, []),
        ({"actor": "a\0b"}, []),
        ({"since": 9.0}, [10, 9]),
        ({"until": 2.0}, [2, 1]),
        ({"request_id": "req-7"}, [7]),
        ({"after": 8}, [10, 9]),
    ],
)
@pytest.mark.usefixtures("ten")
def test_the_lines_that_fit_come_newest_first(reader: AuditReader, wanted: dict[str, str], expected: list[int]) -> None:
    found = reader.lines(**{"limit": 9, **wanted})  # type: ignore[arg-type]  # The cases above fit.

    assert [line.ordinal for line in found] == expected


def test_a_log_of_many_pages_is_read_whole(
    side: SideDatabase, reader: AuditReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("muster_controller.db.audit.PAGE", 3)
    with side.transaction() as connection:
        for number in range(9):
            append(connection, ANNA, "x", str(number), "", 1.0)

    assert (checked(reader).lines, checked(reader).holds) == (9, True)
    assert [getattr(item, "ordinal", None) for item in reader.walk(after=6)] == [7, 8, 9, None]


# -- meddling ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("ten")
@pytest.mark.parametrize(
    ("statements", "expected"),
    [
        (["UPDATE audit SET actor = 'eve' WHERE ordinal = 4"], [(4, Flaw.ALTERED)]),
        (["UPDATE audit SET hash = 'ff' WHERE ordinal = 4"], [(4, Flaw.ALTERED)]),
        (["DELETE FROM audit WHERE ordinal = 4"], [(4, Flaw.MISSING)]),
        (["DELETE FROM audit WHERE ordinal > 7"], [(8, Flaw.TRUNCATED)]),
        (
            [
                "DELETE FROM audit WHERE ordinal > 7",
                "UPDATE audit_head SET ordinal = 7",
            ],
            [(7, Flaw.HEAD)],
        ),
        (
            [
                "UPDATE audit SET ordinal = 99 WHERE ordinal = 4",
                "UPDATE audit SET ordinal = 4 WHERE ordinal = 5",
                "UPDATE audit SET ordinal = 5 WHERE ordinal = 99",
            ],
            [(4, Flaw.ALTERED), (5, Flaw.ALTERED), (6, Flaw.ALTERED)],
        ),
        (
            [
                "INSERT INTO audit SELECT 11, at, actor, action, subject, detail, reason, request_id, hash FROM audit"
                " WHERE ordinal = 10"
            ],
            [(11, Flaw.ALTERED), (11, Flaw.HEAD)],
        ),
        (
            [
                "INSERT INTO audit SELECT -1, at, actor, action, subject, detail, reason, request_id, hash FROM audit"
                " WHERE ordinal = 10"
            ],
            [(-1, Flaw.FOREIGN)],
        ),
        (["DELETE FROM audit_head"], [(10, Flaw.HEAD)]),
        (["UPDATE audit_head SET hash = 'ff'"], [(10, Flaw.HEAD)]),
    ],
)
def test_what_is_done_to_the_rows_is_found_and_located(
    side: SideDatabase, reader: AuditReader, statements: list[str], expected: list[tuple[int, Flaw]]
) -> None:
    meddle(side, *statements)

    report = checked(reader)

    assert [(each.ordinal, each.flaw) for each in report.breaks] == expected


def test_a_text_that_is_kept_as_bytes_is_no_line_though_it_hashes_to_the_same(
    where: Where, side: SideDatabase, reader: AuditReader
) -> None:
    if not isinstance(where, Path):
        pytest.skip("PostgreSQL keeps no bytes in a text")
    with side.transaction() as connection:
        append(connection, Acting("YWJj"), "x", "y", "", 1.0)  # Base64, as bytes are written in JSON.

    meddle(side, "UPDATE audit SET actor = x'616263'")

    assert [(each.ordinal, each.flaw) for each in checked(reader).breaks] == [(1, Flaw.GARBLED)]


def test_nothing_is_changed_any_more_once_the_head_is_gone(
    ledger: SqlLedger, side: SideDatabase, reader: AuditReader
) -> None:
    meddle(side, "DELETE FROM audit_head")

    with pytest.raises(LedgerUnavailable, match="audit verify"):
        order(ledger)

    assert ledger.device(A) is None
    with pytest.raises(AuditBroken):
        AuditBook(reader, "plant", None, lambda: 0.0).head()


def test_nothing_is_changed_any_more_once_somebody_wrote_behind_the_head(ledger: SqlLedger, side: SideDatabase) -> None:
    order(ledger)
    meddle(side, "UPDATE audit SET ordinal = 2")

    with pytest.raises(LedgerUnavailable, match="audit verify"):
        order(ledger)


def test_the_head_is_said_in_the_programs_own_log(side: SideDatabase, reader: AuditReader, tmp_path: Path) -> None:
    with side.transaction() as connection:
        append(connection, ANNA, "x", "y", "", 1.0)
    book = AuditBook(reader, "plant", open_signer(tmp_path, "plant"), lambda: 7.0)

    with structlog.testing.capture_logs() as said:
        book.say_head()

    assert said == [{"event": "audit_head", "log_level": "info", **msgspec.to_builtins(book.head(), order="sorted")}]


def test_an_empty_list_of_changes_touches_nothing(side: SideDatabase) -> None:
    def nothing(connection: Connection) -> list[object]:
        return list(append_all(connection, []))

    with side.transaction() as connection:
        assert nothing(connection) == []
