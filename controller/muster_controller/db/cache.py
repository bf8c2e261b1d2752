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

from muster_controller.core.rollout.state import ENDED, Rollout
from muster_controller.core.rollout.tally import Tally, followed, tally_of
from muster_controller.db.draft import BaselineKey, Draft, SavedRollout, newest_first
from muster_controller.db.snapshot import Committed, Touched
from muster_controller.fleet_index.index import Change, FleetIndex, index_of
from muster_controller.ports import Baseline, Desired, Device
from muster_shared.ids import DeviceId, EventId, ModelName, RolloutId

T = TypeVar("T")

ENDED_CACHED = 64  # Ended rollouts kept at hand: late devices ask for the one of their baseline again and again.
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
    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded
        self._ended: OrderedDict[RolloutId, Rollout] = OrderedDict()
        self._events: OrderedDict[EventId, None] = OrderedDict()
        self._lock = threading.Lock()  # Guards what follows, and `_loaded`, against `committed`.
        self._committed: Committed | None = None
        self._device_map: immutables.Map[DeviceId, Device] = immutables.Map(loaded.devices)
        self._desired_map: immutables.Map[DeviceId, Desired] = immutables.Map(loaded.desired)
        self._index: FleetIndex = index_of(loaded.devices, loaded.desired)
        self._tallies = _tallies(loaded)

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

    def ended(self, rollout: RolloutId) -> Rollout | None:
        if rollout in self._ended:
            self._ended.move_to_end(rollout)
        return self._ended.get(rollout)

    def keep_ended(self, rollout: Rollout) -> None:
        self._ended[rollout.id] = rollout
        while len(self._ended) > ENDED_CACHED:
            self._ended.popitem(last=False)

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
                    MappingProxyType(dict(self._tallies)),
                )
            return self._committed

    def adopt(self, draft: Draft, generation: int) -> Touched:
        """Follow a commit of `draft` that brought the database to `generation`."""
        tallies = {key: self._tally(saved) for key, saved in draft.rollouts.items() if saved.after.state not in ENDED}
        with self._lock:
            self._index.apply(self._changes(draft))
            self._device_map = _follow(self.devices, self._device_map, draft.devices)
            self._desired_map = _follow(self.desired, self._desired_map, draft.desired)
            self.baselines.update(draft.baselines)
            for key, saved in draft.rollouts.items():
                self.running.pop(key, None)
                self._tallies.pop(key, None)
                self._ended.pop(key, None)
                if saved.after.state in ENDED:
                    self.keep_ended(saved.after)
                else:
                    self.running[key] = saved.after
            self._tallies.update(tallies)
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
        index, tallies = index_of(loaded.devices, loaded.desired), _tallies(loaded)
        with self._lock:
            self._loaded = loaded
            self._device_map, self._desired_map, self._index = devices, desired, index
            self._tallies = tallies
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

    def _tally(self, saved: SavedRollout) -> Tally:
        """Follow what is known of the very rollout that was changed; count anything else."""
        key, before = saved.after.id, saved.before
        if before is None or key not in self._tallies or self.running.get(key) is not before:
            return tally_of(saved.after)
        return followed(self._tallies[key], before, saved.after, saved.changes)

    def _moved_to(self, generation: int) -> None:
        held = self._loaded
        self._loaded = Loaded(generation, held.devices, held.desired, held.baselines, held.running)
        self._committed = None


def _tallies(loaded: Loaded) -> dict[RolloutId, Tally]:
    return {key: tally_of(rollout) for key, rollout in loaded.running.items()}


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
