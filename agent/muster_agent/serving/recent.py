"""What each release did lately: readings of its counts now and then, and the difference to now.

    look, every LOOK_S ──▶ readings, denser the newer they are, LOOKS_MAX at most ──▶ the last `seconds`, about

A request costs nothing more for it: the counts are kept anyway. It judges nothing.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from muster_agent.serving.stats import Snapshot
from muster_agent.serving.table import ServingTable
from muster_shared.ids import Sha256
from muster_shared.messages import ReleaseRef

LOOK_S = 15.0
LOOKS_MAX = 48  # Twelve minutes at full density; thinned out, some hours.
BUSY_S = 10.0


@dataclass(frozen=True)
class _Look:
    at: float
    counts: dict[Sha256, Snapshot]


class Recent:
    """`ports.Lately`. `look` on one thread; the others may be called from any."""

    def __init__(self, table: ServingTable, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._table = table
        self._monotonic = monotonic
        self._looks: tuple[_Look, ...] = ()

    def look(self) -> None:
        """Keep a reading of what serves now."""
        looks = (*self._looks, self._now())
        if len(looks) > LOOKS_MAX:
            old = looks[: LOOKS_MAX // 2]
            looks = (*old[::2], *looks[LOOKS_MAX // 2 :])
        self._looks = looks

    def latency_ms_p95(self, release: ReleaseRef, seconds: float, requests_min: int) -> float | None:
        """See `ports.Lately`. Since the last reading that is as old, or since the first one that knows `release`."""
        now, bundle = self._now(), release.bundle_sha256
        if bundle not in now.counts:
            return None
        known = [look for look in self._looks if bundle in look.counts]
        old = [look for look in known if look.at <= now.at - seconds]
        earlier = old[-1] if old else known[0] if known else None
        counts = now.counts[bundle].since(Snapshot() if earlier is None else earlier.counts[bundle])
        return counts.p95_ms if counts.requests - counts.errors >= requests_min else None

    def requests_per_s(self) -> float | None:
        """Return the rate of all models together over about the last BUSY_S seconds or longer; None: unknown yet."""
        now = self._now()
        earlier = next((look for look in reversed(self._looks) if look.at <= now.at - BUSY_S), None)
        if earlier is None:
            return None
        requests = 0
        for bundle, counts in now.counts.items():
            before = earlier.counts.get(bundle, Snapshot())
            requests += counts.since(before).requests
        return requests / (now.at - earlier.at)

    def _now(self) -> _Look:
        places = self._table.places().values()
        return _Look(
            self._monotonic(), {place.served.manifest_sha256: place.served.stats.snapshot() for place in places}
        )
