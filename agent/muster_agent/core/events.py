"""What the update machine is told, and what it asks for: values only.

    world ── Event ──▶ update.advance ── Effect ──▶ conductor

Each effect may be repeated: after power loss it is issued again. `update` says which event follows from which effect.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from muster_agent.core.state import Stage
from muster_agent.core.trial import TrialReading
from muster_agent.core.trust import Target
from muster_shared.assignment import Assignment, Trial
from muster_shared.bundle import Manifest, Slo
from muster_shared.ids import ModelName, Sha256
from muster_shared.messages import EventBody, Hardware, Refusal, ReleaseRef, WindowReport


@dataclass(frozen=True)
class AssignmentArrived:
    """An assignment whose signature holds, with its digest and the targets that TUF vouches for now."""

    assignment: Assignment
    digest: Sha256
    targets: Mapping[str, Target]
    keys: tuple[str, ...] = ()
    """The ids of the keys that may sign assignments now; none: not known, and no counter is forgotten."""


@dataclass(frozen=True)
class ManifestReady:
    """The manifest of a release is on disk and hashes to what was assigned."""

    bundle: Sha256
    manifest: Manifest
    hardware: Hardware


@dataclass(frozen=True)
class FilesReady:
    """All files of the chosen variant are on disk, durable and verified."""

    bundle: Sha256
    bytes_fetched: int


@dataclass(frozen=True)
class FetchFailed:
    bundle: Sha256
    refusal: Refusal
    detail: str


@dataclass(frozen=True)
class SelfTestDone:
    """The golden cases ran on the engine that will serve, and it is warm. `refusal` is None when they passed."""

    bundle: Sha256
    refusal: Refusal | None
    detail: str


@dataclass(frozen=True)
class ClockRead:
    """The device's own local time, as its clock on the wall shows it."""

    bundle: Sha256
    weekday: int
    """Monday is 0."""
    minute: int
    """Of the day, 0..1439."""


@dataclass(frozen=True)
class ConsentGiven:
    bundle: Sha256
    stage: Stage


@dataclass(frozen=True)
class ConsentDeferred:
    """The device's own rules say later."""

    bundle: Sha256
    stage: Stage
    reason: str
    """The same words for the same reason: each new one is reported."""
    retry_after_s: float


@dataclass(frozen=True)
class TrialMeasured:
    bundle: Sha256
    reading: TrialReading


@dataclass(frozen=True)
class TrialRefused:
    """The candidate cannot be tried beside what serves."""

    bundle: Sha256
    detail: str


@dataclass(frozen=True)
class BeforeMeasured:
    """How long what served took in the time before the window; None: too little was asked."""

    bundle: Sha256
    latency_ms_p95: float | None


@dataclass(frozen=True)
class WindowMeasured:
    bundle: Sha256
    window: WindowReport
    slo: Slo


@dataclass(frozen=True)
class ServeFailed:
    """A slot that should serve does not load."""

    bundle: Sha256
    detail: str


@dataclass(frozen=True)
class PowerCameBack:
    """The agent starts. `broken`: slots whose files are not what they were."""

    broken: frozenset[Sha256]


@dataclass(frozen=True)
class TimeCame:
    """A wake-up; harmless at any moment."""


UpdateEvent = (
    ManifestReady
    | FilesReady
    | FetchFailed
    | SelfTestDone
    | ClockRead
    | ConsentGiven
    | ConsentDeferred
    | TrialMeasured
    | TrialRefused
    | BeforeMeasured
    | WindowMeasured
)
"""What happens to the update of one bundle."""
Event = AssignmentArrived | UpdateEvent | ServeFailed | PowerCameBack | TimeCame


@dataclass(frozen=True)
class FetchManifest:
    release: ReleaseRef


@dataclass(frozen=True)
class FetchFiles:
    release: ReleaseRef


@dataclass(frozen=True)
class StopFetching:
    bundle: Sha256


@dataclass(frozen=True)
class SelfTest:
    """Verify the files, load, run the golden cases, warm up; answered by `SelfTestDone`."""

    release: ReleaseRef


@dataclass(frozen=True)
class ReadClock:
    """Answered by `ClockRead`: afresh at each look, so a change to summer time needs no care."""

    release: ReleaseRef


@dataclass(frozen=True)
class AskConsent:
    """Ask the device's own rules; answered by `ConsentGiven` or `ConsentDeferred`, seconds later perhaps."""

    release: ReleaseRef
    stage: Stage


@dataclass(frozen=True)
class BeginTrial:
    """Put `release`, proven, beside what serves; `ReadTrial` tells how it does, `TrialRefused` that it cannot be."""

    release: ReleaseRef
    trial: Trial


@dataclass(frozen=True)
class ReadTrial:
    """Answered by `TrialMeasured`."""

    release: ReleaseRef


@dataclass(frozen=True)
class EndTrial:
    """Close the candidate. A candidate that takes over is not ended: `Serve` makes it the one that serves."""

    release: ReleaseRef


@dataclass(frozen=True)
class MeasureBefore:
    """Read how long `serving` took lately, before `release` takes over; answered by `BeforeMeasured`."""

    release: ReleaseRef
    serving: ReleaseRef
    seconds: float
    requests_min: int


@dataclass(frozen=True)
class Serve:
    """Let `release` take the model's traffic: loaded already after a self-test, to be loaded after a start."""

    release: ReleaseRef


@dataclass(frozen=True)
class Retire:
    model: ModelName


@dataclass(frozen=True)
class OpenWindow:
    """Start counting what `release` serves."""

    release: ReleaseRef


@dataclass(frozen=True)
class Measure:
    """Read the window; answered by `WindowMeasured`."""

    release: ReleaseRef


@dataclass(frozen=True)
class Report:
    body: EventBody


@dataclass(frozen=True)
class WakeAt:
    at: float


@dataclass(frozen=True)
class Collect:
    """Delete every stored file that no release of `keep` needs."""

    keep: frozenset[Sha256]
    resting: frozenset[Sha256] = frozenset()
    """Of those, what neither serves nor will without a new assignment: only its files stay."""


Effect = (
    FetchManifest
    | FetchFiles
    | StopFetching
    | SelfTest
    | ReadClock
    | AskConsent
    | BeginTrial
    | ReadTrial
    | EndTrial
    | MeasureBefore
    | Serve
    | Retire
    | OpenWindow
    | Measure
    | Report
    | WakeAt
    | Collect
)
