"""Counters out of rows that are added to for a while: how a series of periods becomes what only rises. Pure.

A row of `series` grows until its period is over, is rolled up and one day forgotten; a sum over rows would fall then,
which Prometheus takes for a restart. So what each row grew by is added to a counter that begins with the process.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

GROWS_S = 7200.0
"""How long a row is expected to grow. What comes to an older one is not counted here; the tables have it."""
AWAY_S = 86_400.0
"""Nobody asked for so long: what was before is not read again."""

Key = tuple[str, ...]
Counts = Mapping[str, float]


@dataclass
class Counting:
    """Totals by key and by name of what is counted, from the first `take` on."""

    totals: dict[Key, dict[str, float]] = field(default_factory=dict)
    _seen: dict[tuple[Key, float], Counts] = field(default_factory=dict)
    _taken_at: float | None = None

    def begin_at(self, now: float) -> float:
        """Return from when on rows are to be read for `take`: those that may have grown since the one before."""
        last = now if self._taken_at is None else max(self._taken_at, now - AWAY_S)
        return last - GROWS_S

    def take(self, rows: Iterable[tuple[Key, float, Counts]], now: float) -> None:
        """Add what rows have grown by since they were taken last. The first time, what is there is the zero.

        Args:
            rows: Key, beginning of the period, and what it counted by name.
        """
        is_first = self._taken_at is None
        for key, at, counts in rows:
            before = counts if is_first else self._seen.get((key, at), {})
            totals = self.totals.setdefault(key, {})
            for name, count in counts.items():
                totals[name] = totals.get(name, 0.0) + max(0.0, count - before.get(name, 0.0))
            self._seen[key, at] = counts
        self._taken_at = now
        kept_from = self.begin_at(now)
        self._seen = {place: counts for place, counts in self._seen.items() if place[1] >= kept_from}
