"""The controller's database in memory: a transaction is kept whole, or undone when the process dies inside it.

Implements `muster_controller.ports.Ledger`. Values are frozen, so rows are kept as they are.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from muster_controller.core.rollout import ENDED, Rollout
from muster_controller.ports import Baseline, Desired, Device, Ledger, Note
from muster_shared.ids import DeviceId, EventId, ModelName, RolloutId
from muster_shared.messages import Event
from muster_simulator.observer import Observer

K = TypeVar("K")
V = TypeVar("V")
NOTES_MAX = 2000


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
        self._rollouts: _Table[RolloutId, Rollout] = _Table({}, self._undo)
        self._baselines: _Table[ModelName, Baseline] = _Table({}, self._undo)
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

    def device(self, device: DeviceId) -> Device | None:
        return self._devices.rows.get(device)

    def devices(self) -> Sequence[Device]:
        return [self._devices.rows[device] for device in sorted(self._devices.rows)]

    def save_device(self, device: Device) -> None:
        self._check()
        self._devices.put(device.id, device)

    def desired(self, device: DeviceId) -> Desired:
        return self._desired.rows.get(device) or Desired(device)

    def all_desired(self) -> Sequence[Desired]:
        return [self._desired.rows[device] for device in sorted(self._desired.rows)]

    def save_desired(self, desired: Desired) -> None:
        self._check()
        before = self.desired(desired.device)
        self._desired.put(desired.device, desired)
        self._observer.desired_saved(before, desired)

    def rollout(self, rollout: RolloutId) -> Rollout | None:
        return self._rollouts.rows.get(rollout)

    def rollouts(self, *, running: bool) -> Sequence[Rollout]:
        found = reversed(self._rollouts.rows.values())
        return [rollout for rollout in found if not running or rollout.state not in ENDED]

    def save_rollout(self, rollout: Rollout, before: Rollout | None) -> None:
        self._check()
        assert self._rollouts.rows.get(rollout.id) is before, "written over what was never read"
        self._rollouts.put(rollout.id, rollout)
        self._observer.rollout_saved(before, rollout)

    def baseline(self, model: ModelName) -> Baseline | None:
        return self._baselines.rows.get(model)

    def baselines(self) -> Mapping[ModelName, Baseline]:
        return dict(self._baselines.rows)

    def save_baseline(self, baseline: Baseline) -> None:
        self._check()
        self._baselines.put(baseline.release.model, baseline)

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
