"""A rollout's report: what was ordered, what came of it and why, in one document that can be kept and shared."""

from typing import Any

from pydantic import Field

from muster_controller.api.schemas.base import Schema
from muster_controller.api.schemas.rollouts import EvidencePointView, RolloutCounts, StateWord, WaveView


class ShareView(Schema):
    """`bad` of `of`, with the 95 % interval (Wilson) of its share, 0..1."""

    bad: int
    of: int
    share: float
    low: float
    high: float


class ClassView(Schema):
    """What became of the devices of one class."""

    device_class: str
    devices: int
    good: int
    bad: int
    pending: int = Field(description="Told, and without an outcome.")
    untouched: int = Field(description="Never told.")
    left: int
    returned: int = Field(description="Of all of them: back on what they had.")
    treated: ShareView | None = Field(description="As the gate counts them: failures of those that were told.")
    controls: ShareView | None = Field(description="Failures of those that were held back beside them.")


class FailureView(Schema):
    cause: str = Field(description="In the word that an error condition can name.")
    reason: str = Field(description="As devices said it.")
    devices: int
    examples: list[str] = Field(description="Some of them.")


class MetricReport(Schema):
    metric: str
    e: float
    alone_at: float = Field(description="Where it would abort if it were the only one to speak.")
    e_classes: dict[str, float]


class TimelineEntry(Schema):
    at: float
    what: str
    detail: str
    by: str


class SpreadView(Schema):
    of: int = Field(description="Devices that told it.")
    median: float
    p90: float
    greatest: float


class RolloutReport(Schema):
    id: str
    model: str
    version: str
    previous: str | None
    state: StateWord
    reason: str
    outlook: str
    selector: str
    at_once: bool
    created_by: str
    created_at: float
    ended_at: float | None
    seconds: float = Field(description="From its creation to its end, or until now.")
    written_at: float = Field(description="When this report was made.")
    counts: RolloutCounts
    e: float
    hold_at: float
    abort_at: float
    metrics: list[MetricReport]
    classes: list[ClassView] = Field(description="The largest first, 100 at most.")
    failures: list[FailureView] = Field(description="The most frequent first, 50 at most.")
    other_failures: int = Field(description="Failed devices that `failures` leaves out.")
    waves: list[WaveView]
    timeline: list[TimelineEntry] = Field(description="Orders, decisions and verdicts, oldest first; the newest 500.")
    update_s: SpreadView | None = Field(description="How long devices took to fetch and switch.")
    latency_ratio: SpreadView | None = Field(description="p95 after / p95 before.")
    bytes_fetched: int
    policy: dict[str, Any]
    policy_document: str = Field(description="As YAML: what differs from the defaults.")
    points: list[EvidencePointView] = Field(description="The evidence over time, 300 at most.")
