"""The queue before one release: who is next, and which calls can share one run of the engine.

    push ──> now │ soon │ later ──> take(rows_max) ──> calls of equal shapes, first come first served within a class

Pure: no clock, no threads; `serving.rooms` holds the lock and the clock. The caller's bound is `waiting_rows`.
"""

from collections import deque
from typing import Generic, Protocol, TypeVar

CLASSES = 3
LATER = 2


class Waiting(Protocol):
    """What a call must say of itself."""

    rows: int
    priority: int
    shapes: tuple[tuple[int, ...], ...]
    arrived_ns: int
    deadline_ns: int
    cancelled: bool


C = TypeVar("C", bound=Waiting)


class CallQueue(Generic[C]):
    """Three queues, one for each class of priority. A class waits while any of a class before it does."""

    __slots__ = ("_classes", "waiting_rows")

    def __init__(self) -> None:
        self._classes: tuple[deque[C], ...] = tuple(deque() for _ in range(CLASSES))
        self.waiting_rows = 0

    def __len__(self) -> int:
        return sum(len(queue) for queue in self._classes)

    @property
    def urgent(self) -> bool:
        """Whether a call waits that is not for later."""
        return bool(self._classes[0]) or bool(self._classes[1])

    def push(self, call: C) -> None:
        self._classes[call.priority].append(call)
        self.waiting_rows += call.rows

    def oldest_ns(self) -> int | None:
        """Return when the longest waiting call of the first class that has any arrived."""
        for queue in self._classes:
            if queue:
                return queue[0].arrived_ns
        return None

    def take(self, rows_max: int, now_ns: int, *, later: bool = True) -> tuple[list[C], list[C]]:
        """Return (the calls of the next run, calls that need none): those that are too late or were given up.

        Calls of one run have equal shapes and together at most `rows_max` rows, or it is one call alone, however large.

        Args:
            later: Whether calls for later may run now.
        """
        batch: list[C] = []
        spared: list[C] = []
        rows = 0
        shapes: tuple[tuple[int, ...], ...] = ()
        for queue in self._classes if later else self._classes[:LATER]:
            if batch and queue is self._classes[LATER]:
                break  # Work for later must not make an urgent call longer.
            while queue:
                call = queue[0]
                if call.cancelled or now_ns > call.deadline_ns > 0:
                    spared.append(queue.popleft())
                    self.waiting_rows -= call.rows
                    continue
                if not batch:
                    shapes = call.shapes
                elif rows + call.rows > rows_max or call.shapes != shapes:
                    return batch, spared
                batch.append(queue.popleft())
                rows += call.rows
                self.waiting_rows -= call.rows
                if rows >= rows_max:
                    return batch, spared
        return batch, spared

    def clear(self) -> list[C]:
        """Take everything out."""
        calls = [call for queue in self._classes for call in queue]
        for queue in self._classes:
            queue.clear()
        self.waiting_rows = 0
        return calls

    def expired(self, now_ns: int) -> list[C]:
        """Take out every call that is too late or was given up, wherever it stands."""
        gone: list[C] = []
        for queue in self._classes:
            late = [call for call in queue if call.cancelled or now_ns > call.deadline_ns > 0]
            if late:
                kept = [call for call in queue if call not in late]
                queue.clear()
                queue.extend(kept)
                gone += late
        self.waiting_rows -= sum(call.rows for call in gone)
        return gone
