"""Rate limits: a bucket of requests for each source, which fills again with time. Pure: the time is given."""

from collections import OrderedDict
from dataclasses import dataclass, field

KEPT = 10_000


@dataclass
class RateLimit:
    """At most `burst` at once and `per_s` for long, for each key. Forgets the least recent key beyond `kept`."""

    per_s: float
    burst: float
    kept: int = KEPT
    _found: OrderedDict[str, tuple[float, float]] = field(default_factory=OrderedDict)
    """Key to what is left, and when that was so."""

    def take(self, key: str, now: float) -> float:
        """Take one and return 0, or return after how many seconds there is one again."""
        left, at = self._found.pop(key, (self.burst, now))
        left = min(self.burst, left + max(0.0, now - at) * self.per_s)
        wait_s = 0.0 if left >= 1.0 else (1.0 - left) / self.per_s
        self._found[key] = (left - 1.0 if wait_s == 0.0 else left, now)
        while len(self._found) > self.kept:
            self._found.popitem(last=False)
        return wait_s
