"""The controller's database in memory: a transaction is kept whole, or undone when the process dies inside it.

Implements `muster_controller.ports.Ledger`. Values are frozen, so rows are kept as they are. It is stricter than a
database: what is written must have been read, and what changed must have been named.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from muster_controller.core.rollout.events import Changes, Plot
from muster_controller.core.rollout.state import ENDED, Rollout
from muster_controller.ports import Baseline, Desired, Device, Issued, Ledger, Note
from muster_shared.ids import DeviceId, EventId, ModelName, RolloutId
from muster_shared.messages import Event
from muster_simulator.observer import Observer

K = TypeVar("K")
V = TypeVar("V")
NOTES_MAX = 2000
ISSUED_MAX = 200  # Of each device: weeks of virtual time must not fill the memory of the real machine.
COMPARED_MAX = 200  # Devices of a rollout up to which every save is checked for changes that it does not name.


@dataclass(frozen=True)
class _Table(Generic[K, V]):
    rows: dict[K, V]
    undo: list[Callable[[], None]]

    def put(self, key: K, value: V) -> None:
        if key in self.rows:
            before = self.rows[key]
            self.undo.append(lambda: self.rows.__setitem__(key, before))
        else:
            self.undo.append(lambda: self._take_out(key))
        self.rows[key] = value

    def take(self, key: K) -> None:
        if key in self.rows:
            before = self.rows.pop(key)
            self.undo.append(lambda: self.rows.__setitem__(key, before))

    def _take_out(self, key: K) -> None:
        del self.rows[key]


class MemoryLedger(Ledger):
    """It outlives the controller's process."""

    def __init__(self, observer: Observer) -> None:
        self.taken: Counter[EventId] = Counter()
        """How often each event was taken for new, in transactions that were kept."""
        self._observer = observer
        self._undo: list[Callable[[], None]] = []
        self._open = False
        self._devices: _Table[DeviceId, Device] = _Table({}, self._undo)
        self._desired: _Table[DeviceId, Desired] = _Table({}, self._undo)
        self._issued: _Table[DeviceId, tuple[Issued, ...]] = _Table({}, self._undo)
        self._rollouts: _Table[RolloutId, Rollout] = _Table({}, self._undo)
        self._points: _Table[RolloutId, tuple[Plot, ...]] = _Table({}, self._undo)
        self._baselines: _Table[tuple[ModelName, str], Baseline] = _Table({}, self._undo)
        self._events: _Table[EventId, Event] = _Table({}, self._undo)
        self._taken_now: list[EventId] = []
        self._notes: list[Note] = []

    @contextmanager
    def transaction(self) -> Iterator[None]:
        assert not self._open, "transactions do not nest"
        self._open = True
        self._undo.clear()
        self._taken_now.clear()
        notes = len(self._notes)
        try:
            yield
        except BaseException:
            for undo in reversed(self._undo):
                undo()
            del self._notes[notes:]
            raise
        else:
            self.taken.update(self._taken_now)
            del self._notes[:-NOTES_MAX]
        finally:
            self._undo.clear()
            self._open = False

    # -- devices -----------------------------------------------------------------------------------------------------

    def device(self, device: DeviceId) -> Device | None:
        return self._devices.rows.get(device)

    def devices(self) -> Sequence[Device]:
        return [self._devices.rows[device] for device in sorted(self._devices.rows)]

    def save_device(self, device: Device) -> None:
        self._check()
        self._devices.put(device.id, device)

    def forget(self, device: DeviceId) -> None:
        self._check()
        self._devices.take(device)
        self._desired.put(device, Desired(device, self.desired(device).counter))

    def desired(self, device: DeviceId) -> Desired:
        return self._desired.rows.get(device) or Desired(device)

    def all_desired(self) -> Sequence[Desired]:
        return [self._desired.rows[device] for device in sorted(self._desired.rows)]

    def save_desired(self, desired: Desired) -> None:
        self._check()
        before = self.desired(desired.device)
        self._desired.put(desired.device, desired)
        if desired.counter > before.counter:
            said = Issued(desired.device, desired.counter, desired.issued_at, desired.models)
            kept = self._issued.rows.get(desired.device, ())[1 - ISSUED_MAX :]
            self._issued.put(desired.device, (*kept, said))
        self._observer.desired_saved(before, desired)

    def issued(self, device: DeviceId, *, until: float | None = None, limit: int) -> Sequence[Issued]:
        kept = reversed(self._issued.rows.get(device, ()))
        return [issued for issued in kept if until is None or issued.at <= until][:limit]

    # -- rollouts ----------------------------------------------------------------------------------------------------

    def rollout(self, rollout: RolloutId) -> Rollout | None:
        return self._rollouts.rows.get(rollout)

    def rollouts(self, *, running: bool) -> Sequence[Rollout]:
        found = sorted(self._rollouts.rows.values(), key=lambda each: (each.created_at, each.id), reverse=True)
        return [rollout for rollout in found if not running or rollout.state not in ENDED]

    def save_rollout(self, rollout: Rollout, before: Rollout | None, changes: Changes) -> None:
        self._check()
        assert self._rollouts.rows.get(rollout.id) is before, "written over what was never read"
        if before is not None and len(rollout.members) <= COMPARED_MAX:
            assert _differing(before, rollout, changes) == Changes(), "changed without being named: it would be lost"
        self._rollouts.put(rollout.id, rollout)
        self._observer.rollout_saved(before, rollout)

    def save_point(self, rollout: RolloutId, point: Plot) -> None:
        self._check()
        self._points.put(rollout, (*self._points.rows.get(rollout, ()), point))

    def points(self, rollout: RolloutId) -> Sequence[Plot]:
        return self._points.rows.get(rollout, ())

    def baselines(self, model: ModelName) -> Sequence[Baseline]:
        found = [baseline for (name, _), baseline in self._baselines.rows.items() if name == model]
        return sorted(found, key=lambda each: (each.at, each.rollout, each.selector), reverse=True)

    def baseline_models(self) -> Sequence[ModelName]:
        return sorted({model for model, _ in self._baselines.rows})

    def save_baseline(self, baseline: Baseline) -> None:
        self._check()
        self._baselines.put((baseline.release.model, baseline.selector), baseline)

    # -- history -----------------------------------------------------------------------------------------------------

    def take_event(self, event: Event) -> bool:
        self._check()
        if event.id in self._events.rows:
            return False
        self._events.put(event.id, event)
        self._taken_now.append(event.id)
        return True

    def events(self, device: DeviceId | None, limit: int) -> Sequence[Event]:
        found = [event for event in reversed(self._events.rows.values()) if device in (None, event.device)]
        return found[:limit]

    def has_event(self, event: EventId) -> bool:
        return event in self._events.rows

    def note(self, note: Note) -> None:
        self._check()
        self._notes.append(note)

    def notes(self, limit: int) -> Sequence[Note]:
        return self._notes[: -limit - 1 : -1]

    def _check(self) -> None:
        assert self._open, "written outside a transaction"


def _differing(before: Rollout, after: Rollout, changes: Changes) -> Changes:
    """Return the rows that differ and that `changes` does not name."""
    members = (key for key, each in after.members.items() if _differs(before.members.get(key), each))
    controls = (key for key, each in after.controls.items() if _differs(before.controls.get(key), each))
    return Changes(frozenset(members) - changes.members, frozenset(controls) - changes.controls)


def _differs(before: object, after: object) -> bool:
    """Return whether a row is another: mostly it is the very same."""
    return before is not after and before != after
