"""A part of a committed fleet, as somebody sees who has to do with some of its devices. Nothing is copied. Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TypeVar

from muster_controller.core.selector import Selector
from muster_controller.db.snapshot import Committed
from muster_controller.fleet_index.view import FleetView
from muster_shared.ids import DeviceId

T = TypeVar("T")


class Visible(Mapping[DeviceId, T]):
    """Of `whole`, what belongs to the devices of a view."""

    def __init__(self, whole: Mapping[DeviceId, T], view: FleetView) -> None:
        self._whole = whole
        self._view = view

    def __getitem__(self, device: DeviceId) -> T:
        if not self._view.has(device):
            raise KeyError(device)
        return self._whole[device]

    def __contains__(self, device: object) -> bool:
        return isinstance(device, str) and self._view.has(DeviceId(device)) and device in self._whole

    def __iter__(self) -> Iterator[DeviceId]:
        return (device for device in self._view.everybody() if device in self._whole)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def part_of(fleet: Committed, selector: Selector) -> Committed:
    """Return the fleet with the devices alone that `selector` fits."""
    view = fleet.view.restricted(selector)
    return replace(fleet, devices=Visible(fleet.devices, view), desired=Visible(fleet.desired, view), indexed=view)
