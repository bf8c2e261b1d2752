"""What becomes of windows: which are taken, when a period is closed, and which sums are published together.

    window ──▶ verdict: refused | too late | taken ──▶ pending sums of its cell and period
                                                              │ the hour ended 75 minutes ago; a day: once a day
                                                              ▼
              cells of k_min windows and more ──▶ published     smaller ones ──▶ of hours: merged now
                                                                                 of days: wait up to 7 days, then merged
              merged: (model, version, class, no region), then (model, version, ALL, no region), else suppressed

A window is in exactly one published cell. Which cell that is follows from how many windows came, never from what they
say: who takes part is no secret. Pure: time is an argument, `ledger` holds the state, `mixer` does what this says.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple

import msgspec

from muster_shared.metrics import DAY_S, HOUR_S, Cell, Kind, Window, units

HOUR_CLOSES_S: Final = 75 * 60
"""After its end: devices hand windows of an hour over within 60 minutes, and brokers and clocks need some."""
HOUR_CLOSES_LATEST_S: Final = 6 * HOUR_S
"""After its end, also when the mixer has not yet heard all that the broker kept for it."""
HOUR_KEPT_S: Final = 2 * DAY_S
"""After its end, windows of an hour that is still open are taken: the mixer may have been away."""
AHEAD_S: Final = 2 * HOUR_S
"""Windows of a period that begins later than so far ahead are refused: no clock is that wrong."""
OLD_S: Final = 62 * DAY_S
"""What devices promise to keep; older windows are refused, and what was noted of their periods is forgotten."""
DAY_WAITS_S: Final = 7 * DAY_S
DAY_AGAIN_S: Final = DAY_S
"""A day's sums are published at most once in this time."""
ALL: Final = "all"
"""The device class of what was merged over classes."""


class Period(NamedTuple):
    """What a window tells of, in seconds of Unix time."""

    start: int
    length_s: int

    @property
    def end(self) -> int:
        return self.start + self.length_s

    @property
    def day(self) -> int:
        """Days since 1970."""
        return self.start // DAY_S

    @property
    def is_day(self) -> bool:
        return self.length_s == DAY_S


class Verdict(Enum):
    """What becomes of a window that opened."""

    TAKEN = "taken"
    REFUSED = "refused"
    TOO_LATE = "too_late"


@dataclass(frozen=True)
class Pending:
    """What is known of a cell and period, never of a window: `sums[kind]` is index -> units, places of 0 left out."""

    devices: int
    sums: Mapping[Kind, Mapping[int, int]]
    opened_at: int
    """When the first window of it came, Unix seconds."""


@dataclass(frozen=True)
class OpenPeriod:
    """A period that has pending sums, or had."""

    period: Period
    opened_at: int
    """When the oldest of its pending sums began."""
    published_at: int | None = None
    """When sums of it were last published."""


@dataclass(frozen=True)
class Gathered:
    """What is to be done with the pending sums of one period. The three parts hold each window once."""

    published: Mapping[Cell, Pending]
    waiting: frozenset[Cell]
    suppressed: int
    """Windows."""


def period_of(window: Window) -> Period:
    return Period(window.period_start, window.period_s)


def verdict(period: Period, now: float) -> Verdict:
    """Return what becomes of a window of `period`, as far as its date says."""
    if period.start > now + AHEAD_S or period.end < now - OLD_S:
        return Verdict.REFUSED
    if not period.is_day and period.end < now - HOUR_KEPT_S:
        return Verdict.TOO_LATE
    return Verdict.TAKEN


def add(pending: Pending | None, windows: Iterable[Window], now: int) -> Pending:
    """Return `pending` with more windows of its cell and period, which are checked (`metrics.problems`)."""
    devices = pending.devices if pending else 0
    sums = {kind: defaultdict(int, counts) for kind, counts in (pending.sums if pending else {}).items()}
    for window in windows:
        devices += 1
        for kind in window.units:
            if not window.cell.dim(kind):
                continue
            into = sums.setdefault(kind, defaultdict(int))
            for index, count in units(window, kind).items():
                into[index] += count
    return Pending(devices, sums, pending.opened_at if pending else now)


def is_due(one: OpenPeriod, now: float, *, settled: bool) -> bool:
    """Whether sums of this period are to be published now.

    Args:
        settled: all that the broker kept while nobody was there has been taken.
    """
    if one.period.is_day:
        rested = one.published_at is None or now >= one.published_at + DAY_AGAIN_S
        return settled and rested and now >= one.period.end + HOUR_CLOSES_S
    return now >= one.period.end + (HOUR_CLOSES_S if settled else HOUR_CLOSES_LATEST_S)


def is_overdue(period: Period, now: float) -> bool:
    """Whether it is an hour of which nothing should come any more."""
    return not period.is_day and now >= period.end + HOUR_CLOSES_S


def is_last(one: OpenPeriod, now: float) -> bool:
    """Whether what is too small by itself is merged or suppressed now, instead of waiting for more."""
    return not one.period.is_day or now >= one.opened_at + DAY_WAITS_S or now >= one.period.end + OLD_S


def gather(pendings: Mapping[Cell, Pending], k_min: int, *, last: bool) -> Gathered:
    """Return which sums of a period are published, as which cells, and what becomes of the rest."""
    if not last:
        published = {cell: one for cell, one in pendings.items() if one.devices >= k_min}
        return Gathered(published, frozenset(pendings.keys() - published.keys()), 0)
    done: dict[Cell, Pending] = {}
    rest = dict(pendings)
    for up in (_without_region, _without_class):
        merged: dict[Cell, Pending] = {}
        for cell, one in sorted(rest.items()):
            # A cell that smaller ones are merged into meets them there: its sums are not published twice.
            is_small = one.devices < k_min
            target = up(cell) if is_small else cell
            into = merged if is_small or cell == up(cell) else done
            into[target] = _merge(into[target], one) if target in into else one
        rest = merged
    done |= {cell: one for cell, one in rest.items() if one.devices >= k_min}
    return Gathered(done, frozenset(), sum(one.devices for one in rest.values() if one.devices < k_min))


def dense(cell: Cell, kind: Kind, counts: Mapping[int, int]) -> list[int]:
    """Return index -> units as a list of `cell.dim(kind)`."""
    return [counts.get(index, 0) for index in range(cell.dim(kind))]


def _without_region(cell: Cell) -> Cell:
    return msgspec.structs.replace(cell, region="")


def _without_class(cell: Cell) -> Cell:
    return msgspec.structs.replace(cell, region="", device_class=ALL)


def _merge(one: Pending, other: Pending) -> Pending:
    sums = {kind: defaultdict(int, counts) for kind, counts in one.sums.items()}
    for kind, counts in other.sums.items():
        into = sums.setdefault(kind, defaultdict(int))
        for index, count in counts.items():
            into[index] += count
    return Pending(one.devices + other.devices, sums, min(one.opened_at, other.opened_at))
