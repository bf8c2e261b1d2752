"""Token buckets: how many rows a caller may send, as a rate and a burst.

    level (rows)  burst ┤██████████▆▅▄▃   take(rows): falls by rows, or says how long to wait
                      0 ┴───────────────  rises by rate_per_s, never above burst

Pure: the caller says what time it is. A bucket is kept as one integer, the time at which it is full again (the generic
cell rate algorithm of ITU-T I.371), so that nothing drifts and a refused request changes nothing.
"""

import math
from typing import Protocol

import msgspec

_NS = 1_000_000_000


class Bucket(msgspec.Struct, frozen=True):
    """`rate_per_s` rows a second, after at most `burst` at once; both > 0. It begins full."""

    rate_per_s: float
    burst: int
    full_ns: int = 0
    """When it is full again, on the caller's monotonic clock."""


def take(bucket: Bucket, rows: int, now_ns: int) -> tuple[Bucket, float]:
    """Return the bucket after `rows` were asked of it, and how long to wait, in seconds; 0.0: they are taken.

    More rows than `burst` never pass: the wait is infinite.
    """
    if rows > bucket.burst:
        return bucket, math.inf
    full_ns = max(bucket.full_ns, now_ns) + _cost_ns(rows, bucket.rate_per_s)
    early_ns = full_ns - now_ns - _cost_ns(bucket.burst, bucket.rate_per_s)
    if early_ns > 0:
        return bucket, early_ns / _NS
    return Bucket(bucket.rate_per_s, bucket.burst, full_ns), 0.0


def _cost_ns(rows: int, rate_per_s: float) -> int:
    """Rounded up by the row: rounding lets no row through, and a row costs the same in any request."""
    return rows * math.ceil(_NS / rate_per_s)


class Meter(Protocol):
    """What counts the rows of one caller."""

    def take(self, rows: int, now_ns: int) -> float:
        """Return 0.0 when `rows` are taken, else the seconds to wait; infinite when they never pass."""
        ...


class Limited:
    """A `Bucket` that changes in place, for the path of every request."""

    __slots__ = ("_burst", "_burst_ns", "_full_ns", "_row_ns")

    def __init__(self, bucket: Bucket) -> None:
        self._burst = bucket.burst
        self._row_ns = _cost_ns(1, bucket.rate_per_s)
        self._burst_ns = _cost_ns(bucket.burst, bucket.rate_per_s)
        self._full_ns = bucket.full_ns

    def take(self, rows: int, now_ns: int) -> float:
        full_ns = self._full_ns
        if full_ns < now_ns:
            full_ns = now_ns
        full_ns += rows * self._row_ns
        early_ns = full_ns - now_ns - self._burst_ns
        if early_ns <= 0:
            self._full_ns = full_ns
            return 0.0
        return math.inf if rows > self._burst else early_ns / _NS


class Unlimited:
    """A caller without a limit."""

    __slots__ = ()

    def take(self, rows: int, now_ns: int) -> float:
        return 0.0


def meter(rate_per_s: float, burst: int) -> Meter:
    """Return what counts `rate_per_s` rows a second, 0 for no limit; `burst` 0 stands for one second of the rate."""
    if rate_per_s <= 0:
        return Unlimited()
    return Limited(Bucket(rate_per_s, burst or max(1, math.ceil(rate_per_s))))
