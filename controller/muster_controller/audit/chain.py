"""The chain of the audit log, and whether it holds. Pure: it needs msgspec and the standard library alone.

    hash(n) = SHA-256(hash(n-1) + canonical JSON of line n)        hash(0) is empty; JSON with sorted keys, no spaces

`Checker` takes rows one after the other, keeps no more than the flaws that it found, and goes on behind each of them.
A chain alone shows that nobody changed a part of it. That nobody wrote all of it anew, or cut off its end, only
somebody can say who saw it before: such witnesses are `Anchor`s, from checkpoints (`audit.checkpoint`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from enum import Enum
from hashlib import sha256
from typing import assert_never

import msgspec

BREAKS_MAX = 1000  # Listed; what is found beyond is counted.


@dataclass(frozen=True)
class Line:
    """One change, as it is hashed."""

    ordinal: int
    at: float
    actor: str
    action: str
    """What was done, such as `rollout.abort`."""
    subject: str
    detail: str
    reason: str
    request_id: str


class Stored(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A line as it is kept, with its hash."""

    ordinal: int
    at: float
    actor: str
    action: str
    subject: str
    detail: str
    reason: str
    request_id: str
    hash: str

    @property
    def line(self) -> Line:
        return Line(
            self.ordinal,
            self.at,
            self.actor,
            self.action,
            self.subject,
            self.detail,
            self.reason,
            self.request_id,
        )


@dataclass(frozen=True)
class Garbled:
    """Something in the place of a line that is none. `ordinal` and `hash` where they can be read all the same."""

    said: str
    ordinal: int | None = None
    hash: str | None = None


@dataclass(frozen=True)
class Anchor:
    """The hash of one line: it stands for that line and all before it."""

    ordinal: int
    hash: str


BEGIN = Anchor(0, "")


@dataclass(frozen=True)
class Ended:
    """There is nothing more. `head` is what is said to be the last line; None: nobody says."""

    head: Anchor | None


Item = Stored | Garbled | Ended


class Flaw(Enum):
    ALTERED = "altered"
    """A line does not follow from the one before it."""
    MISSING = "missing"
    REORDERED = "reordered"
    """A line stands behind one that is younger."""
    FOREIGN = "foreign"
    """A line that has the place of another, or no place."""
    GARBLED = "garbled"
    TRUNCATED = "truncated"
    """The end is missing: somebody knows of later lines."""
    HEAD = "head"
    """The head does not fit the last line."""
    FORKED = "forked"
    """The chain holds, but it is not the one that a witness saw."""


@dataclass(frozen=True)
class Break:
    """One place where the log does not hold: the lines `ordinal` to `last`."""

    ordinal: int
    last: int
    flaw: Flaw
    said: str


@dataclass(frozen=True)
class Report:
    """What a check found. `breaks` by place, at most BREAKS_MAX of `count`."""

    lines: int
    start: Anchor
    head: Anchor
    """The last line that was there."""
    breaks: tuple[Break, ...]
    count: int

    @property
    def holds(self) -> bool:
        return self.count == 0


def chained(before: str, line: Line) -> str:
    """Return the hash of `line` after a line of the hash `before` (hex; empty before the first)."""
    return sha256(before.encode() + msgspec.json.encode(line, order="sorted")).hexdigest()


def verify(items: Iterable[Item], start: Anchor = BEGIN, witnessed: Sequence[Anchor] = ()) -> Report:
    """Check a log from the line after `start` on.

    Args:
        items: Lines in the order in which they are kept, and then `Ended`.
        witnessed: What was seen of this log before, elsewhere.
    """
    checker = Checker(start, witnessed)
    head: Anchor | None = None
    for item in items:
        match item:
            case Stored():
                checker.take(item)
            case Garbled():
                checker.take_garbled(item)
            case Ended():
                head = item.head
            case _:
                assert_never(item)
    return checker.finish(head)


class Checker:
    """Takes one line after the other, then `finish`."""

    def __init__(self, start: Anchor = BEGIN, witnessed: Sequence[Anchor] = ()) -> None:
        self._start = start
        self._witnessed = {each.ordinal: each.hash for each in witnessed if each.ordinal > start.ordinal}
        self._lines = 0
        self._last = start
        self._befores: tuple[str, ...] = (start.hash,)
        """What the line before may hash to: as it is kept, and, where that does not fit, as it should be kept."""
        self._gaps: list[tuple[int, int]] = []
        self._breaks: list[Break] = []
        self._count = 0
        for each in witnessed:
            if each.ordinal < start.ordinal:
                said = f"the log that is here begins after line {start.ordinal}; the witness saw line {each.ordinal}"
                self._say(each.ordinal, each.ordinal, Flaw.FORKED, f"{said}: export it from there on")
            elif each.ordinal == start.ordinal and each.hash != start.hash:
                self._say_forked(start.ordinal)
        # Two witnesses who contradict each other cannot both have seen this log.
        for each in witnessed:
            if self._witnessed.get(each.ordinal, each.hash) != each.hash:
                self._say_forked(each.ordinal)

    def take(self, stored: Stored) -> None:
        self._lines += 1
        number = stored.ordinal
        if number <= self._last.ordinal:
            self._displaced(number)
            return
        if number > self._last.ordinal + 1:
            self._lack(self._last.ordinal + 1, number - 1)
            self._befores = ()
        line = stored.line
        computed = [chained(before, line) for before in self._befores]
        is_sound = stored.hash in computed
        if computed and not is_sound:
            said = f"line {number} does not follow from line {number - 1}"
            follows = "" if number == 1 else f", or both line {number - 1} and its hash"
            self._say(number, number, Flaw.ALTERED, f"{said}: it was altered{follows}")
        self._befores = (stored.hash,) if is_sound or not computed else (stored.hash, computed[0])
        self._step(Anchor(number, stored.hash))

    def take_garbled(self, garbled: Garbled) -> None:
        self._lines += 1
        number = garbled.ordinal
        place = self._last.ordinal + 1 if number is None else number
        self._say(place, place, Flaw.GARBLED, garbled.said)
        if number is None or number <= self._last.ordinal:
            return
        if number > self._last.ordinal + 1:
            self._lack(self._last.ordinal + 1, number - 1)
        self._befores = () if garbled.hash is None else (garbled.hash,)
        self._step(Anchor(number, garbled.hash or ""))

    def finish(self, head: Anchor | None) -> Report:
        """Compare with the head and with what witnesses saw, and return what was found."""
        last = self._last
        for first, until in self._gaps:
            said = f"line {first} is missing" if first == until else f"lines {first} to {until} are missing"
            self._say(first, until, Flaw.MISSING, f"{said}; line {until + 1} cannot be checked by itself")
        known = [ordinal for ordinal in self._witnessed if ordinal > last.ordinal]
        if head is None:
            said = f"nothing says that line {last.ordinal} is the last: the head, or the end of the file, is missing"
            self._say(last.ordinal, last.ordinal, Flaw.HEAD, said)
        elif head.ordinal > last.ordinal:
            known.append(head.ordinal)
        elif head.ordinal < last.ordinal:
            said = f"lines {head.ordinal + 1} to {last.ordinal} stand behind the head, which is line {head.ordinal}"
            self._say(head.ordinal + 1, last.ordinal, Flaw.HEAD, said)
        elif head.hash != last.hash:
            said = f"the head does not have the hash of line {last.ordinal}: one of them was altered"
            self._say(last.ordinal, last.ordinal, Flaw.HEAD, said)
        if known:
            said = f"the log ends at line {last.ordinal}, and there were {max(known)} at least: the end was cut off"
            self._say(last.ordinal + 1, max(known), Flaw.TRUNCATED, said)
        breaks = sorted(self._breaks, key=lambda each: (each.ordinal, each.flaw.value))
        return Report(self._lines, self._start, last, tuple(breaks), self._count)

    def _step(self, last: Anchor) -> None:
        self._last = last
        if self._witnessed.get(last.ordinal, last.hash) != last.hash:
            self._say_forked(last.ordinal)

    def _displaced(self, number: int) -> None:
        for index, (first, until) in enumerate(self._gaps):
            if first <= number <= until:
                rest = [(first, number - 1), (number + 1, until)]
                self._gaps[index : index + 1] = [each for each in rest if each[0] <= each[1]]
                said = f"line {number} stands behind line {self._last.ordinal}"
                self._say(number, number, Flaw.REORDERED, said)
                return
        self._say(number, number, Flaw.FOREIGN, f"line {number} stands behind line {self._last.ordinal} once more")

    def _lack(self, first: int, until: int) -> None:
        if len(self._gaps) < BREAKS_MAX:
            self._gaps.append((first, until))
        else:
            self._count += 1

    def _say_forked(self, ordinal: int) -> None:
        said = f"line {ordinal} is not the one that the checkpoint saw: everything up to it may have been written anew"
        self._say(ordinal, ordinal, Flaw.FORKED, said)

    def _say(self, ordinal: int, last: int, flaw: Flaw, said: str) -> None:
        self._count += 1
        if len(self._breaks) < BREAKS_MAX:
            self._breaks.append(Break(ordinal, last, flaw, said))


def link(before: Anchor, line: Line) -> Stored:
    """Return `line` as it is kept after `before`; its ordinal is the next one, whatever it says."""
    placed = replace(line, ordinal=before.ordinal + 1)
    return Stored(**asdict(placed), hash=chained(before.hash, placed))
