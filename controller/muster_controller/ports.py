"""The ports of the fleet: everything it needs from the world, as protocols.

`db/`, `registry/` and `gateway/` implement them for real; the simulator implements them in memory, with faults.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

from muster_controller.core.rollout.events import Changes, Plot
from muster_controller.core.rollout.state import Rollout
from muster_shared.assignment import Assignment, ModelAssignment
from muster_shared.bundle import Manifest
from muster_shared.ids import DeviceId, EventId, ModelName, RolloutId, Sha256
from muster_shared.messages import Event, ReleaseRef, TrustFiles, Twin
from muster_shared.topics import Topic


@dataclass(frozen=True)
class Device:
    """What the controller knows of a device."""

    id: DeviceId
    online: bool = False
    boot: str = ""
    """Of the newest presence or twin."""
    seen_at: float = 0.0
    twin: Twin | None = None


@dataclass(frozen=True)
class Wanted:
    """What a device should run of one model, who says so, and since when."""

    assignment: ModelAssignment
    rollout: RolloutId
    at: float


@dataclass(frozen=True)
class Desired:
    """What a device should run, and the envelope that says so."""

    device: DeviceId
    counter: int = 0
    expires_at: float = 0.0
    models: Mapping[ModelName, Wanted] = field(default_factory=dict)
    envelope: bytes = b""
    issued_at: float = 0.0


@dataclass(frozen=True)
class Baseline:
    """What every device of a group should run when no rollout says otherwise. Of those that fit, the newest counts."""

    release: ReleaseRef
    rollout: RolloutId
    selector: str = ""
    """A Kubernetes label selector; empty: every device."""
    at: float = 0.0


@dataclass(frozen=True)
class Issued:
    """One line of the history of assignments: what a device was told, when, and by which rollouts."""

    device: DeviceId
    counter: int
    at: float
    models: Mapping[ModelName, Wanted]


@dataclass(frozen=True)
class Note:
    """One line of the fleet's history, for people."""

    at: float
    what: str
    subject: str
    detail: str
    actor: str = "controller"


class Ledger(Protocol):
    """The database. Everything between `with ledger.transaction():` is kept whole, or not at all."""

    def transaction(self) -> AbstractContextManager[None]: ...

    def device(self, device: DeviceId) -> Device | None: ...
    def devices(self) -> Sequence[Device]: ...
    def save_device(self, device: Device) -> None: ...

    def forget(self, device: DeviceId) -> None:
        """Keep nothing of it but its history and the counter of its assignments: neither what it said, nor what it
        should run. Were the counter to begin anew, a device that is back could take a new assignment for an old one."""
        ...

    def desired(self, device: DeviceId) -> Desired: ...
    def all_desired(self) -> Iterable[Desired]: ...
    def save_desired(self, desired: Desired) -> None: ...

    def rollout(self, rollout: RolloutId) -> Rollout | None: ...
    def rollouts(self, *, running: bool) -> Sequence[Rollout]:
        """Return all rollouts, newest first, or (`running`) only those that have not ended."""
        ...

    def save_rollout(self, rollout: Rollout, before: Rollout | None, changes: Changes) -> None:
        """Write the rollout itself, its new verdicts, and the rows that `changes` names.

        Args:
            before: what was read in this transaction, or None for a new one, of which everything is written.
        """
        ...

    def save_point(self, rollout: RolloutId, point: Plot) -> None:
        """Keep one point of the evidence's chart."""
        ...

    def points(self, rollout: RolloutId) -> Sequence[Plot]:
        """Return the points, oldest first."""
        ...

    def baselines(self, model: ModelName) -> Sequence[Baseline]:
        """Return the newest first."""
        ...

    def baseline_models(self) -> Sequence[ModelName]: ...

    def save_baseline(self, baseline: Baseline) -> None:
        """Keep it beside those before; one of the same model and selector takes the place of the older."""
        ...

    def issued(self, device: DeviceId, *, until: float | None = None, limit: int) -> Sequence[Issued]:
        """Return what a device was told, newest first. `save_desired` keeps it whenever the counter rose."""
        ...

    def take_event(self, event: Event) -> bool:
        """Keep `event`; return False when it was there already."""
        ...

    def events(self, device: DeviceId | None, limit: int) -> Sequence[Event]:
        """Return the newest events first."""
        ...

    def has_event(self, event: EventId) -> bool: ...

    def note(self, note: Note) -> None: ...
    def notes(self, limit: int) -> Sequence[Note]: ...


class Registry(Protocol):
    """Releases and their bytes, and the controller's own keys."""

    def trust_messages(self) -> Sequence[TrustFiles]: ...

    def release(self, model: ModelName, version: str) -> ReleaseRef | None:
        """Return a published, unrevoked release."""
        ...

    def releases(self) -> Sequence[ReleaseRef]: ...

    def manifest(self, bundle: Sha256) -> Manifest | None: ...

    def sign_assignments(self, assignments: Sequence[Assignment]) -> Sequence[bytes]:
        """Return the envelopes, in order. Many at once cost less than one by one."""
        ...

    def blob_length(self, sha256: Sha256) -> int | None:
        """Return the length of a manifest or a file that some release names, or None."""
        ...

    def read_blob(self, sha256: Sha256, offset: int, length: int) -> bytes: ...


class Wire(Protocol):
    """The broker. Nothing here waits."""

    def publish(self, topic: Topic, payload: bytes, *, qos: int, retain: bool = False) -> None: ...
