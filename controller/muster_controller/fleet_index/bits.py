"""Sets of small integers, as the bits of a Python integer: immutable, so shared between threads without copying.

A hundred thousand devices are 12.5 kB, and "and", "or", "not" over them a few microseconds. Small sets are tuples: a
label with a value of its own for every device would cost gigabytes as bits. Pure.
"""

from collections.abc import Collection, Iterable
from itertools import compress
from typing import Final, TypeVar

T = TypeVar("T")

Members = int | tuple[int, ...]
"""A set: bits, or, of a few, the numbers themselves in no order."""
FEW: Final = 48
"""Up to so many stay a tuple. Bits that fall below half of it become one again."""

_AS_DIGITS: Final = bytes(ord("1") if each else ord("0") for each in range(256))
_AS_FLAGS: Final = bytes(1 if each == ord("1") else 0 for each in range(256))


def of(numbers: Collection[int]) -> int:
    """Return the bits of `numbers`."""
    if len(numbers) < 16:
        found = 0
        for each in numbers:
            found |= 1 << each
        return found
    raw = bytearray(max(numbers) // 8 + 1)
    for each in numbers:
        raw[each >> 3] |= 1 << (each & 7)
    return int.from_bytes(raw, "little")


def bits(members: Members) -> int:
    return members if isinstance(members, int) else of(members)


def count(members: Members) -> int:
    return members.bit_count() if isinstance(members, int) else len(members)


def changed(members: Members, joining: Collection[int], leaving: Collection[int]) -> Members:
    """Return the set with some more and some fewer. Who does both ends up inside."""
    if isinstance(members, tuple) and len(members) + len(joining) <= FEW:
        return tuple({*members}.difference(leaving).union(joining))
    found = (bits(members) & ~of(leaving)) | of(joining)
    return tuple(numbers(found)) if found.bit_count() <= FEW // 2 else found


def flags(found: int, length: int) -> bytes:
    """Return for each number below `length` a byte, 1 or 0."""
    raw = format(found, "b").encode()[::-1].translate(_AS_FLAGS)
    return raw[:length].ljust(length, b"\0")


def where(answers: Iterable[bool]) -> int:
    """Return the positions of the answers that are true."""
    return int(b"0" + bytes(answers).translate(_AS_DIGITS)[::-1], 2)


def numbers(found: int) -> list[int]:
    """Return the numbers of the set, rising."""
    return list(compress(range(found.bit_length()), flags(found, found.bit_length())))


def picked(found: int, things: Iterable[T], length: int) -> list[T]:
    """Return those of `things` whose position is in the set."""
    return list(compress(things, flags(found, length)))
