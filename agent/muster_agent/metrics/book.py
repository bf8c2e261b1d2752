"""The book of what was counted: the running hour, hours and days that wait, and what is under way to the broker.

    running ── hour over ──▶ WAITING ── kept, handed over ──▶ UNDER_WAY ── the broker has it ──▶ gone
                               │  ▲                             │  └── hour closed, nobody said ─▶ gone, `unconfirmed`
                               │  └──── refused ────────────────┘
                               └── late ──▶ its day ── over ──▶ WAITING (a window again)   63rd day ──▶ gone, `dropped`

What was once handed over is never merged: it may have arrived. So everything that is counted leaves in one window or
in none, and never in two. A window gets its nonce when its period is over, and keeps it however often it is sent.

Pure: moments and randomness are arguments; `dirty` says what the journal has yet to keep.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from random import Random
from typing import NamedTuple

import msgspec

from muster_agent.core.periods import CLOSED_S, DAYS_MAX, LATE_S, day_of, end_of, free, start_of
from muster_agent.metrics.port import Release, Tally
from muster_agent.metrics.windows import RELEASES_MAX, Counted, PeriodS, Place, counted, kinds, windows
from muster_shared.metrics import DAY_S, HOUR_S, Window

TAKEN_MAX = 2048
"""Periods of which windows were made: those of 62 days are 1,550."""


class Stage(IntEnum):
    """Where one release's part of a period is."""

    MERGING = 0
    """Of a day whose hours are not all decided: no window yet."""
    WAITING = 1
    UNDER_WAY = 2
    """Handed over at least once; the broker has not said that it has it."""


class Key(NamedTuple):
    """Names a part."""

    period_s: PeriodS
    start: int
    release: Release


class Part(msgspec.Struct, frozen=True):
    """One release in one period that is no more running."""

    period_s: PeriodS
    start: int
    counted: Counted
    stage: Stage
    window: Window | None = None

    @property
    def key(self) -> Key:
        return Key(self.period_s, self.start, self.counted.release)


class Totals(msgspec.Struct, frozen=True):
    """Since the journal was begun."""

    sent_hours: int = 0
    """Windows of hours that the broker has."""
    sent_days: int = 0
    merged: int = 0
    """Windows of hours that came too late and went into a day."""
    unconfirmed: int = 0
    """Windows of hours that were under way when the link broke: whether they arrived is unknown."""
    dropped_days: int = 0
    """Days beyond the oldest that is kept."""
    dropped_inferences: int = 0
    """In those days, and of releases beyond RELEASES_MAX."""
    unsealable: int = 0
    """Windows whose names are too long to be sealed."""


class Running(msgspec.Struct, frozen=True):
    """The hour that is not over."""

    start: int | None = None
    """None: no clock could be believed yet; what is counted belongs to the first hour that can."""
    counted: tuple[Counted, ...] = ()


@dataclass(frozen=True)
class DayDropped:
    start: int
    inferences: int


@dataclass(frozen=True)
class Unconfirmed:
    start: int


@dataclass(frozen=True)
class ClockSetBack:
    seconds: int


Happened = DayDropped | Unconfirmed | ClockSetBack


class Book:
    """What one device has counted and not got rid of yet."""

    def __init__(
        self,
        place: Place,
        running: Running = Running(),  # noqa: B008 - It is frozen.
        parts: Iterable[Part] = (),
        taken: Iterable[tuple[int, int]] = (),
        totals: Totals = Totals(),  # noqa: B008 - It is frozen.
    ) -> None:
        """
        Args:
            taken: (start, period_s) of the periods of which windows were made.
        """
        self.place = place
        self.parts = {part.key: part for part in parts}
        self.taken = set(taken)
        self.totals = totals
        self.dirty: set[Key] = set()
        """Parts that changed since the journal last kept them."""
        self.is_dirty = False
        """Whether the rest did."""
        self._start = running.start
        self._running = {each.release: each for each in running.counted}

    @property
    def running(self) -> Running:
        return Running(self._start, tuple(self._running.values()))

    def kept(self) -> None:
        """The journal has everything."""
        self.dirty.clear()
        self.is_dirty = False

    def count(self, tallies: Iterable[Tally]) -> None:
        """Add what was counted to the running hour. It belongs there also when that is just over: take it before."""
        for tally in tallies:
            self._add(counted(tally))

    def preview(self, random: Random) -> dict[Release, Window]:
        """Return the windows that the running hour would make now, roundings of their own."""
        return windows(self._running.values(), self.place, self._start or 0, HOUR_S, random)

    def absorb(self, other: "Book") -> None:
        """Count what another book holds, of which nothing was handed over, in the hour that runs."""
        for _, part in sorted(other.parts.items(), key=lambda item: item[0].start):
            self._add(part.counted)
        for each in other.running.counted:
            self._add(each)

    # -- time --------------------------------------------------------------------------------------------------------

    def advance(self, at: float, random: Random) -> list[Happened]:
        """Do what is due by a clock that is believed; harmless at any moment, also at an earlier one than the last."""
        said: list[Happened] = []
        target = free(start_of(at, HOUR_S), HOUR_S, self.taken)
        if self._start is None:
            self._start, self.is_dirty = target, True
        elif target < self._start:
            said.append(ClockSetBack(self._start - target))
            self._rewind(target)
        elif target > self._start:
            self._close(self._start, random)
            self._start, self.is_dirty = target, True
        if self.parts:
            said += self._merge_late(at)
        self._close_days(at, random)
        said += self._drop_days()
        self._forget()
        return said

    def sendable(self, at: float) -> Iterator[Part]:
        """Yield what may be handed over: hours that are not too late, and days."""
        for part in self.parts.values():
            if part.window is not None and (part.period_s == DAY_S or at < end_of(part.start, HOUR_S) + LATE_S):
                yield part

    # -- what becomes of a window ------------------------------------------------------------------------------------

    def handed_over(self, key: Key) -> Part:
        """It may be sent once the journal has this."""
        return self._put(msgspec.structs.replace(self.parts[key], stage=Stage.UNDER_WAY))

    def refused(self, key: Key) -> None:
        """It did not leave, or the broker said that it does not take it; so it may be merged yet."""
        if key in self.parts:
            self._put(msgspec.structs.replace(self.parts[key], stage=Stage.WAITING))

    def delivered(self, key: Key) -> None:
        if key in self.parts:
            self._tell(**{"sent_days" if key.period_s == DAY_S else "sent_hours": 1})
            self._remove(key)

    def unsealable(self, key: Key) -> None:
        self._tell(unsealable=1)
        self._remove(key)

    # -- within ------------------------------------------------------------------------------------------------------

    def _add(self, more: Counted) -> None:
        if not kinds(more.release):
            return
        before = self._running.get(more.release)
        if before is None and len(self._running) >= RELEASES_MAX:
            self._tell(dropped_inferences=more.inferences)
            return
        self.is_dirty = self.is_dirty or before is None or before.drift is not more.drift or bool(more.counts)
        self._running[more.release] = more if before is None else before.plus(more)

    def _close(self, start: int, random: Random) -> None:
        """Make the windows of the hour that was running."""
        made = windows(self._running.values(), self.place, start, HOUR_S, random)
        for release, window in made.items():
            self._put(Part(HOUR_S, start, self._running[release], Stage.WAITING, window))
        if made:
            self.taken.add((start, HOUR_S))
        self._running = {}

    def _merge_late(self, at: float) -> Iterator[Happened]:
        for key, part in sorted(self.parts.items(), key=lambda item: item[0].start):
            if part.period_s == DAY_S:
                continue
            since_s = at - end_of(part.start, HOUR_S)
            if part.stage is Stage.UNDER_WAY and since_s >= CLOSED_S:
                self._tell(unconfirmed=1)
                self._remove(key)
                yield Unconfirmed(part.start)
            elif part.stage is Stage.WAITING and since_s >= LATE_S:
                self._remove(key)
                self._merge(part.counted, free(day_of(part.start), DAY_S, self.taken))
                self._tell(merged=1)

    def _merge(self, more: Counted, day: int) -> None:
        before = self.parts.get(Key(DAY_S, day, more.release))
        self._put(Part(DAY_S, day, more if before is None else before.counted.plus(more), Stage.MERGING))

    def _close_days(self, at: float, random: Random) -> None:
        """Make the windows of the days that are over, and whose hours have all left or been merged."""
        undecided = {day_of(part.start) for part in self.parts.values() if part.period_s == HOUR_S}
        undecided.add(day_of(self._start or 0))
        for day in sorted({part.start for part in self.parts.values() if part.stage is Stage.MERGING}):
            if day in undecided or at < end_of(day, DAY_S) + LATE_S:
                continue
            rows = self._of_day(day)
            if len(rows) > RELEASES_MAX:
                rows.sort(key=lambda part: part.counted.inferences)
                for part in rows[:-RELEASES_MAX]:
                    self._tell(dropped_inferences=part.counted.inferences)
                    self._remove(part.key)
                rows = rows[-RELEASES_MAX:]
            made = windows([part.counted for part in rows], self.place, day, DAY_S, random)
            for part in rows:
                window = made[part.counted.release]
                self._put(msgspec.structs.replace(part, stage=Stage.WAITING, window=window))
            self.taken.add((day, DAY_S))

    def _drop_days(self) -> Iterator[Happened]:
        days = sorted({part.start for part in self.parts.values() if part.period_s == DAY_S})
        for day in days[:-DAYS_MAX]:
            rows = self._of_day(day)
            inferences = sum(part.counted.inferences for part in rows)
            for part in rows:
                self._remove(part.key)
            self._tell(dropped_days=1, dropped_inferences=inferences)
            yield DayDropped(day, inferences)

    def _rewind(self, target: int) -> None:
        """The clock was ahead, or is behind now: what has not left is of the hour that it is."""
        running, self._running = self._running, {}
        for key, part in sorted(self.parts.items(), key=lambda item: item[0].start):
            if part.start >= target and part.stage is not Stage.UNDER_WAY:
                self._remove(key)
                self._add(part.counted)
        for each in running.values():
            self._add(each)
        self._start, self.is_dirty = target, True

    def _forget(self) -> None:
        """By number, not by age: a clock that is ahead for a moment must not make it forget what was sent."""
        if len(self.taken) > TAKEN_MAX:
            self.taken = set(sorted(self.taken)[-TAKEN_MAX:])
            self.is_dirty = True

    def _of_day(self, day: int) -> list[Part]:
        return [part for part in self.parts.values() if part.period_s == DAY_S and part.start == day]

    def _put(self, part: Part) -> Part:
        self.parts[part.key] = part
        self.dirty.add(part.key)
        return part

    def _remove(self, key: Key) -> None:
        del self.parts[key]
        self.dirty.add(key)

    def _tell(self, **more: int) -> None:
        totals = {name: getattr(self.totals, name) + count for name, count in more.items()}
        self.totals = msgspec.structs.replace(self.totals, **totals)
        self.is_dirty = True
