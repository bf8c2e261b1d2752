"""Every message that crosses the wire, except chunks (raw bytes) and assignments (signed, in `assignment`).

JSON through msgspec. Each message has a format version `v`; unknown fields are ignored, so a newer side may say more.
Times are Unix seconds. `decode` is the edge: it bounds the size and turns every defect into one `WireError`.
"""

from enum import Enum
from typing import TypeVar

import msgspec

from muster_shared.errors import WireError
from muster_shared.ids import DeviceId, EventId, ModelName, RolloutId, Sha256
from muster_shared.undecodable import UNDECODABLE, reason

VERSION = 1
MESSAGE_BYTES_MAX = 128 * 1024  # AWS IoT Core's limit, the lowest of the brokers that we mean to run on.


class Message(msgspec.Struct, frozen=True, kw_only=True):
    v: int = VERSION


class Hardware(msgspec.Struct, frozen=True, kw_only=True):
    """What a device is. Unknown stays None, never 0."""

    device_class: str
    """The stratum of rollouts and metrics: devices that should behave alike, such as `pi5-cpu`."""
    arch: str
    accelerators: tuple[str, ...] = ("cpu",)
    cpu_count: int = 1
    memory_mb: int = 0
    runtimes: tuple[str, ...] = ()


class HostTelemetry(msgspec.Struct, frozen=True, kw_only=True):
    """psutil's view of the host; None where the host does not tell."""

    cpu_percent: float | None = None
    memory_percent: float | None = None
    disk_percent: float | None = None
    temperature_c: float | None = None
    agent_rss_mb: float | None = None
    uptime_s: float | None = None
    throttled: bool | None = None
    """Whether the processor is held back now, by heat or by lack of power."""
    pressure_cpu_percent: float | None = None
    """Share of the last 10 s in which somebody waited for it (Linux, pressure stall information); so the next two."""
    pressure_memory_percent: float | None = None
    pressure_io_percent: float | None = None
    steal_percent: float | None = None
    """What the hypervisor took, since the reading before."""
    battery_percent: float | None = None
    energy_j: float | None = None
    """Of the whole host since it started, where a counter tells (RAPL, a battery's); it only rises."""
    net_sent_mb: float | None = None
    """By the agent's link since the agent started; so the next."""
    net_received_mb: float | None = None


class ReleaseRef(msgspec.Struct, frozen=True, kw_only=True):
    """A release by name and by content."""

    model: ModelName
    version: str
    release: int
    """The counter of the manifest."""
    bundle_sha256: Sha256
    bundle_length: int
    """Bytes of `bundle.json`."""


TRIALS_MAX = 8
TRIAL_TEXT_MAX = 160


class TuningTrial(msgspec.Struct, frozen=True, kw_only=True):
    """One way to run a release that a device tried, or would have."""

    variant: str
    threads: int
    instances: int
    rows_per_s: float | None = None
    """As measured; None when it was not."""
    refused: str = ""
    """Why it does not serve, TRIAL_TEXT_MAX characters at most; empty when others were faster."""


class Tuning(msgspec.Struct, frozen=True, kw_only=True):
    """How a device serves a release, and what it measured to choose so."""

    variant: str
    engine: str
    """Runtime and version."""
    device: str
    precision: str
    threads: int
    """Of one call."""
    instances: int
    """Calls at the same time."""
    batch_max: int
    rows_per_s: float
    latency_ms_p95: float
    """Of single rows at that rate."""
    fallback: str = ""
    """Why it does not run on what the variant asks for, TRIAL_TEXT_MAX characters at most."""
    alternatives: tuple[TuningTrial, ...] = ()
    """TRIALS_MAX at most, in the order in which they were tried."""


class TwinModel(msgspec.Struct, frozen=True, kw_only=True):
    """One model on one device as the device sees it."""

    model: ModelName
    phase: str
    active: ReleaseRef | None = None
    standby: ReleaseRef | None = None
    desired: ReleaseRef | None = None
    progress: float | None = None
    """Share 0..1 of the bytes of the running update."""
    engine: str | None = None
    """The achieved tuple: runtime version, device, precision, threads."""
    requests: int = 0
    latency_ms_p95: float | None = None
    last_error: str | None = None
    tuning: Tuning | None = None
    errors: int = 0
    """Of `requests`, failed in the engine or past their deadline; like it since the agent started, of `active` only."""
    slow: int = 0
    """Of `requests`, answered later than the release's `slo.latency_ms_p95`."""
    inferences: int = 0
    """Rows: a request for a batch of 8 is 8."""
    cpu_ms: float | None = None
    """Of the agent's process while it ran them."""
    drift: str | None = None
    """`metrics.DRIFT`, only where the configuration lets a device tell it of itself (`metrics.tell_drift`)."""


class Twin(Message, frozen=True, kw_only=True):
    """What a device reports of itself, whole; retained."""

    device: DeviceId
    sent_at: float
    boot: str
    """A new random word at each start of the agent."""
    sequence: int
    """Rises within a boot, so that a late copy does not overwrite a newer one."""
    agent_version: str
    counter: int
    """The highest assignment counter that the device accepted."""
    hardware: Hardware
    labels: dict[str, str] = {}
    timezone: str | None = None
    """Of its maintenance windows: an IANA name, or an offset such as `+02:00`; None where the host does not tell."""
    models: tuple[TwinModel, ...] = ()
    host: HostTelemetry = HostTelemetry()
    endpoint: str | None = None


class Presence(Message, frozen=True, kw_only=True):
    """Online, or (also by the broker, as the will) offline."""

    device: DeviceId
    boot: str
    online: bool
    sent_at: float


class Step(Enum):
    """How far an update came; each is reported once."""

    ACCEPTED = "accepted"
    FETCHING = "fetching"
    TESTING = "testing"
    DEFERRED = "deferred"
    """The device's consent or its maintenance window says later; `until` says when it looks again."""
    TRYING = "trying"
    """The candidate runs beside what serves, on live inputs."""
    SWITCHED = "switched"
    COMMITTED = "committed"
    ROLLED_BACK = "rolled_back"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Refusal(Enum):
    """Why an assignment, or one release in it, is not obeyed: one word for each thing an operator does differently."""

    FORGED = "forged"
    OTHER_DEVICE = "other_device"
    REPLAYED = "replayed"
    EXPIRED = "expired"
    METADATA_EXPIRED = "metadata_expired"
    METADATA_UNTRUSTED = "metadata_untrusted"
    NOT_A_TARGET = "not_a_target"
    WRONG_HARDWARE = "wrong_hardware"
    TAMPERED = "tampered"
    MANIFEST_INVALID = "manifest_invalid"
    SELF_TEST_FAILED = "self_test_failed"
    ENGINE_MISSING = "engine_missing"
    DISK_FULL = "disk_full"
    TIMED_OUT = "timed_out"
    TRIAL_FAILED = "trial_failed"
    """On live inputs the candidate disagrees too often, fails, or is too slow."""
    NO_CONSENT = "no_consent"
    """The device deferred until it was too late."""


class WindowReport(msgspec.Struct, frozen=True, kw_only=True):
    """What one device counted of one release in one probation window. Operational, device-identified; no inputs."""

    seconds: float
    requests: int = 0
    errors: int = 0
    labelled: int = 0
    right: int = 0
    latency_ms_p50: float | None = None
    latency_ms_p95: float | None = None
    latency_ms_p95_before: float | None = None
    """Of what served in the time before this window; None where nothing served, or nobody asked."""
    compared: int = 0
    """Live inputs that the candidate of a trial answered too."""
    disagreed: int = 0
    """Of those, otherwise than what served."""
    trial_latency_ms_p95: float | None = None
    """Of the candidate in its trial."""


class StepReached(msgspec.Struct, frozen=True, kw_only=True, tag="step"):
    release: ReleaseRef
    step: Step
    rollout: RolloutId | None = None
    bytes_fetched: int = 0
    seconds: float = 0.0
    """Since the update began."""
    refusal: Refusal | None = None
    detail: str = ""
    until: float | None = None
    """Of a deferral: when the device looks again, Unix seconds by its own clock."""
    attempt: int = 1


class OutcomeReported(msgspec.Struct, frozen=True, kw_only=True, tag="outcome"):
    """The one bit that the gate counts, with what it was judged from."""

    release: ReleaseRef
    rollout: RolloutId
    wave: int
    good: bool
    reason: str
    window: WindowReport | None = None
    attempt: int = 1
    """Of the watch: a late word on an attempt before says nothing of this one."""


class AssignmentRefused(msgspec.Struct, frozen=True, kw_only=True, tag="refused"):
    """A whole assignment that is not obeyed."""

    refusal: Refusal
    counter: int | None
    detail: str


class FaultSeen(msgspec.Struct, frozen=True, kw_only=True, tag="fault"):
    """Something is wrong on the device that no update explains, such as a rotten file in the active slot."""

    model: ModelName | None
    detail: str


EventBody = StepReached | OutcomeReported | AssignmentRefused | FaultSeen


class Event(Message, frozen=True, kw_only=True):
    """At least once, idempotent by `id`; kept on the device until the controller acknowledges it after its commit."""

    id: EventId
    device: DeviceId
    at: float
    body: EventBody


class Ack(Message, frozen=True, kw_only=True):
    """Events that are safe in the controller's database."""

    ids: tuple[EventId, ...]


class ControllerSession(Message, frozen=True, kw_only=True):
    """A controller (or its broker) began anew: devices publish their twins and open events again."""

    session: str
    sent_at: float


class Want(Message, frozen=True, kw_only=True):
    """Which chunks of a file a device lacks. Bit i of `missing` (least significant first in each byte) is chunk i."""

    device: DeviceId
    length: int
    chunk_bytes: int
    missing: bytes


ANSWER_BYTES_MAX = 64 * 1024
ANSWER_MODELS_MAX = 64


class ModelChecked(msgspec.Struct, frozen=True, kw_only=True):
    """What a self-test or a benchmark found of one release that serves."""

    model: ModelName
    version: str
    ok: bool
    detail: str = ""
    """Why not, or what was judged."""
    engine: str = ""
    seconds: float = 0.0
    calls: int = 0
    """Golden cases, or measured calls."""
    rows_per_s: float | None = None
    """Of one caller, one row a call; so the next two."""
    latency_ms_p50: float | None = None
    latency_ms_p95: float | None = None


class Answer(Message, frozen=True, kw_only=True):
    """What a device says to a call (`call.Call`); ANSWER_BYTES_MAX at most. No inputs, and no paths of the device."""

    id: str
    """Of the call."""
    device: DeviceId
    at: float
    ok: bool
    """Whether the device did what it was asked for, and found nothing wrong."""
    detail: str = ""
    seconds: float = 0.0
    """How long it took."""
    models: tuple[ModelChecked, ...] = ()
    lines: tuple[str, ...] = ()
    """Of the log, oldest first."""


class TrustFiles(Message, frozen=True, kw_only=True):
    """TUF metadata of one role (file name -> its exact text); for `root`, every version that the chain needs."""

    role: str
    files: dict[str, str]


M = TypeVar("M", bound=Message)


def encode(message: Message) -> bytes:
    return msgspec.json.encode(message)


def decode(raw: bytes, kind: type[M]) -> M:
    """Return the `kind` in `raw`.

    Raises:
        WireError: too large, not JSON, not a `kind`, or of a format that this side does not speak.
    """
    if len(raw) > MESSAGE_BYTES_MAX:
        raise WireError(f"a {kind.__name__} of {len(raw)} bytes; the limit is {MESSAGE_BYTES_MAX}")
    try:
        message = msgspec.json.decode(raw, type=kind)
    except UNDECODABLE as error:
        raise WireError(f"not a {kind.__name__}: {reason(error)}") from error
    if message.v != VERSION:
        raise WireError(f"a {kind.__name__} of format {message.v}; this side speaks {VERSION}")
    return message


def pack_bits(indices: tuple[int, ...], count: int) -> bytes:
    """Return a bitmap of `count` bits with those of `indices` set, least significant first."""
    bits = bytearray(-(-count // 8))
    for index in indices:
        bits[index >> 3] |= 1 << (index & 7)
    return bytes(bits)


def unpack_bits(bits: bytes, count: int) -> tuple[int, ...]:
    """Return the indices below `count` whose bit is set; the reverse of `pack_bits`."""
    return tuple(index for index in range(min(count, len(bits) * 8)) if bits[index >> 3] >> (index & 7) & 1)
