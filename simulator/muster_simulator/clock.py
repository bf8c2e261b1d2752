"""Virtual time: one queue of what happens when, and clocks that are wrong.

Nothing here waits. Two things at one moment happen in the order in which they were asked for, so a seed replays.
"""

import heapq
from collections.abc import Callable

START = 1_800_000_000.0  # Some day in 2027: nothing depends on which.
Action = Callable[[], None]


class Timeline:
    """The event queue of one world."""

    def __init__(self, start: float = START) -> None:
        self.now = start
        """True time, in Unix seconds."""
        self.steps = 0
        self._heap: list[tuple[float, int, Action]] = []
        self._asked = 0

    @property
    def elapsed_s(self) -> float:
        return self.now - START

    def at(self, moment: float, action: Action) -> None:
        """Do `action` at `moment`; at once when that has passed."""
        self._asked += 1
        heapq.heappush(self._heap, (max(moment, self.now), self._asked, action))

    def after(self, delay_s: float, action: Action) -> None:
        self.at(self.now + delay_s, action)

    def step(self, until: float) -> bool:
        """Do the next thing if it is due by `until`; else let the time come to `until` and return False."""
        if not self._heap or self._heap[0][0] > until:
            self.now = max(self.now, until)
            return False
        self.now, _, action = heapq.heappop(self._heap)
        self.steps += 1
        action()
        return True


class SkewedClock:
    """A wall clock as a device has it: it runs, but may be set to anything."""

    def __init__(self, timeline: Timeline) -> None:
        self.offset_s = 0.0
        self._timeline = timeline

    def __call__(self) -> float:
        return self._timeline.now + self.offset_s
