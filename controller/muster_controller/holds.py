"""Holds: devices that operators keep out of rollouts. Values, and a copy of the rows for the thread of the fleet.

    pinned        stays on what it runs; a member of rollouts that waits, and gets what its group runs afterwards
    quarantined   no rollout takes it, and what it says counts for nothing; it goes on serving
    gone          was decommissioned: what the broker still keeps of it is not believed

What follows from a hold is decided in `fleet` and `core.rollout`; who sets one is written down by `db.hold_store`.
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from muster_controller.core.rollout.explain import Held
from muster_controller.db.snapshot import Committed
from muster_shared.ids import DeviceId


class HoldKind(StrEnum):
    PINNED = "pinned"
    QUARANTINED = "quarantined"
    GONE = "gone"


@dataclass(frozen=True)
class Hold:
    """One device, and who holds it, since when (Unix seconds) and why."""

    device: DeviceId
    kind: HoldKind
    by: str
    at: float
    reason: str = ""

    @property
    def sentence(self) -> str:
        word = "decommissioned" if self.kind is HoldKind.GONE else self.kind.value
        return f"{word} by {self.by}" + (f": {self.reason}" if self.reason else "")

    @property
    def held(self) -> Held:
        """Return it as the core explains it."""
        return Held(self.kind is not HoldKind.PINNED, self.sentence)

    @property
    def is_out(self) -> bool:
        """Whether it is no member of rollouts at all."""
        return self.kind is not HoldKind.PINNED


FindHold = Callable[[DeviceId], Hold | None]


def nobody(device: DeviceId) -> Hold | None:
    """No device is held."""
    return None


def without_held(fleet: Committed, holds: "Holds") -> Committed:
    """Return the fleet without the devices that count for nothing; the same value where there are none."""
    out = {device for device, hold in holds.all().items() if hold.is_out and device in fleet.devices}
    if not out:
        return fleet
    return Committed(
        {name: device for name, device in fleet.devices.items() if name not in out},
        {name: desired for name, desired in fleet.desired.items() if name not in out},
        fleet.baselines,
        fleet.running,
        tallies=fleet.tallies,
    )


class Holds:
    """What is held now, as of the last `refresh`. Safe from any thread."""

    def __init__(self, read: Callable[[], Mapping[DeviceId, Hold]]) -> None:
        """
        Args:
            read: Returns all holds there are. Raises LedgerUnavailable.
        """
        self._read = read
        self._mutex = threading.Lock()
        self._held: Mapping[DeviceId, Hold] = {}
        self._changed: set[DeviceId] = set()

    def __call__(self, device: DeviceId) -> Hold | None:
        return self._held.get(device)

    def all(self) -> Mapping[DeviceId, Hold]:
        """Return them by device; never changed."""
        return self._held

    def refresh(self) -> frozenset[DeviceId]:
        """Read all of them, and return whose hold is another than when `took` was told. Raises LedgerUnavailable."""
        held = self._read()
        with self._mutex:
            devices = held.keys() | self._held.keys()
            self._changed |= {each for each in devices if held.get(each) != self._held.get(each)}
            self._held = held
            return frozenset(self._changed)

    def took(self, devices: frozenset[DeviceId]) -> None:
        """Forget that these changed: whoever goes by them has done what follows."""
        with self._mutex:
            self._changed -= devices
