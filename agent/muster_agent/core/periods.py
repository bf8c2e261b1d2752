"""Hours and days of the anonymous metrics: when one is over, too late, or taken already.

    hour ── over ──▶ sent at a random moment of the half hour that follows
              │
              └── LATE_S after its end not handed over ──▶ its day ── over, and so are its hours ──▶ sent once

Pure: moments are Unix seconds of the metrics' clock, and arguments. docs/decisions/0014 says why.
"""

from collections.abc import Container
from typing import Final, Protocol

from muster_shared.metrics import DAY_S, HOUR_S

SPREAD_S: Final = 1800.0
"""Windows leave within this time after their hour's end; those of a day after the link is there."""
LATE_S: Final = 3600
"""After its end an hour that was not handed over is merged into its day."""
CLOSED_S: Final = 4500
"""After its end the mixer takes no window of an hour any more."""
DAYS_MAX: Final = 62
"""What a device promises to keep while nobody listens."""
BELIEVED_SINCE_S: Final = 1_704_067_200
"""2024-01-01: a clock that says less was never set."""


class Chance(Protocol):
    """Randomness, as `random.Random`."""

    def uniform(self, a: float, b: float, /) -> float: ...


def start_of(at: float, period_s: int) -> int:
    """Return when the period began that `at` is in."""
    return int(at // period_s) * period_s


def end_of(start: int, period_s: int) -> int:
    return start + period_s


def free(start: int, period_s: int, taken: Container[tuple[int, int]]) -> int:
    """Return the first period from `start` on of which no windows were made: two of one period would count twice.

    Args:
        taken: (start, period_s) of those of which windows were made.
    """
    while (start, period_s) in taken:
        start += period_s
    return start


def due(start: int, period_s: int, at: float, spread_s: float, random: Chance) -> float:
    """Return the moment at which a window of a period that is over leaves, if the link is there from `at` on.

    An hour's within `spread_s` of its end, as far as that is still to come; else within `spread_s` from now, and at any
    rate before it is too late. What waited long, such as a day, within `spread_s` from now.
    """
    end = end_of(start, period_s)
    if period_s == HOUR_S:
        last = end + spread_s
        if last <= at:
            last = min(at + spread_s, end + LATE_S)
        return random.uniform(max(at, end), max(at, end, last))
    return random.uniform(at, at + spread_s)


def day_of(start: int) -> int:
    return start_of(start, DAY_S)
