"""How the fleet stood at moments: what a sample holds, how long each kind is kept, and what a time span is drawn from.

A sample is a look, not a mean: counts of devices at that moment. Of an hour and of a day the first look is kept. Pure.
"""

from collections.abc import Iterable, Mapping

import msgspec

EVERY_S = 300
KEPT_S: Mapping[int, float] = {EVERY_S: 2 * 86_400.0, 3600: 60 * 86_400.0, 86_400: 5 * 366 * 86_400.0}
"""By period in seconds: five minutes for two days, hours for two months, days for five years."""
DRAWN_MAX = 600
VERSIONS_MAX = 200
"""Of all models: the rarest are left out of a sample."""


class FleetSample(msgspec.Struct, frozen=True):
    """The fleet at a moment: counts of devices."""

    devices: int
    online: int
    standings: dict[str, int]
    versions: dict[str, dict[str, int]]
    """By model and version: devices that serve it."""


def periods_due(at: float, newest: Mapping[int, float]) -> list[int]:
    """Return of which periods a look at `at` is the first.

    Args:
        newest: By period: Unix seconds of the newest sample of it.
    """
    return [period for period in KEPT_S if at // period > newest.get(period, -1.0) // period]


def period_for(span_s: float) -> int:
    """Return the finest period of which a span is kept whole and draws at most DRAWN_MAX points."""
    fitting = [period for period, kept in KEPT_S.items() if span_s <= kept and span_s / period <= DRAWN_MAX]
    return min(fitting, default=max(KEPT_S))


def sample(
    devices: int, online: int, standings: Mapping[str, int], versions: Iterable[tuple[str, str, int]]
) -> FleetSample:
    """Return a sample; `versions`: (model, version, devices)."""
    commonest = sorted(versions, key=lambda each: (-each[2], each))[:VERSIONS_MAX]
    by_model: dict[str, dict[str, int]] = {}
    for model, version, count in sorted(commonest):
        by_model.setdefault(model, {})[version] = count
    return FleetSample(devices, online, {name: count for name, count in standings.items() if count}, by_model)
