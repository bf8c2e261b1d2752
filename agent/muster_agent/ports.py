"""The ports of the conductor: everything it needs from the world, as protocols.

`io/`, `engines/` and `serving/` implement them on a device; the simulator implements them in memory, with faults.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from muster_agent.core.state import DeviceState, Stage
from muster_agent.core.trust import TrustView
from muster_shared.assignment import Assignment, Trial
from muster_shared.bundle import BundleFile, Manifest, Variant
from muster_shared.ids import EventId, ModelName, Sha256
from muster_shared.messages import Event, HostTelemetry, ReleaseRef, TrustFiles, Tuning, WindowReport
from muster_shared.topics import Topic


class Journal(Protocol):
    """Durable state and outbox. `commit` is one transaction: after power loss both are there, or neither."""

    def load(self) -> DeviceState | None: ...

    def commit(self, state: DeviceState, events: Sequence[Event]) -> None: ...

    def pending(self, limit: int) -> Sequence[Event]:
        """Return the oldest events that the controller has not acknowledged."""
        ...

    def forget(self, ids: Sequence[EventId]) -> None:
        """Drop acknowledged events."""
        ...


class Store(Protocol):
    """Files by content. What `has` affirms is whole, verified and durable."""

    def has(self, sha256: Sha256) -> bool: ...

    def resume(self, file: BundleFile) -> tuple[int, ...]:
        """Return the chunks of a partial file that verify against `file.chunks`; it need not exist."""
        ...

    def write_chunk(self, file: BundleFile, index: int, chunk: bytes) -> None:
        """Write one verified chunk. Raises DiskFull."""
        ...

    def finish(self, file: BundleFile) -> None:
        """Make the partial file a whole one. Raises FileTampered (and forgets it) when it does not hash to its name."""
        ...

    def read(self, sha256: Sha256) -> bytes:
        """Return a small whole file (a manifest). Raises StoreDamaged, and forgets it, when it is not itself."""
        ...

    def verify(self, file: BundleFile) -> bool:
        """Return whether the whole file is there and still hashes to its name; a damaged one is forgotten."""
        ...

    def abandon(self, sha256: Sha256) -> None:
        """Forget a partial file."""
        ...

    def collect(self, keep: frozenset[Sha256]) -> None:
        """Delete every whole or partial file that is not in `keep`."""
        ...


class Trust(Protocol):
    """TUF on the device."""

    def offer(self, files: TrustFiles) -> bool:
        """Take metadata as it arrived, untrusted; return whether it is news."""
        ...

    def refresh(self) -> TrustView:
        """Verify what was offered. Raises MetadataExpired, -Replayed, -Untrusted, or MetadataIncomplete."""
        ...

    def view(self) -> TrustView | None:
        """Return what was last verified."""
        ...

    def open_assignment(self, raw: bytes) -> Assignment:
        """Return the signed assignment in `raw`. Raises AssignmentForged, WireError."""
        ...


class Wire(Protocol):
    """The broker. Nothing here waits; what cannot be sent now is queued within bounds or lost, and asked for again."""

    def publish(self, topic: Topic, payload: bytes, *, qos: int, retain: bool = False) -> None: ...

    def listen(self, sha256: Sha256) -> None:
        """Subscribe to the chunks of one file."""
        ...

    def unlisten(self, sha256: Sha256) -> None: ...


@dataclass(frozen=True)
class Did:
    """What a release did since the agent started, beside its requests; as `TwinModel` has it."""

    errors: int = 0
    slow: int = 0
    inferences: int = 0
    cpu_ms: float | None = None
    drift: str | None = None


NOTHING = Did()


class ServedModel(Protocol):
    """What the twin tells of a serving model."""

    @property
    def engine(self) -> str: ...
    @property
    def requests(self) -> int: ...
    @property
    def latency_ms_p95(self) -> float | None: ...
    @property
    def tuning(self) -> Tuning | None:
        """How it is served, and what was measured to choose so; None where nothing is."""
        ...

    @property
    def did(self) -> Did: ...


class Lab(Protocol):
    """Engines and the serving table. Slow work answers later, by `Conductor.self_test_done` and `serve_failed`.

    `variants` are those that fit this device, at least one, in the publisher's order; the lab chooses among them.
    """

    def self_test(self, release: ReleaseRef, manifest: Manifest, variants: tuple[Variant, ...]) -> None: ...

    def serve(self, release: ReleaseRef, manifest: Manifest, variants: tuple[Variant, ...]) -> None: ...

    def retire(self, model: ModelName) -> None: ...

    def drop(self, keep: frozenset[Sha256]) -> None:
        """Close tested sessions of bundles that are not in `keep`."""
        ...

    def open_window(self, release: ReleaseRef) -> None: ...

    def measure(self, release: ReleaseRef) -> WindowReport:
        """Return what was counted since `open_window`; `seconds` by a clock that nobody can set."""
        ...

    def served(self, model: ModelName) -> ServedModel | None: ...


class Host(Protocol):
    def telemetry(self) -> HostTelemetry: ...


class Consent(Protocol):
    """The device's own clock and rules."""

    def local(self) -> tuple[int, int]:
        """Return the local weekday (Monday is 0) and the minute of the day (0..1439), as of now."""
        ...

    def ask(self, release: ReleaseRef, stage: Stage) -> None:
        """Answer later, by `Conductor.consent_given` or `consent_deferred`. What is asked twice is answered once."""
        ...


class Trials(Protocol):
    """Candidates beside what serves. Answers come later, by `Conductor.trial_measured` and `trial_refused`."""

    def begin(self, release: ReleaseRef, manifest: Manifest, variants: tuple[Variant, ...], trial: Trial) -> None: ...

    def read(self, release: ReleaseRef) -> None:
        """Answer what was counted; a trial that somebody else ended begins anew."""
        ...

    def end(self, release: ReleaseRef) -> None:
        """Close the candidate; nothing happens when it is none."""
        ...


class Lately(Protocol):
    def latency_ms_p95(self, release: ReleaseRef, seconds: float, requests_min: int) -> float | None:
        """Return how long 95 % of the requests took the engine in about the last `seconds`; None: fewer requests."""
        ...
