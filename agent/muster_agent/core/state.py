"""The device's durable state: what is saved in one transaction before anything is done about it.

    DeviceState ── models ── ModelState ─┬─ slots: active | standby   (both runnable, one serves)
                                         └─ update: the one change under way, or None

Pure values; `update.advance` is the only place that makes new ones from old ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from muster_shared.assignment import Watch
from muster_shared.ids import DeviceId, FleetId, ModelName, RolloutId, Sha256
from muster_shared.messages import ReleaseRef


class Phase(Enum):
    """Where an update stands; `update` draws the machine."""

    MANIFEST = "manifest"
    FILES = "files"
    TESTING = "testing"
    PROBATION = "probation"


@dataclass(frozen=True)
class Slots:
    """The release that serves, and the one before it, kept so that going back needs no download."""

    active: ReleaseRef | None = None
    standby: ReleaseRef | None = None

    def holds(self, bundle: Sha256) -> ReleaseRef | None:
        """Return the release with this bundle digest if a slot has it."""
        for slot in (self.active, self.standby):
            if slot is not None and slot.bundle_sha256 == bundle:
                return slot
        return None


@dataclass(frozen=True)
class Update:
    """A change under way, or the watch over a held-back control (`sham`: the release already runs)."""

    release: ReleaseRef
    watch: Watch | None
    phase: Phase
    began_at: float
    deadline_at: float | None
    sham: bool = False
    window_from: float | None = None
    """When the probation window opened."""
    boots: int = 0
    """Starts of the agent during probation: a release that takes the device down is rolled back."""
    bytes_fetched: int = 0


@dataclass(frozen=True)
class Settled:
    """A watch that has had its outcome: an assignment that repeats it for another model's sake starts nothing anew."""

    bundle: Sha256
    rollout: RolloutId
    wave: int
    good: bool


@dataclass(frozen=True)
class ModelState:
    slots: Slots = Slots()
    update: Update | None = None
    settled: Settled | None = None
    last_error: str | None = None


@dataclass(frozen=True)
class DeviceState:
    """Everything that must survive power loss, saved whole."""

    fleet: FleetId
    device: DeviceId
    counter: int = 0
    """The highest assignment counter obeyed; nothing at or below it is obeyed again."""
    assignment: Sha256 | None = None
    """The digest of that assignment, which a retained topic repeats."""
    models: Mapping[ModelName, ModelState] = field(default_factory=dict)
