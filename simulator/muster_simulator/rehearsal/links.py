"""When a device is online: spells of random length, drawn as far ahead as is asked, and never twice.

Times are Unix seconds. Nothing is said of what a device does meanwhile.
"""

from bisect import bisect_right
from math import inf
from random import Random


class Link:
    """When one device is online: spells whose lengths are drawn as far ahead as is asked."""

    def __init__(self, up: bool, start: float, back_per_s: float, gone_per_s: float, random: Random) -> None:
        self._up = up
        self._rates = gone_per_s, back_per_s
        self._random = random
        self._turns: list[float] = []
        """Times at which it turned."""
        self._known_to = start

    def is_up(self, at: float) -> bool:
        self._know(at)
        return self._up ^ (bisect_right(self._turns, at) & 1 == 1)

    def up_from(self, at: float) -> float:
        """Return `at` when it is online then, else when it comes back; inf: never."""
        if self.is_up(at):
            return at
        return self._turn_after(at)

    def through(self, at: float, seconds: float) -> float:
        while at < inf:
            at = self.up_from(at)
            gone_at = self._turn_after(at)
            if gone_at - at >= seconds:
                return at + seconds
            seconds -= gone_at - at
            at = gone_at
        return inf

    def _turn_after(self, at: float) -> float:
        self._know(at)
        place = bisect_right(self._turns, at)
        return self._turns[place] if place < len(self._turns) else inf

    def _know(self, at: float) -> None:
        """Draw spells until one ends after `at`."""
        while self._known_to <= at:
            is_up = self._up ^ (len(self._turns) & 1 == 1)
            rate = self._rates[0 if is_up else 1]
            if not rate:
                self._known_to = inf
                return
            self._known_to += self._random.expovariate(rate)
            self._turns.append(self._known_to)
