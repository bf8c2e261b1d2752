"""The ports of the fleet: everything it needs from the world, as protocols.

`db/`, `registry/` and `gateway/` implement them for real; the simulator implements them in memory, with faults.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

from muster_controller.core.rollout import Rollout
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
class Desired:
    """What a device should run, and the envelope that says so."""

    device: DeviceId
    counter: int = 0
    expires_at: float = 0.0
    models: Mapping[ModelName, ModelAssignment] = field(default_factory=dict)
    envelope: bytes = b""


@dataclass(frozen=True)
class Baseline:
    """What every device that fits should run of a model when no rollout says otherwise."""

    release: ReleaseRef
    rollout: RolloutId
    selector: Mapping[str, str] = field(default_factory=dict)


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

    def desired(self, device: DeviceId) -> Desired: ...
    def all_desired(self) -> Iterable[Desired]: ...
    def save_desired(self, desired: Desired) -> None: ...

    def rollout(self, rollout: RolloutId) -> Rollout | None: ...
    def rollouts(self, *, running: bool) -> Sequence[Rollout]:
        """Return all rollouts, newest first, or (`running`) only those that have not ended."""
        ...

    def save_rollout(self, rollout: Rollout, before: Rollout | None) -> None:
        """Write what differs from `before`."""
        ...

    def baseline(self, model: ModelName) -> Baseline | None: ...
    def baselines(self) -> Mapping[ModelName, Baseline]: ...
    def save_baseline(self, baseline: Baseline) -> None: ...

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

    def sign_assignment(self, assignment: Assignment) -> bytes: ...

    def blob_length(self, sha256: Sha256) -> int | None:
        """Return the length of a manifest or a file that some release names, or None."""
        ...

    def read_blob(self, sha256: Sha256, offset: int, length: int) -> bytes: ...


class Wire(Protocol):
    """The broker. Nothing here waits."""

    def publish(self, topic: Topic, payload: bytes, *, qos: int, retain: bool = False) -> None: ...
