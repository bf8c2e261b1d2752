"""What the API says and takes, as types: the OpenAPI document is generated from these.

Field names are those of the wire and the core. Times are Unix seconds.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from muster_controller.api.standing import Standing


class Schema(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


# -- devices -------------------------------------------------------------------------------------------------------


class ReleaseView(Schema):
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={
            "example": {
                "model": "digits",
                "version": "1.4.0",
                "release": 14,
                "bundle_sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
            }
        },
    )

    model: str
    version: str
    release: int = Field(description="The counter that only rises within a model.")
    bundle_sha256: str


class DeviceView(Schema):
    id: str
    online: bool
    seen_at: float
    standing: Standing = Field(description="How it stands against what it should run, by its last twin.")
    device_class: str
    agent_version: str | None
    labels: dict[str, str]
    active: dict[str, str] = Field(description="Model to the version that serves.")
    desired: dict[str, str] = Field(description="Model to the version that should.")
    error: str | None = Field(description="The newest error of any of its models.")


class DevicePage(Schema):
    devices: list[DeviceView]
    next: str | None = Field(description="Give it as `cursor` for the next page; null on the last.")


class SlotView(Schema):
    model: str
    phase: str = Field(description="idle, or how far the update under way has come.")
    active: ReleaseView | None
    standby: ReleaseView | None
    desired: ReleaseView | None = Field(description="What the controller wants.")
    progress: float | None = Field(description="Share 0..1 of the bytes of the running update.")
    engine: str | None
    requests: int
    latency_ms_p95: float | None
    last_error: str | None


class DeviceDetail(DeviceView):
    slots: list[SlotView]
    assignment_counter: int
    accepted_counter: int
    assignment_expires_at: float | None
    endpoint: str | None
    hardware: dict[str, Any] | None
    host: dict[str, Any] | None


class EventView(Schema):
    cursor: int
    taken_at: float = Field(description="By the controller's clock.")
    device_at: float = Field(description="By the device's clock, which may be wrong.")
    id: str
    device: str
    kind: Literal["step", "outcome", "refused", "fault"]
    summary: str
    body: dict[str, Any]


class EventPage(Schema):
    events: list[EventView]
    next: int | None


class NoteView(Schema):
    cursor: int
    at: float
    what: str
    subject: str
    detail: str
    actor: str


class NotePage(Schema):
    notes: list[NoteView]
    next: int | None


# -- the fleet -----------------------------------------------------------------------------------------------------


class Health(Schema):
    status: Literal["ok"]
    version: str
    fleet: str
    broker_connected: bool
    initialised: bool = Field(description="Whether an operator has brought the trust metadata.")


class VersionView(Schema):
    model: str
    version: str
    release: int
    devices: int


class ExpiryView(Schema):
    role: str
    version: int
    expires_at: float


class RolloutCounts(Schema):
    devices: int
    waiting: int
    pending: int
    good: int
    bad: int
    returned: int
    bytes_fetched: int


class RolloutSummary(Schema):
    id: str
    model: str
    version: str
    previous: str | None
    state: Literal["running", "paused", "aborting", "aborted", "finished"]
    reason: str
    wave: int = Field(description="From 0; -1 before the first.")
    waves: list[int] = Field(description="The sizes that were planned.")
    created_at: float
    created_by: str
    ended_at: float | None
    counts: RolloutCounts
    e: float = Field(description="The evidence that the release does harm: 1 is none.")
    hold_at: float = Field(description="From here on nothing is promoted.")
    abort_at: float = Field(description="1 / alpha: here the rollout is aborted.")


class Status(Schema):
    fleet: str
    version: str
    uptime_s: float
    broker_url: str
    broker_connected: bool
    initialised: bool
    devices: int
    online: int
    standings: dict[Standing, int]
    classes: dict[str, int]
    versions: list[VersionView]
    baselines: dict[str, str] = Field(
        description="Model to the version that devices get when no rollout says otherwise."
    )
    rollouts: list[RolloutSummary] = Field(description="Those under way.")
    expiries: list[ExpiryView] = Field(description="When each role's metadata runs out, the nearest first.")
    counters: dict[str, int] = Field(description="Since the start.")


# -- rollouts ------------------------------------------------------------------------------------------------------


class StratumView(Schema):
    wave: int
    device_class: str
    treated: int
    treated_bad: int
    controls: int
    controls_bad: int


class EvidenceView(Schema):
    e: float
    e_controls: float = Field(description="F1: against devices of the same class that were held back.")
    e_objective: float = Field(description="F2: against the failure objective.")
    e_classes: dict[str, float]
    strata: list[StratumView] = Field(description="The counts; E can be computed again from them.")


class VerdictView(Schema):
    at: float
    wave: int
    kind: Literal["promote", "hold", "abort"]
    reason: str
    evidence: EvidenceView


class WaveView(Schema):
    wave: int
    planned: int | None
    devices: int
    controls: int
    pending: int
    good: int
    bad: int
    began_at: float | None


class RolloutDetail(RolloutSummary):
    policy: dict[str, Any]
    evidence: EvidenceView
    verdicts: list[VerdictView]
    wave_views: list[WaveView]
    wave_began_at: float | None


class MemberView(Schema):
    device: str
    device_class: str
    wave: int | None
    arm: Literal["treated", "control", "waiting"]
    outcome: Literal["pending", "good", "bad"]
    reason: str
    step: str | None
    bytes_fetched: int
    seconds: float
    returned: bool


class EvidencePointView(Schema):
    at: float
    e: float
    treated: int
    reported: int
    bad: int


class RolloutPage(Schema):
    rollouts: list[RolloutSummary]


class RolloutOrder(Schema):
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={
            "example": {"model": "digits", "version": "1.4.0", "policy": {"waves": [5, "25%"], "alpha": 0.05}}
        },
    )

    model: str
    version: str
    policy: dict[str, Any] = Field(default_factory=dict, description="What is not given takes its default.")
    dry_run: bool = Field(default=False, description="Say what would happen, and do nothing.")
    actor: str = Field(default="operator", max_length=64)


class Plan(Schema):
    """What a rollout would do."""

    model: str
    version: str
    previous: str | None
    devices: int
    online: int
    classes: dict[str, int]
    waves: list[int]
    policy: dict[str, Any]


class Reason(Schema):
    reason: str = Field(default="", max_length=500, description="For the history.")
    actor: str = Field(default="operator", max_length=64)


# -- models and trust ----------------------------------------------------------------------------------------------


class ModelView(Schema):
    name: str
    versions: list[str] = Field(description="Published and not revoked, oldest first.")
    baseline: str | None
    devices: dict[str, int] = Field(description="Version to the number of devices that it serves on.")


class ModelPage(Schema):
    models: list[ModelView]


class FileView(Schema):
    path: str
    sha256: str
    length: int


class VariantView(Schema):
    name: str
    runtime: str
    precision: str
    files: list[str]
    hardware: dict[str, Any]


class VersionDetail(ReleaseView):
    bundle_length: int
    licence: str
    card: str = Field(description="The model card, Markdown.")
    files: list[FileView]
    variants: list[VariantView]
    slo: dict[str, Any]
    lineage: dict[str, Any]
    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]
    labels: list[str]


class Publication(Schema):
    """The next signed metadata of a model's release role, and the manifest that it adds. Exact text: it is signed."""

    metadata: str = Field(description="As `muster model sign` wrote it.")
    manifest: str | None = Field(default=None, description="The bundle.json; null to revoke or renew.")


class Published(Schema):
    changed: bool = Field(description="False when exactly this was published before.")
    model: str
    versions: list[str]


class OfflineTrust(Schema):
    """The operator's root and targets, and the assignment keys that the targets vouch for. Exact text: it is signed."""

    root: str
    targets: str
    keys: str


class TrustChanged(Schema):
    changed: bool


class TrustPage(Schema):
    files: list[str] = Field(description="What `GET /trust/{file}` serves.")
    expiries: list[ExpiryView]


class BlobStored(Schema):
    sha256: str
    length: int
    created: bool
