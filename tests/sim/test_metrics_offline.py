"""Thirty days without a broker, and seventy: what leaves in the end, under virtual time, with kills in between."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from harness.metrics_device import BEGAN, DIGITS, Broker, Device, in_memory, one
from muster_agent.core.periods import DAYS_MAX
from muster_agent.metrics.port import Tally
from muster_shared.metrics import DAY_S, HOUR_S, UNITS, Kind, units

STEP_S = 1200.0


@pytest.fixture
def folder() -> Iterator[Path]:
    with in_memory() as found:
        yield found


def of_the_day(count: int) -> Callable[[float], list[Tally]]:
    """Return what counts inferences of a class that each day has for its own: so it can be told where they went."""
    return lambda at: [one(count if at % (7 * HOUR_S) > HOUR_S else 0, place=int((at - 1 - BEGAN) // DAY_S) % 10)]


def test_thirty_days_without_a_broker_leave_one_window_a_day_and_nothing_is_lost(folder: Path) -> None:
    broker = Broker(is_up=False)
    device = Device(folder, broker)
    for day in range(30):
        device.until(BEGAN + day * DAY_S + 17 * HOUR_S, STEP_S, of_the_day(1))
        device.kill() if day % 3 else device.restart()
        device.until(BEGAN + (day + 1) * DAY_S, STEP_S, of_the_day(2))
    counted = device.counted
    assert device.inferences == counted
    assert not broker.arrived
    back = device.at

    broker.is_up = True
    device.until(back + 2 * HOUR_S, 60.0, lambda at: [one(0)])
    device.kill()
    device.until(back + 6 * HOUR_S, STEP_S, lambda at: [one(0)])

    windows = broker.windows.values()
    days = [window for window in windows if window.period_s == DAY_S]
    # The last hour of the last day had not been late when the broker came back: it left as an hour.
    hours = sorted(window.period_start for window in windows if window.period_s == HOUR_S)
    assert sorted(window.period_start for window in days) == [BEGAN + day * DAY_S for day in range(30)]
    assert hours[:2] == [int(back) - HOUR_S, int(back)]
    assert len(hours) == len(set(hours))
    for window in days:
        day = (window.period_start - BEGAN) // DAY_S
        assert units(window, Kind.CLASSES) == {day % 10: UNITS}
    assert device.inferences == 0
    assert device.book.totals.sent_days == 30
    assert device.book.totals.merged == 30 * 24 - 1
    assert device.book.totals.dropped_inferences == device.book.totals.unconfirmed == 0


def test_the_days_of_a_long_silence_leave_at_random_moments_and_in_no_order(folder: Path) -> None:
    broker = Broker(is_up=False)
    device = Device(folder, broker)
    device.until(BEGAN + 30 * DAY_S + 2 * HOUR_S, HOUR_S / 2)
    back = device.at

    broker.is_up = True
    device.until(back + HOUR_S, 20.0, lambda at: [])

    moments = [at - back for at, window in broker.arrived if window.period_s == DAY_S]
    order = [window.period_start for _, window in broker.arrived if window.period_s == DAY_S]
    assert len(moments) == 30
    assert max(moments) <= 1820
    assert max(moments) - min(moments) > 900
    assert max(Counter(int(moment // 20) for moment in moments).values()) < 6
    assert order != sorted(order)
    assert len(broker.bytes) == 1


def test_after_seventy_days_the_oldest_are_gone_and_that_is_said(folder: Path) -> None:
    broker = Broker(is_up=False)
    device = Device(folder, broker)
    device.until(BEGAN + 70 * DAY_S + 2 * HOUR_S, HOUR_S)
    device.kill()
    device.look()
    totals = device.book.totals

    dropped = 70 - DAYS_MAX
    days = sorted({part.start for part in device.book.parts.values() if part.period_s == DAY_S})

    # An hour of the seventy-first day is merged already: it counts among the 62.
    assert totals.dropped_days == dropped + 1
    assert totals.dropped_inferences == (dropped + 1) * 24
    assert days == [BEGAN + day * DAY_S for day in range(dropped + 1, 71)]
    assert device.inferences + totals.dropped_inferences == device.counted
    assert device.path.stat().st_size < 1_000_000

    broker.is_up = True
    device.until(device.at + HOUR_S, 120.0, lambda at: [one(0)])

    assert sum(1 for window in broker.windows.values() if window.period_s == DAY_S) == DAYS_MAX - 1


def test_a_fortnight_of_hours_with_a_broker_is_a_fortnight_of_windows(folder: Path) -> None:
    broker = Broker()
    device = Device(folder, broker)

    device.until(BEGAN + 14 * DAY_S + HOUR_S, 600.0, lambda at: [one(1 if at % 3600 < 1200 else 0)])

    found = Counter((window.period_s, window.period_start) for window in broker.windows.values())
    assert found == {(HOUR_S, BEGAN + hour * HOUR_S): 1 for hour in range(14 * 24)}
    assert all(len(units(window, Kind.CLASSES)) == 1 for window in broker.windows.values())
    late = [at - window.period_start - HOUR_S for at, window in broker.arrived]
    assert 0 < min(late) <= 600
    assert 1200 < max(late) <= 1800 + 600


@pytest.mark.parametrize("seed", range(8))
def test_a_line_that_comes_and_goes_with_kills_puts_every_hour_into_exactly_one_window(folder: Path, seed: int) -> None:
    broker, faults = Broker(), Random(seed)
    device = Device(folder, broker, seed=seed)
    wide = replace(DIGITS, classes=256)  # Each hour has a class of its own, so that windows tell which are in them.
    at = device.at
    while at < BEGAN + 240 * HOUR_S:
        broker.is_up = faults.random() < 0.6
        at = min(BEGAN + 240 * HOUR_S, at + faults.choice((600, 1800, 5400, 40_000)))
        device.until(at, 300.0, lambda now: [one(1, place=int((now - 1) // HOUR_S) % 240, release=wide)])
        device.kill() if faults.random() < 0.5 else device.restart()

    broker.is_up = True
    device.until(at + 2 * DAY_S, 600.0, lambda now: [])

    places = Counter(place for window in broker.windows.values() for place in units(window, Kind.CLASSES))
    assert places == {int(BEGAN // HOUR_S + hour) % 240: 1 for hour in range(240)}
    periods = Counter((window.period_s, window.period_start) for window in broker.windows.values())
    assert set(periods.values()) == {1}
    assert {period_s for period_s, _ in periods} == {HOUR_S, DAY_S}
    assert device.inferences == 0
    assert device.book.totals.dropped_inferences == 0
