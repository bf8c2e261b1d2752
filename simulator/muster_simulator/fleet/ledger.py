"""The controllers' database in a fleet world: `MemoryLedger` that tells of commits, and keeps of events only their ids.

FleetLedger   what is there
StaleLedger   what a controller that was stopped still takes for true; whatever it writes is refused, as the fence
              of the real ledger does
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from muster_controller.core.rollout.events import Changes
from muster_controller.core.rollout.state import ENDED, Rollout
from muster_controller.db.errors import LedgerMoved
from muster_controller.ports import Desired
from muster_shared.ids import EventId
from muster_shared.messages import Event
from muster_simulator.fleet.watch import Watcher
from muster_simulator.observer import Observer
from muster_simulator.ports.ledger import MemoryLedger


class FleetLedger(MemoryLedger):
    """It outlives every controller. Watchers hear only of what was kept."""

    def __init__(self, watch: Watcher) -> None:
        super().__init__(Observer())
        self._watch = watch
        self._told: list[tuple[Rollout | None, Rollout, Changes] | tuple[Desired, Desired]] = []
        self._ids: set[EventId] = set()
        self._running: list[Rollout] | None = None
        self.generation = 0

    @contextmanager
    def transaction(self) -> Iterator[None]:
        self._told.clear()
        try:
            with super().transaction():
                yield
        except BaseException:
            self._running = None
            raise
        if not self._told:
            return
        self.generation += 1
        told, self._told = self._told, []
        for each in told:
            if len(each) == 3:
                self._watch.saved(*each)
            else:
                self._watch.desired(*each)
        self._watch.transacted()

    def save_desired(self, desired: Desired) -> None:
        self._told.append((self.desired(desired.device), desired))
        super().save_desired(desired)

    def rollouts(self, *, running: bool) -> Sequence[Rollout]:
        if not running:
            return super().rollouts(running=False)
        if self._running is None:
            self._running = list(super().rollouts(running=True))
        return self._running

    def save_rollout(self, rollout: Rollout, before: Rollout | None, changes: Changes) -> None:
        super().save_rollout(rollout, before, changes)
        self._told.append((before, rollout, changes))
        running = self._running
        if running is not None and before is not None and rollout.state not in ENDED and before.state not in ENDED:
            self._running = [rollout if each is before else each for each in running]
        else:
            self._running = None

    def take_event(self, event: Event) -> bool:
        self._check()
        if event.id in self._ids:
            return False
        self._ids.add(event.id)
        self._undo.append(lambda: self._ids.discard(event.id))
        return True

    def has_event(self, event: EventId) -> bool:
        return event in self._ids

    def freeze(self) -> "StaleLedger":
        """Return what a process that stops now goes on with later."""
        assert not self._open, "a process does not stop inside a transaction"
        stale = StaleLedger(Observer())
        stale.origin = self
        stale._devices.rows.update(self._devices.rows)
        stale._desired.rows.update(self._desired.rows)
        stale._rollouts.rows.update(self._rollouts.rows)
        stale._baselines.rows.update(self._baselines.rows)
        return stale


class StaleLedger(MemoryLedger):
    """A past that may be read, and never written."""

    origin: FleetLedger
    """The present."""

    @contextmanager
    def transaction(self) -> Iterator[None]:
        with super().transaction():
            yield
            if self._undo:
                raise LedgerMoved("the ledger", 0, 1)
