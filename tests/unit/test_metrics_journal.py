"""The book on disk and on its way: what a kill, a full disk, a refusal and an unanswered message leave."""

import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from structlog.testing import capture_logs

from harness.metrics_device import BEGAN, DIGITS, MIXERS, PLACE, PUBLIC, Broker, Device, in_memory, one
from muster_agent.core.periods import CLOSED_S, LATE_S
from muster_agent.errors import JournalFailed
from muster_agent.metrics.book import Book, Stage
from muster_agent.metrics.journal import MetricsJournal, read
from muster_agent.metrics.sending import choose, waits_for
from muster_shared.ids import Sha256
from muster_shared.metrics import DAY_S, HOUR_S, key_id


@pytest.fixture
def folder() -> Iterator[Path]:
    with in_memory() as found:
        yield found


def after_an_hour(folder: Path, broker: Broker) -> Device:
    """Return a device with one inference a minute in the first hour, which is over; nothing has left."""
    device = Device(folder, broker)
    device.until(BEGAN + HOUR_S, 60.0)
    return device


def quietly(device: Device, until: float, step_s: float = 60.0) -> None:
    device.until(until, step_s, lambda at: [one(0)])


def test_kill_nine_costs_the_inferences_of_the_last_minute_at_most(folder: Path) -> None:
    device = Device(folder, Broker())
    device.until(BEGAN + 600, 60.0)
    before = device.inferences

    device.kill()

    assert device.inferences == before == 10


def test_a_window_that_was_under_way_at_a_kill_is_sent_again_with_the_same_nonce(folder: Path) -> None:
    broker = Broker(answers=False)
    device = after_an_hour(folder, broker)
    quietly(device, BEGAN + HOUR_S + 1860)
    assert len(broker.arrived) == 1

    device.kill()
    broker.answers = True
    quietly(device, BEGAN + 2 * HOUR_S - 60)

    assert len(broker.arrived) == 2
    assert len(broker.windows) == 1
    assert device.book.totals.sent_hours == 1
    assert not device.book.parts


def test_a_kill_between_keeping_and_publishing_sends_the_window_once(folder: Path) -> None:
    broker = Broker()
    device = after_an_hour(folder, broker)
    (part,) = device.book.parts.values()
    device.book.handed_over(part.key)
    device.journal.keep(device.book)

    device.kill()
    quietly(device, BEGAN + HOUR_S + 1860)

    assert [window.nonce for _, window in broker.arrived] == [part.window and part.window.nonce]


def test_what_may_have_arrived_is_never_merged_and_is_told_as_unconfirmed(folder: Path) -> None:
    broker = Broker(answers=False)
    device = after_an_hour(folder, broker)
    quietly(device, BEGAN + HOUR_S + 1860)
    broker.is_up = False

    quietly(device, BEGAN + HOUR_S + CLOSED_S + 60)

    assert device.book.totals.unconfirmed == 1
    assert all(part.start != BEGAN for part in device.book.parts.values() if part.period_s == HOUR_S)
    assert not [part for part in device.book.parts.values() if part.period_s == DAY_S and part.counted.inferences]


def test_an_answer_that_comes_after_it_was_told_as_unconfirmed_changes_nothing(folder: Path) -> None:
    broker = Broker()
    device = after_an_hour(folder, broker)
    device.hear = lambda: None  # type: ignore[method-assign]  # The answer is still on its way.
    quietly(device, BEGAN + HOUR_S + CLOSED_S + 60)
    assert device.book.totals.unconfirmed == 1
    del device.hear

    quietly(device, BEGAN + HOUR_S + CLOSED_S + 120)

    assert device.book.totals.unconfirmed == 1


def test_a_window_that_the_broker_refuses_is_tried_again_and_merged_in_the_end(folder: Path) -> None:
    broker = Broker(refuses=True)
    device = after_an_hour(folder, broker)

    quietly(device, BEGAN + HOUR_S + LATE_S + 60)

    (day,) = (part for part in device.book.parts.values() if part.period_s == DAY_S)
    assert day.counted.inferences == 60
    assert broker.last_mid > 1
    assert not broker.arrived


def test_what_was_handed_over_in_an_earlier_life_is_not_merged_when_it_is_refused_now(folder: Path) -> None:
    broker = Broker(answers=False)
    device = after_an_hour(folder, broker)
    quietly(device, BEGAN + HOUR_S + 1860)
    device.kill()
    broker.refuses = True

    quietly(device, BEGAN + HOUR_S + CLOSED_S + 60)

    assert device.book.totals.unconfirmed == 1
    assert not any(part.counted.inferences for part in device.book.parts.values())


def test_a_link_without_room_takes_the_window_later(folder: Path) -> None:
    broker = Broker(is_full=True)
    device = after_an_hour(folder, broker)
    quietly(device, BEGAN + HOUR_S + 1860)
    assert [part.stage for part in device.book.parts.values()] == [Stage.WAITING]

    broker.is_full = False
    quietly(device, BEGAN + HOUR_S + 1980)

    assert len(broker.windows) == 1


def test_without_a_mixer_nothing_leaves_and_it_is_said_why(folder: Path) -> None:
    broker = Broker()
    device = Device(folder, broker, mixers={})
    device.until(BEGAN + 3 * HOUR_S, 60.0)

    assert not broker.arrived
    assert "mixer" in waits_for(device.sending, device)
    device.mixers.update(MIXERS)
    quietly(device, BEGAN + 3 * HOUR_S + 1860)

    assert {window.period_start for window in broker.windows.values()} == {BEGAN + 2 * HOUR_S}
    assert waits_for(device.sending, device) == ""


def test_while_the_journal_cannot_be_written_it_is_measured_in_memory_and_nothing_leaves(folder: Path) -> None:
    broker = Broker()
    device = after_an_hour(folder, broker)
    blocker = sqlite3.connect(device.path, isolation_level=None)
    device.journal._open().execute("PRAGMA busy_timeout=0")
    blocker.execute("BEGIN IMMEDIATE")

    with capture_logs() as logs:
        device.until(BEGAN + HOUR_S + 2400, 60.0)
    assert [entry["event"] for entry in logs] == ["metrics_journal_lost"]
    assert not broker.arrived
    assert device.inferences == 60 + 40

    blocker.execute("ROLLBACK")
    blocker.close()
    quietly(device, BEGAN + 2 * HOUR_S - 60)

    assert {window.period_start for window in broker.windows.values()} == {BEGAN}
    device.kill()
    assert device.inferences == 40


def test_a_full_journal_stays_whole(folder: Path) -> None:
    journal = MetricsJournal(folder / "m.sqlite", bytes_max=64 * 1024)
    book = journal.load(PLACE)
    for hour in range(2000):
        book.count([one(1)])
        book.advance(BEGAN + hour * HOUR_S, Random(0))
        try:
            journal.keep(book)
        except JournalFailed:
            break
    else:
        raise AssertionError("it was never full")

    journal.close()

    kept = MetricsJournal(folder / "m.sqlite").load(PLACE)
    assert len(kept.parts) == len({part.start for part in kept.parts.values()}) > 20
    assert (folder / "m.sqlite").stat().st_size <= 64 * 1024


def test_a_journal_that_opens_later_goes_on_with_what_both_knew(folder: Path) -> None:
    before = MetricsJournal(folder / "metrics.sqlite")
    book = before.load(PLACE)
    book.advance(BEGAN + 60, Random(0))
    book.count([one(5)])
    before.keep(book)
    before.close()
    away = folder / "away.sqlite"
    (folder / "metrics.sqlite").rename(away)
    (folder / "metrics.sqlite").mkdir()
    device = Device(folder, Broker())
    device.until(BEGAN + 120, 60.0)
    was_failing = device.sending.is_failing

    (folder / "metrics.sqlite").rmdir()
    away.rename(folder / "metrics.sqlite")
    device.look()

    assert (was_failing, device.sending.is_failing) == (True, False)
    assert device.inferences == 7


@pytest.mark.parametrize("content", [b"not a database at all" * 100, b""])
def test_a_file_that_is_no_journal_is_set_aside(folder: Path, content: bytes) -> None:
    (folder / "metrics.sqlite").write_bytes(content)

    device = after_an_hour(folder, Broker())

    assert device.inferences == 60
    assert (folder / "metrics.sqlite.damaged").exists() is bool(content)


def test_the_book_reads_back_as_it_was_kept(folder: Path) -> None:
    device = Device(folder, Broker(is_up=False))
    device.until(BEGAN + DAY_S + 3 * HOUR_S + 600, 600.0)

    found = read(device.path, PLACE)

    assert found.parts == device.book.parts
    assert found.running == device.book.running
    assert found.taken == device.book.taken
    assert found.totals == device.book.totals


def test_what_detectors_remember_is_there_at_the_next_start(folder: Path) -> None:
    journal = MetricsJournal(folder / "metrics.sqlite")
    journal.load(PLACE)
    journal.remember({Sha256("a"): b"1", Sha256("b"): b"2"})
    journal.remember({Sha256("b"): b"3"})
    journal.close()

    again = MetricsJournal(folder / "metrics.sqlite")
    again.load(PLACE)

    assert (again.recall(Sha256("a")), again.recall(Sha256("b"))) == (b"", b"3")


def test_without_a_clock_nothing_is_closed_and_nothing_leaves(folder: Path) -> None:
    broker = Broker()
    device = Device(folder, broker)
    device.knows_time = False
    device.until(BEGAN + 5 * HOUR_S, 600.0)
    device.kill()
    assert not device.book.parts
    assert device.inferences == 30

    device.knows_time = True
    quietly(device, BEGAN + 6 * HOUR_S + 1860)

    assert {window.period_start for window in broker.windows.values()} == {BEGAN + 5 * HOUR_S}


def test_the_mixer_is_the_one_that_is_wanted_or_the_first_and_always_a_key_under_its_own_id() -> None:
    other = bytes(32)
    both = {key_id(other): other, key_id(PUBLIC): PUBLIC, "0" * 16: bytes(31) + b"x", "f": b"short"}

    first, wanted = choose(both, ""), choose(both, key_id(PUBLIC))

    assert first is not None
    assert first.key == min(key_id(other), key_id(PUBLIC))
    assert wanted is not None
    assert wanted.public_key == PUBLIC
    assert choose(both, "e" * 16) is None
    assert choose({}, "") is None


def test_more_releases_than_units_are_counted_as_dropped() -> None:
    book = Book(PLACE)

    book.count([one(2, release=replace(DIGITS, version=f"1.{number}.0")) for number in range(70)])

    assert len(book.running.counted) == 64
    assert book.totals.dropped_inferences == 12
