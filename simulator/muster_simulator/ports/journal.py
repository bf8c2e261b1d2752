"""A journal in memory: what was committed survives everything, and a commit is whole or not there at all.

The outbox is bounded and drops as the one on SQLite does: steps first, outcomes last. Implements `ports.Journal`.
"""

from collections.abc import Sequence

from muster_agent.core.state import DeviceState
from muster_agent.errors import JournalFailed
from muster_shared.ids import EventId
from muster_shared.messages import Event, OutcomeReported, StepReached

OUTBOX_EVENTS_MAX = 400


class MemoryJournal:
    """`Journal` for the simulator and for tests. `failing` makes it refuse to write."""

    def __init__(self, *, outbox_events_max: int = OUTBOX_EVENTS_MAX) -> None:
        self.failing = False
        self.dropped: list[EventId] = []
        self._events_max = outbox_events_max
        self._state: DeviceState | None = None
        self._outbox: dict[EventId, Event] = {}

    def __len__(self) -> int:
        return len(self._outbox)

    def load(self) -> DeviceState | None:
        return self._state

    def commit(self, state: DeviceState, events: Sequence[Event]) -> None:
        if self.failing:
            raise JournalFailed("the journal cannot be written; is the disk full?")
        self._state = state
        for event in events:
            self._outbox.setdefault(event.id, event)
        while len(self._outbox) > self._events_max:
            event_id = min(self._outbox, key=lambda each: _rank(self._outbox[each]))
            del self._outbox[event_id]
            self.dropped.append(event_id)

    def pending(self, limit: int) -> Sequence[Event]:
        return [event for event, _ in zip(self._outbox.values(), range(limit), strict=False)]

    def forget(self, ids: Sequence[EventId]) -> None:
        if self.failing:
            raise JournalFailed("the journal cannot be written; is the disk full?")
        for event_id in ids:
            self._outbox.pop(event_id, None)


def _rank(event: Event) -> int:
    if isinstance(event.body, StepReached):
        return 0
    return 2 if isinstance(event.body, OutcomeReported) else 1
