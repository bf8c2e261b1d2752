"""Lock-out: how long nobody may try a password again after so many failures in a row. Pure: the time is given.

failures   1..4   5      6      7     ...          the local token is never asked for a password,
lock       none   30 s   60 s   2 min ... 1 h      so nobody can lock out whoever holds the machine
"""

from collections import OrderedDict
from dataclasses import dataclass, field

FREE = 5  # The failure that locks first: people mistype.
FIRST_S = 30.0
LONGEST_S = 3600.0  # About 24 guesses a day: a password of twelve characters outlives that.
SOURCE_FREE = 20  # Of an address: an office may share one.
KEPT = 10_000  # Names and addresses; who asks under more of them than that is slowed by the rate limit.
FORGET_S = 24 * 3600.0


def lock_s(failures: int, free: int = FREE) -> float:
    """Return for how many seconds the `failures`-th failure in a row locks."""
    if failures < free:
        return 0.0
    return min(LONGEST_S, FIRST_S * 2.0 ** min(failures - free, 30))


@dataclass(frozen=True)
class Failures:
    count: int = 0
    locked_until: float = 0.0
    last_at: float = 0.0

    def failed(self, now: float, free: int = FREE) -> "Failures":
        """Return this with one more failure."""
        return Failures(self.count + 1, now + lock_s(self.count + 1, free), now)

    def wait_s(self, now: float) -> float:
        """Return how long nobody may try; 0: now."""
        return max(0.0, self.locked_until - now)


@dataclass
class Attempts:
    """Failures by key in memory: of addresses, and of names that nobody has, which must look like any other."""

    free: int = FREE
    kept: int = KEPT
    _found: OrderedDict[str, Failures] = field(default_factory=OrderedDict)

    def wait_s(self, key: str, now: float) -> float:
        return self._found.get(key, Failures()).wait_s(now)

    def failed(self, key: str, now: float) -> None:
        before = self._found.pop(key, Failures())
        if now - before.last_at > FORGET_S:
            before = Failures()
        self._found[key] = before.failed(now, self.free)
        while len(self._found) > self.kept:
            self._found.popitem(last=False)

    def succeeded(self, key: str) -> None:
        self._found.pop(key, None)
