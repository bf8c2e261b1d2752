"""Roll-ups: hours of noised sums become days, and how long each is kept.

Sums add and variances add; a device may have a window in each hour, so the devices of a day are those of its fullest
hour. A day is made as its hours come (`added`); made at once from all of them it is the same (`days_of`).
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final

from muster_controller.core.metrics.series import BIN_S
from muster_controller.core.metrics.sums import MixedSum
from muster_shared.metrics import DAY_S, HOUR_S, Cell

SERIES_KEEP_S: Final[Mapping[int, int]] = {BIN_S: 3 * DAY_S, HOUR_S: 35 * DAY_S, DAY_S: 731 * DAY_S}
"""Seconds that a point of a series of that period is kept."""
MIXED_KEEP_S: Final[Mapping[int, int]] = {HOUR_S: 35 * DAY_S, DAY_S: 731 * DAY_S}
"""So the sums."""
ROLLED: Final = "/day/"
"""What the names of rolled-up days begin with; those of batches begin with the name of their mixer."""


def day_of(at: float) -> float:
    """Return the beginning of the day, UTC, that `at` is in."""
    return at - at % DAY_S


def batch_of(cell: Cell, day: float) -> str:
    """Return the name under which the hours of one cell and day are kept together."""
    parts = (cell.model, cell.version, cell.device_class, cell.region, str(cell.classes), f"{day:.0f}")
    return ROLLED + hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def added(day: MixedSum | None, hour: MixedSum, windows: Iterable[tuple[float, int]]) -> MixedSum:
    """Return `day`, or a new one, with `hour` in it.

    Args:
        windows: (period_start, devices) of every sum of this kind, cell and day, that of `hour` too. Several of one
            hour hold different devices.
    """
    assert hour.period_s == HOUR_S, "days are made of hours"
    devices: defaultdict[float, int] = defaultdict(int)
    for at, count in windows:
        devices[at] += count
    at_most, periods = max(devices.values()), len(devices)
    if day is None:
        start = day_of(hour.period_start)
        return replace(
            hour,
            batch=batch_of(hour.cell, start),
            mixer="",
            period_start=start,
            period_s=DAY_S,
            devices=at_most,
            late=False,
            periods=periods,
        )
    assert (day.kind, day.cell) == (hour.kind, hour.cell), "of one kind and cell"
    return replace(
        day,
        devices=at_most,
        sums=tuple(one + other for one, other in zip(day.sums, hour.sums, strict=True)),
        variance=day.variance + hour.variance,
        periods=periods,
    )


def days_of(hours: Iterable[MixedSum]) -> list[MixedSum]:
    """Return the days that `hours` make, by name and kind."""
    found: dict[tuple[str, str], MixedSum] = {}
    windows: defaultdict[tuple[str, str], list[tuple[float, int]]] = defaultdict(list)
    for each in hours:
        key = (batch_of(each.cell, day_of(each.period_start)), each.kind.value)
        windows[key].append((each.period_start, each.devices))
        found[key] = added(found.get(key), each, windows[key])
    return [found[key] for key in sorted(found)]
