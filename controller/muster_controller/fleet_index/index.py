"""The fleet's index: for every fact of a device, who it holds for. It follows each commit by what differs.

    Device, Desired ─ facts ─▶ (facet, value) pairs ─ what came and went ─▶ sets of slots (`bits`)
                                                                                │ snapshot, copied where it changed
                                                                                ▼
                                                            FleetView: filters, sorts, counts, from any thread

A device keeps its slot for as long as it is known. Pure: no database, no clock; what depends on the time (who is
silent) is asked with a time. The index belongs to one thread; a view is never changed.
"""

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from muster_controller.fleet_index import bits
from muster_controller.fleet_index.bits import Members
from muster_controller.fleet_index.label_ranks import LabelRanks
from muster_controller.fleet_index.view import (
    CLASS,
    DESIRED,
    ERROR,
    HAS,
    LABEL,
    ONLINE,
    SERVES,
    STANDING,
    TWIN,
    Facet,
    FleetView,
    Served,
)
from muster_controller.groups import device_class, labels_of
from muster_controller.ports import Desired, Device
from muster_controller.standing import standing
from muster_shared.ids import DeviceId

SORTS_FROM: Final = 256
"""So many new devices at once are sorted in, not inserted one by one."""


class Change(NamedTuple):
    """One device before and after a commit; None: not known then."""

    id: DeviceId
    device_before: Device | None
    desired_before: Desired | None
    device: Device | None
    desired: Desired | None


Fact = tuple[Facet, object]


def facts(device: Device | None, desired: Desired | None) -> list[Fact]:
    """Return what holds for a device, labels apart."""
    if device is None:
        return []
    twin = device.twin
    found: list[Fact] = [(STANDING, standing(device, desired)), (CLASS, device_class(device))]
    if device.online:
        found.append((ONLINE, True))
    if desired is not None:
        for name, wanted in desired.models.items():
            release = wanted.assignment.release
            found.append((DESIRED, Served(name, release.release, release.version)))
    if twin is not None:
        found.append((TWIN, True))
        for model in twin.models:
            if model.active is not None:
                found.append((SERVES, Served(model.model, model.active.release, model.active.version)))
        if any(model.last_error for model in twin.models):
            found.append((ERROR, True))
    return found


class FleetIndex:
    def __init__(self) -> None:
        self._slots: dict[DeviceId, int] = {}
        self._ids: list[DeviceId] = []
        """By slot; only grows, so views share it."""
        self._seen = array("d")
        self._order: list[int] = []
        """Slots by id."""
        self._all = 0
        self._facets: dict[Facet, dict[object, Members]] = {}
        self._is_shared: set[Facet] = set()
        """Facets whose dictionary some view has."""
        self._ranks = LabelRanks()
        self._view: FleetView | None = None

    def apply(self, changes: Iterable[Change]) -> None:
        """Follow one commit; each device at most once."""
        came: dict[Fact, list[int]] = {}
        went: dict[Fact, list[int]] = {}
        new: list[int] = []
        gone: list[int] = []
        seen: list[tuple[int, float]] = []
        for change in changes:
            if change.device is None and change.device_before is None:
                continue  # An assignment of somebody who never came.
            slot = self._slots.get(change.id)
            if slot is None:
                if change.device is None:
                    continue
                slot = len(self._ids)
                self._slots[change.id] = slot
                self._ids.append(change.id)
                new.append(slot)
            if change.device is None:
                gone.append(slot)
                del self._slots[change.id]
            else:
                seen.append((slot, change.device.seen_at))
            before = {*facts(change.device_before, change.desired_before)}
            after = {*facts(change.device, change.desired)}
            if _says_other_labels(change.device_before, change.device):
                before.update(_label_facts(change.device_before))
                after.update(_label_facts(change.device))
            for fact in after - before:
                came.setdefault(fact, []).append(slot)
            for fact in before - after:
                went.setdefault(fact, []).append(slot)
        self._place(new, gone, seen)
        for fact in came.keys() | went.keys():
            self._change(fact, came.get(fact, []), went.get(fact, []))
        if new or gone or seen or came or went:
            self._view = None

    def view(self) -> FleetView:
        """Return the fleet as it is now; the same object until the next change."""
        if self._view is None:
            self._is_shared = set(self._facets)
            self._view = FleetView(
                scope=self._all,
                facets=dict(self._facets),
                ids=self._ids,
                order=self._order,
                seen=self._seen[:],
                slots=self._slots,
                length=len(self._ids),
                ranks=self._ranks,
            )
        return self._view

    def _place(self, new: list[int], gone: list[int], seen: list[tuple[int, float]]) -> None:
        if new or gone:
            self._all = (self._all & ~bits.of(gone)) | bits.of(new)
            out = set(gone)
            order = [slot for slot in self._order if slot not in out] if gone else list(self._order)
            if len(new) < SORTS_FROM:
                for slot in new:
                    order.insert(bisect_left(order, self._ids[slot], key=self._ids.__getitem__), slot)
            else:
                order = sorted([*order, *new], key=self._ids.__getitem__)
            self._order = order
            self._seen.extend([0.0] * (len(self._ids) - len(self._seen)))
        for slot, at in seen:
            self._seen[slot] = at

    def _change(self, fact: Fact, came: list[int], went: list[int]) -> None:
        facet, value = fact
        values = self._facets.get(facet)
        if values is None or facet in self._is_shared:
            values = self._facets[facet] = dict(values or {})
            self._is_shared.discard(facet)
        members = bits.changed(values.get(value, ()), came, went)
        if bits.count(members):
            values[value] = members
            return
        values.pop(value, None)
        if not values:
            del self._facets[facet]


def _says_other_labels(before: Device | None, after: Device | None) -> bool:
    """Whether what labels are made of differs: a twin hardly ever changes it, and making them costs more than this."""
    old, new = None if before is None else before.twin, None if after is None else after.twin
    if old is None or new is None:
        return old is not new
    return (old.labels, old.hardware, old.agent_version) != (new.labels, new.hardware, new.agent_version)


def _label_facts(device: Device | None) -> list[Fact]:
    if device is None:
        return []
    found: list[Fact] = []
    for key, value in labels_of(device).items():
        found += (((LABEL, key), value), ((HAS, key), True))
    return found


def index_of(devices: Mapping[DeviceId, Device], desired: Mapping[DeviceId, Desired]) -> FleetIndex:
    """Return an index of a whole fleet."""
    made = FleetIndex()
    made.apply(Change(key, None, None, device, desired.get(key)) for key, device in devices.items())
    return made
