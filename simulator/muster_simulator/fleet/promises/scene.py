"""What a promise may look at, and what every promise is."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from muster_controller.core.rollout.events import Changes
from muster_controller.core.rollout.state import Member, Outcome, Rollout
from muster_controller.holds import Hold, HoldKind
from muster_controller.ports import Ledger
from muster_shared.ids import DeviceId, ModelName, RolloutId, Sha256
from muster_shared.messages import ReleaseRef
from muster_simulator.fleet.device import FleetDevice
from muster_simulator.fleet.registry import FleetRegistry
from muster_simulator.fleet.watch import Watcher
from muster_simulator.invariants import InvariantBroken

LATE_WAVE = 1_000_000
"""The wave of a device that gets a release after its rollout has finished: part of the protocol."""


@dataclass
class Kept:
    """What is known of a device that is held."""

    hold: Hold
    since: float
    """True time, as all of these."""
    is_read: bool = False
    """A controller knows."""
    followed_at: float | None = None
    """When a controller did what follows."""
    runs: dict[ModelName, Sha256] = field(default_factory=dict)
    """What it ran then, as far as the controller knew."""

    @property
    def is_out(self) -> bool:
        """Whether it is no member of rollouts at all."""
        return self.hold.kind is not HoldKind.PINNED

    def is_followed_for(self, seconds: float, now: float) -> bool:
        return self.followed_at is not None and now >= self.followed_at + seconds


@dataclass
class Scene:
    """What a promise may look at."""

    devices: Mapping[DeviceId, FleetDevice]
    ledger: Ledger
    registry: FleetRegistry
    selectors: Mapping[RolloutId, str]
    clock: Callable[[], float]
    """The controllers'."""
    true_time: Callable[[], float]
    owners: dict[ModelName, dict[DeviceId, set[RolloutId]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(set))
    )
    """Which running rollouts of a model have a say over a device; kept by `OneRolloutADevice`."""
    complaints: set[tuple[DeviceId, Sha256]] = field(default_factory=set)
    """Which device said of which release that it does not do; kept by `Converges`."""
    faults: set[tuple[DeviceId, Sha256]] = field(default_factory=set)
    """Which device said that the files of which release are damaged; kept by `Converges`."""
    fleets: Callable[[], int] = lambda: 1
    """How many controllers believe to lead."""
    holds: dict[DeviceId, Kept] = field(default_factory=dict)
    """Whom operators hold, from their order on; kept by `HeldStay`."""
    retained: Callable[[DeviceId], bool] = lambda device: False
    """Whether the broker keeps an assignment of a device."""


class Promise(Watcher):
    """One promise. `name` is what a failing seed prints."""

    name = ""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene

    def broken(self, detail: str) -> InvariantBroken:
        return InvariantBroken(self.name, detail)


def home_of(rollout: Rollout, device: DeviceId) -> ReleaseRef | None:
    """Return what an abort brings `device` back to."""
    member = rollout.members.get(device)
    own = None if member is None else member.previous
    return own if own is not None and own.bundle_sha256 != rollout.release.bundle_sha256 else rollout.previous


def has_say(member: Member) -> bool:
    """Return whether the rollout has this device still: it did not leave, and no other took it over."""
    return Outcome.LEFT not in (member.outcome, member.second)


def newly_told(before: Rollout, after: Rollout, changes: Changes) -> list[Member]:
    told: list[Member] = []
    for device in changes.members:
        member, was = after.members[device], before.members.get(device)
        if member.assigned_at is not None and (was is None or was.assigned_at is None):
            told.append(member)
    return told
