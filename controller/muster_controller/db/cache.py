"""What the fleet looks at all the time, kept in memory as it was at one generation of the database.

The writing thread changes it; `committed` may be called from any thread. It reads and writes no database. Devices are
kept twice: in dictionaries, which the fleet reads and walks fastest, and in persistent maps with an index beside them
(`fleet_index`), of which readers get the newest without copying a hundred thousand entries.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeVar

import immutables

from muster_controller.core.rollout.roll import Roll, followed, roll_of
from muster_controller.core.rollout.state import ENDED, Rollout
from muster_controller.db.draft import BaselineKey, Draft, SavedRollout, newest_first
from muster_controller.db.ended import Ended
from muster_controller.db.snapshot import Committed, Touched
from muster_controller.fleet_index.index import Change, FleetIndex, index_of
from muster_controller.ports import Baseline, Desired, Device
from muster_shared.ids import DeviceId, EventId, ModelName, RolloutId

T = TypeVar("T")

EVENTS_REMEMBERED = 100_000  # Ids of events kept at hand, so that a repeated one costs no look into the database.


@dataclass(frozen=True)
class Loaded:
    """What is always at hand, read in one piece."""

    generation: int
    devices: dict[DeviceId, Device] = field(default_factory=dict)
    desired: dict[DeviceId, Desired] = field(default_factory=dict)
    baselines: dict[BaselineKey, Baseline] = field(default_factory=dict)
    running: dict[RolloutId, Rollout] = field(default_factory=dict)


class Cache:
    def __init__(self, loaded: Loaded, ended: Ended) -> None:
        self._loaded = loaded
        self._ended = ended
        self._events: OrderedDict[EventId, None] = OrderedDict()
        self._lock = threading.Lock()  # Guards what follows, and `_loaded`, against `committed`.
        self._committed: Committed | None = None
        self._device_map: immutables.Map[DeviceId, Device] = immutables.Map(loaded.devices)
        self._desired_map: immutables.Map[DeviceId, Desired] = immutables.Map(loaded.desired)
        self._index: FleetIndex = index_of(loaded.devices, loaded.desired)
        self._rolls = _rolls(loaded)

    @property
    def generation(self) -> int:
        return self._loaded.generation

    @property
    def devices(self) -> dict[DeviceId, Device]:
        return self._loaded.devices

    @property
    def desired(self) -> dict[DeviceId, Desired]:
        return self._loaded.desired

    @property
    def baselines(self) -> dict[BaselineKey, Baseline]:
        return self._loaded.baselines

    @property
    def running(self) -> dict[RolloutId, Rollout]:
        return self._loaded.running

    def has_event(self, event: EventId) -> bool:
        return event in self._events

    def forget_events(self) -> None:
        self._events.clear()

    def committed(self) -> Committed:
        """Return the fleet as of the last commit; the same object until the next."""
        with self._lock:
            if self._committed is None:
                by_model: dict[ModelName, tuple[Baseline, ...]] = {}
                for baseline in newest_first(self.baselines):
                    model = baseline.release.model
                    by_model[model] = (*by_model.get(model, ()), baseline)
                self._committed = Committed(
                    self._device_map,
                    self._desired_map,
                    MappingProxyType(by_model),
                    MappingProxyType(dict(self.running)),
                    self._index.view(),
                    MappingProxyType({key: roll.tally for key, roll in self._rolls.items()}),
                    MappingProxyType(dict(self._rolls)),
                )
            return self._committed

    def adopt(self, draft: Draft, generation: int) -> Touched:
        """Follow a commit of `draft` that brought the database to `generation`."""
        ended = {key: self._roll(saved) for key, saved in draft.rollouts.items() if saved.after.state in ENDED}
        rolls = {
            key: self._roll(saved) or roll_of(saved.after) for key, saved in draft.rollouts.items() if key not in ended
        }
        with self._lock:
            self._index.apply(self._changes(draft))
            self._device_map = _follow(self.devices, self._device_map, draft.devices)
            self._desired_map = _follow(self.desired, self._desired_map, draft.desired)
            self.baselines.update(draft.baselines)
            for key, saved in draft.rollouts.items():
                self.running.pop(key, None)
                self._rolls.pop(key, None)
                if saved.after.state in ENDED:
                    self._ended.wrote(saved.after, ended[key])
                else:
                    self._ended.drop(key)
                    self.running[key], self._rolls[key] = saved.after, rolls[key]
            self._moved_to(generation)
        self._events.update(dict.fromkeys(draft.events))
        while len(self._events) > EVENTS_REMEMBERED:
            self._events.popitem(last=False)
        return Touched(frozenset(draft.devices), frozenset(draft.rollouts), len(draft.notes))

    def advance(self, generation: int) -> None:
        """Follow a commit that touched nothing that is kept here."""
        with self._lock:
            self._moved_to(generation)

    def replace(self, loaded: Loaded) -> Touched:
        """Forget everything for what another process left, and say what differs."""
        before = self._loaded
        devices, desired = immutables.Map(loaded.devices), immutables.Map(loaded.desired)
        index, rolls = index_of(loaded.devices, loaded.desired), _rolls(loaded)
        with self._lock:
            self._loaded = loaded
            self._device_map, self._desired_map, self._index = devices, desired, index
            self._rolls = rolls
            self._committed = None
        self._ended.clear()
        self._events.clear()
        return Touched(
            frozenset(key for key, device in loaded.devices.items() if before.devices.get(key) != device)
            | frozenset(key for key, desired in loaded.desired.items() if before.desired.get(key) != desired),
            frozenset(
                key
                for key in before.running.keys() | loaded.running.keys()
                if before.running.get(key) != loaded.running.get(key)
            ),
            notes=1,  # There may be any number of them.
        )

    def _changes(self, draft: Draft) -> Iterable[Change]:
        for key in draft.devices.keys() | draft.desired.keys():
            device, desired = self.devices.get(key), self.desired.get(key)
            yield Change(key, device, desired, draft.devices.get(key, device), draft.desired.get(key, desired))

    def _roll(self, saved: SavedRollout) -> Roll | None:
        """Follow what is known of the very rollout that was changed; None: whoever needs it has to take it."""
        before = saved.before
        if before is None:
            return None
        roll = self._rolls.get(before.id) if self.running.get(before.id) is before else self._ended.known(before)
        return None if roll is None else followed(roll, before, saved.after, saved.changes)

    def _moved_to(self, generation: int) -> None:
        held = self._loaded
        self._loaded = Loaded(generation, held.devices, held.desired, held.baselines, held.running)
        self._committed = None


def _rolls(loaded: Loaded) -> dict[RolloutId, Roll]:
    return {key: roll_of(rollout) for key, rollout in loaded.running.items()}


def _follow(
    kept: dict[DeviceId, T], shown: immutables.Map[DeviceId, T], written: Mapping[DeviceId, T | None]
) -> immutables.Map[DeviceId, T]:
    """Keep what was written, None meaning that it is forgotten; return `shown` with the same."""
    following = shown.mutate()
    for device, value in written.items():
        if value is not None:
            kept[device] = following[device] = value
        elif device in kept:
            del kept[device], following[device]
    return following.finish()
