"""What is known of a rollout's members beside it, by their places: who is there, held, and in sight."""

import threading
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from itertools import repeat
from typing import Final

from muster_controller.core.rollout.roll import Roll
from muster_controller.core.rollout.waiting import Present
from muster_controller.db.snapshot import Committed
from muster_controller.fleet_index import bits
from muster_controller.fleet_index.view import Filter, FleetView
from muster_controller.holds import Hold
from muster_shared.ids import DeviceId

SEATS_MAX: Final = 16
"""Rollouts of which it is remembered: of 100,000 devices each is less than a megabyte."""


class Seats:
    """Where the members of a rollout are in the fleet's index: worked out once, and again when devices come or go.

    From any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: OrderedDict[int, tuple[Sequence[int], Sequence[DeviceId], int, array[int]]] = OrderedDict()

    def of(self, view: FleetView, roll: Roll) -> "array[int]":
        """Return for each place the slot of its device; -1: the fleet does not know it."""
        with self._lock:
            found = self._found.get(id(roll.order))
            # An index has another order whenever somebody comes or goes, and the same one else.
            if found is not None and found[0] is view.order and found[1] is roll.order and found[2] == roll.length:
                self._found.move_to_end(id(roll.order))
                return found[3]
        slots = array("q", map(view.slots.get, roll.order[: roll.length], repeat(-1)))
        with self._lock:
            self._found[id(roll.order)] = view.order, roll.order, roll.length, slots
            self._found.move_to_end(id(roll.order))
            while len(self._found) > SEATS_MAX:
                self._found.popitem(last=False)
        return slots


def present(fleet: Committed, roll: Roll, holds: Mapping[DeviceId, Hold], seats: Seats) -> Present:
    """Return how the members are.

    Args:
        fleet: As whoever asks may see it: of others nothing is said.
    """
    devices, view = fleet.devices, fleet.view
    slots = seats.of(view, roll)
    held = {
        place: hold.held
        for device, hold in holds.items()
        if (place := roll.places.get(device)) is not None and place < roll.length and device in devices
    }

    def seen_at(name: DeviceId) -> float | None:
        device = devices.get(name)
        return None if device is None else device.seen_at

    return Present(
        online=_placed(view, slots, Filter(online=True)),
        held=held,
        seen_at=seen_at,
        seen=-1 if view.is_whole else _placed(view, slots, Filter()),
    )


def in_sight(fleet: Committed, roll: Roll, seats: Seats) -> int:
    """Return the places of those members that may be told of, as bits."""
    return -1 if fleet.view.is_whole else _placed(fleet.view, seats.of(fleet.view, roll), Filter())


def _placed(view: FleetView, slots: Iterable[int], wanted: Filter) -> int:
    """Return the places of those members that `wanted` fits."""
    # Slots beyond the view are of devices that came since; -1 finds the last byte.
    flags = bits.flags(view.matching(wanted), view.length).ljust(len(view.ids) + 1, b"\0")
    return bits.where(map(flags.__getitem__, slots))  # type: ignore[arg-type]  # Bytes of 0 and 1.
