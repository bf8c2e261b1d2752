"""The device's durable state: what is saved in one transaction before anything is done about it.

    DeviceState ── models ── ModelState ─┬─ slots: active | standby   (both runnable, one serves)
                                         ├─ update: the one change under way, or None
                                         └─ failed: what there is of a release that may be tried again

Pure values; `update.advance` is the only place that makes new ones from old ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from muster_shared.assignment import Activation, Trial, Watch
from muster_shared.ids import DeviceId, FleetId, ModelName, RolloutId, Sha256
from muster_shared.messages import ReleaseRef


class Phase(Enum):
    """Where an update stands; `update` draws the machine."""

    WAITING = "waiting"
    """Whether it may be downloaded now is asked."""
    MANIFEST = "manifest"
    FILES = "files"
    TESTING = "testing"
    READY = "ready"
    """Proven and staged; whether it may take over now is asked."""
    TRYING = "trying"
    """Beside what serves, on live inputs."""
    PROBATION = "probation"


class Stage(Enum):
    """What a device may say "later" to."""

    DOWNLOAD = "download"
    ACTIVATE = "activate"


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
class Deferral:
    """The device says later. Its deadlines stand still meanwhile."""

    reason: str
    since: float
    until: float
    """When it looks again."""
    told: str
    """The reason that was reported last,"""
    told_at: float
    """and when."""


@dataclass(frozen=True)
class Tried:
    """What a trial on live inputs came to."""

    compared: int
    disagreed: int
    latency_ms_p95: float | None
    detail: str


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
    """Starts of the agent while it ran on live inputs: a release that takes the device down does not stay."""
    bytes_fetched: int = 0
    download_at: float | None = None
    """When all bytes must be here."""
    asking: Stage | None = None
    """What the device's own rules are asked now; an answer that was not asked for counts for nothing."""
    deferral: Deferral | None = None
    deferred_s: float = 0.0
    aside: bool = False
    """Put off, its engine was let go: nobody holds two models in memory for days. It is proven again in time."""
    cleared: bool = False
    """It may go on as soon as that is done, also when its window has closed meanwhile."""
    """In deferrals that are over."""
    trying_from: float = 0.0
    tried: Tried | None = None
    latency_ms_p95_before: float | None = None
    """Of what served in the time before the window."""

    @property
    def activation(self) -> Activation | None:
        """What is asked before it takes over; None: nothing, it is called back."""
        return None if self.watch is None else self.watch.activation

    @property
    def trial(self) -> Trial | None:
        return None if self.watch is None else self.watch.activation.trial


@dataclass(frozen=True)
class Settled:
    """A watch that has had its outcome: an assignment that repeats it for another model's sake starts nothing anew."""

    bundle: Sha256
    rollout: RolloutId
    wave: int
    good: bool
    attempt: int = 1


@dataclass(frozen=True)
class ModelState:
    slots: Slots = Slots()
    update: Update | None = None
    settled: Settled | None = None
    last_error: str | None = None
    failed: ReleaseRef | None = None
    """The release of the last update, when that failed: what there is of it stays for another attempt."""


@dataclass(frozen=True)
class DeviceState:
    """Everything that must survive power loss, saved whole."""

    fleet: FleetId
    device: DeviceId
    counter: int = 0
    """Of the assignment obeyed last; nothing at or below it is obeyed under the keys of then."""
    assignment: Sha256 | None = None
    """The digest of that assignment, which a retained topic repeats."""
    models: Mapping[ModelName, ModelState] = field(default_factory=dict)
    keys: Mapping[str, int] = field(default_factory=dict)
    """By the id of an assignment key: the highest counter obeyed while it was in force. Those of now are the last."""
