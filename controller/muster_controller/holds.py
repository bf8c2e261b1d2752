"""Holds: devices that operators keep out of rollouts. Values, and a copy of the rows for the thread of the fleet.

    pinned        stays on what it runs; a member of rollouts that waits, and gets what its group runs afterwards
    quarantined   no rollout takes it, and what it says counts for nothing; it goes on serving
    gone          was decommissioned: what the broker still keeps of it is not believed
    revoked       its identity was revoked, so nothing reaches it: offline, and out as if it were quarantined

What follows from a hold is decided in `fleet` and `core.rollout`; who sets one is written down by `db.hold_store`, and
who has no identity any more by `db.identity_store`.
"""

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from muster_controller.core.rollout.explain import Held
from muster_controller.identity.enrolment import Cut
from muster_shared.ids import DeviceId


class HoldKind(StrEnum):
    PINNED = "pinned"
    QUARANTINED = "quarantined"
    GONE = "gone"
    REVOKED = "revoked"


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
        return (f"{word} by {self.by}" if self.by else word) + (f": {self.reason}" if self.reason else "")

    @property
    def held(self) -> Held:
        """Return it as the core explains it."""
        return Held(self.kind is not HoldKind.PINNED, self.sentence)

    @property
    def is_out(self) -> bool:
        """Whether it is no member of rollouts at all."""
        return self.kind is not HoldKind.PINNED

    @property
    def is_cut(self) -> bool:
        """Whether it cannot speak: whatever is older than the hold and was kept somewhere is not believed."""
        return self.kind in (HoldKind.GONE, HoldKind.REVOKED)


FindHold = Callable[[DeviceId], Hold | None]


def nobody(device: DeviceId) -> Hold | None:
    """No device is held."""
    return None


def revoked(cut: Cut) -> Hold:
    """Return what follows for the fleet from an identity that a device lost."""
    return Hold(cut.device, HoldKind.REVOKED, cut.by, cut.at, cut.reason)


def all_holds(ordered: Mapping[DeviceId, Hold], revoked: Iterable[Hold]) -> dict[DeviceId, Hold]:
    """Return what holds of each: who is revoked may be pinned as well, and decommissioned is more than that."""
    found = dict(ordered)
    for hold in revoked:
        before = found.get(hold.device)
        if before is None or before.kind is not HoldKind.GONE:
            found[hold.device] = hold
    return found


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

    def gone(self) -> list[DeviceId]:
        """Return who was decommissioned, and not released since."""
        return [device for device, hold in self._held.items() if hold.kind is HoldKind.GONE]

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
