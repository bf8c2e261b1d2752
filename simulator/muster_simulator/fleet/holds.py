"""Operators that keep single devices out of rollouts: they pin, quarantine, decommission and revoke, and lift it again.

    order ─▶ row (`HoldDesk`) ─▶ the leading controller follows at once, any other within `HOLDS_S`
    decommissioned, revoked: the device has no identity any more ─▶ later, perhaps: it enrols anew ─▶ and is released

The rows outlive controllers, as the database does. What follows from them is decided by the shipped `Fleet`.
"""

from collections.abc import Callable, Mapping
from functools import partial
from random import Random
from typing import Protocol

from muster_controller.core.rollout.state import Outcome
from muster_controller.holds import Hold, HoldKind, all_holds
from muster_shared.ids import DeviceId
from muster_simulator.clock import Timeline
from muster_simulator.fleet.device import FleetDevice
from muster_simulator.fleet.scale import DAY_S, FleetFaults, Scale
from muster_simulator.fleet.watch import Watcher
from muster_simulator.history import History
from muster_simulator.ports.ledger import MemoryLedger

WARDEN = "margaret"
KINDS = (HoldKind.PINNED, HoldKind.QUARANTINED, HoldKind.GONE, HoldKind.REVOKED)
SHARES = (5, 4, 2, 2)
SHORTEST_S = 900.0
"""Longer than the clocks of controllers are wrong: whoever comes back speaks later than it was cut off."""
LONGEST_S = 2 * DAY_S
SCRAPPED = 0.2
"""How many of those that are decommissioned never come back."""


class HoldDesk:
    """The rows: what operators ordered, and which devices have no identity."""

    def __init__(self, watch: Watcher) -> None:
        self.ordered: dict[DeviceId, Hold] = {}
        self.revoked: dict[DeviceId, Hold] = {}
        self._watch = watch

    def all(self) -> Mapping[DeviceId, Hold]:
        return all_holds(self.ordered, self.revoked.values())

    def put(self, hold: Hold) -> None:
        rows = self.revoked if hold.kind is HoldKind.REVOKED else self.ordered
        rows[hold.device] = hold
        self._watch.held(hold.device, self.all()[hold.device])

    def take(self, device: DeviceId, kind: HoldKind) -> None:
        rows = self.revoked if kind is HoldKind.REVOKED else self.ordered
        del rows[device]
        self._watch.held(device, self.all().get(device))


class Hall(Protocol):
    """The controllers, as operators see them."""

    @property
    def clock(self) -> Callable[[], float]: ...

    @property
    def ledger(self) -> MemoryLedger: ...

    @property
    def is_there(self) -> bool: ...

    def follow_holds(self) -> None: ...


class Wardens:
    """Whoever may hold devices."""

    def __init__(
        self,
        timeline: Timeline,
        hall: Hall,
        desk: HoldDesk,
        devices: Mapping[DeviceId, FleetDevice],
        history: History,
        random: Random,
        scale: Scale,
        faults: FleetFaults,
    ) -> None:
        self.held_ever: set[DeviceId] = set()
        self._timeline = timeline
        self._hall = hall
        self._desk = desk
        self._devices = devices
        self._names = sorted(devices)
        self._history = history
        self._random = random
        self._per_day = faults.holds * len(devices) + faults.holds_besides * DAY_S / scale.chaos_s
        self._is_over = False

    @property
    def is_idle(self) -> bool:
        """Whether nobody is held."""
        return not self._desk.ordered and not self._desk.revoked

    def begin(self) -> None:
        self._next()

    def end(self) -> None:
        """Hold nobody any more, and let some go; the others stay held through what comes."""
        self._is_over = True
        for hold in sorted(self._desk.all().values(), key=lambda each: each.device):
            if self._random.random() < 0.5:
                self._timeline.after(self._random.uniform(0.0, 3600.0), partial(self._lift, hold))

    def lift_all(self) -> None:
        """Let everybody go; whoever had no identity enrols anew."""
        for hold in sorted(self._desk.all().values(), key=lambda each: each.device):
            self._timeline.after(self._random.uniform(0.0, 3600.0), partial(self._lift, hold))

    # ----------------------------------------------------------------------------------------------------------------

    def _next(self) -> None:
        if self._per_day > 0:
            self._timeline.after(self._random.expovariate(self._per_day / DAY_S), self._happen)

    def _happen(self) -> None:
        if self._is_over:
            return
        self._act()
        self._next()

    def _act(self) -> None:
        name, kind = self._somebody(), self._random.choices(KINDS, SHARES)[0]
        device = self._devices[name]
        held = self._desk.all().get(name)
        if held is not None and (kind is not HoldKind.REVOKED or held.kind is not HoldKind.PINNED):
            return
        if not self._hall.is_there or self._hall.ledger.device(name) is None or device.is_dead:
            return  # There is nobody to ask, or nobody to hold.
        hold = Hold(name, kind, WARDEN, self._hall.clock(), "so it is drawn")
        self._history.add("warden", kind.value, name)
        self.held_ever.add(name)
        self._desk.put(hold)
        if kind in (HoldKind.GONE, HoldKind.REVOKED):
            device.lose_identity()
            if kind is HoldKind.GONE and self._random.random() < SCRAPPED:
                device.die()
        self._follow()
        lasts_s = SHORTEST_S * (LONGEST_S / SHORTEST_S) ** self._random.random()
        self._timeline.after(lasts_s, partial(self._lift, hold))

    def _somebody(self) -> DeviceId:
        """Draw a device: mostly one that a rollout is at work on, where it hurts."""
        rollouts = self._hall.ledger.rollouts(running=True)
        if rollouts and self._random.random() < 0.7:
            rollout = self._random.choice(rollouts)
            busy = [
                member.device
                for member in rollout.members.values()
                if member.wave is not None and member.outcome is Outcome.PENDING
            ]
            busy += [control.device for control in rollout.controls.values() if control.outcome is Outcome.PENDING]
            if busy:
                return self._random.choice(sorted(busy))
        return self._random.choice(self._names)

    def _lift(self, hold: Hold) -> None:
        is_revoked = hold.kind is HoldKind.REVOKED
        if (self._desk.revoked if is_revoked else self._desk.ordered).get(hold.device) is not hold:
            return  # It was lifted before.
        if not self._hall.is_there or (not is_revoked and hold.device in self._desk.revoked):
            self._timeline.after(600.0, partial(self._lift, hold))
            return
        device = self._devices[hold.device]
        if hold.kind is HoldKind.GONE and not device.has_identity and not device.is_dead:
            self._history.add("warden", "enrols", hold.device)
            device.enrol()  # It is back, and somebody finds it.
            self._timeline.after(self._random.uniform(60.0, 3600.0), partial(self._lift, hold))
            return
        self._history.add("warden", "lifts", hold.kind.value, hold.device)
        self._desk.take(hold.device, hold.kind)
        self._follow()
        if is_revoked:
            device.enrol()

    def _follow(self) -> None:
        self._timeline.after(self._random.uniform(0.01, 0.5), self._hall.follow_holds)
