"""Rollouts: what they are, the evidence and the counts behind it, their devices, and who waits for what."""

from typing import Any, Literal

from pydantic import ConfigDict, Field

from muster_controller.api.schemas.base import Next, Schema
from muster_controller.core.rollout.events import Order
from muster_controller.core.rollout.explain import Why

StateWord = Literal["running", "paused", "aborting", "aborted", "finished"]
VerdictWord = Literal["promote", "hold", "abort"]
OutcomeWord = Literal["pending", "good", "bad", "left"]


class RolloutCounts(Schema):
    devices: int
    waiting: int = Field(description="No wave has taken them yet.")
    queued: int = Field(description="A wave has taken them, and they were not told yet: pace and concurrency.")
    pending: int = Field(description="Told, and without an outcome; deferred and retrying ones are among them.")
    deferred: int = Field(description="They wait for their maintenance window, or their own rules say later.")
    retrying: int
    good: int
    bad: int
    left: int = Field(description="Not part of it any more: they left the group, or another rollout took them over.")
    returned: int = Field(description="Back on what they had, after an abort.")
    controls: int = Field(description="Held back to compare, over all waves.")
    bytes_fetched: int


class RolloutSummary(Schema):
    id: str
    model: str
    version: str
    previous: str | None
    state: StateWord
    pause: Literal["by_hand", "undecided"] | None = Field(description="Of a paused one: what lets it go on.")
    reason: str
    at_once: bool = Field(description="A rollback that waits for nothing.")
    selector: str = Field(description="Which devices take part; empty: all.")
    priority: int
    wave: int = Field(description="From 0; -1 before the first.")
    waves: list[int] = Field(description="The sizes that were planned.")
    created_at: float
    created_by: str
    ended_at: float | None
    due_at: float | None = Field(description="When it next looks at itself, at the latest; null once it has ended.")
    counts: RolloutCounts
    e: float = Field(description="The evidence that the release does harm: 1 is none.")
    hold_e: float = Field(description="The largest evidence of any one metric: what promotion is held by.")
    hold_at: float = Field(description="From here on nothing is promoted.")
    abort_at: float = Field(description="1 / alpha: here the rollout is aborted.")


class RolloutPage(Schema):
    rollouts: list[RolloutSummary]
    next: Next


class StratumView(Schema):
    """What happened in one wave to one device class. Devices that have not reported count as good."""

    wave: int
    device_class: str
    treated: int
    treated_bad: int
    controls: int
    controls_bad: int
    latency: list[tuple[int, int]] = Field(
        description="(bin, treated devices in it): the log slowdown of the p95 against the device's own controls, in"
        " steps of 0.005, rounded down."
    )
    compared: int = Field(description="Treated devices whose trial has compared candidate and incumbent.")
    disagreed: int = Field(description="Those of them that disagreed more than the policy bears.")


class MetricView(Schema):
    e: float
    e_pooled: float = Field(description="Of all devices together.")
    e_classes: dict[str, float] = Field(description="Of each device class alone.")


class EvidenceView(Schema):
    e: float
    hold_e: float
    metrics: dict[str, MetricView] = Field(description="Those in use of failures, latency and agreement.")
    e_controls: float = Field(description="F1: failures against devices of the same class that were held back.")
    e_objective: float = Field(description="F2: failures against the failure objective.")
    strata: list[StratumView] = Field(description="The counts; with the terms, E can be computed again from them.")


class TermsView(Schema):
    """What the gate goes by, settled before the first wave: with the strata, all that E is computed from."""

    alpha: float = Field(description="The chance of aborting a release that is no worse, over the whole rollout.")
    failure_objective: float
    tolerance: float
    latency_tolerance: float
    disagreement_objective: float
    weights: dict[str, float] = Field(description="The share of alpha of each metric in use; they sum to 1.")
    has_controls: bool


class VerdictView(Schema):
    at: float
    wave: int
    kind: VerdictWord
    reason: str
    evidence: EvidenceView


class WaveView(Schema):
    wave: int
    planned: int | None
    devices: int = Field(description="Taken by the wave.")
    queued: int
    pending: int = Field(description="Told, and without an outcome.")
    deferred: int
    good: int
    bad: int
    left: int
    controls: int
    controls_pending: int
    began_at: float | None
    soak_ends_at: float | None = Field(description="Of a wave that passed: when the next may begin.")


class ApprovalGiven(Schema):
    before: str = Field(description='A wave from 1, or "finish".')
    by: str
    at: float
    reason: str


class Approvals(Schema):
    given: list[ApprovalGiven]
    awaited: str | None = Field(description="The gate before the next wave, or the end, and whose word opens it.")
    is_reached: bool = Field(description="Whether nothing but this approval holds the rollout now.")


class RolloutDetail(RolloutSummary):
    outlook: str = Field(description="What happens next, and what an operator can do.")
    orders: list[Order] = Field(description="What it would obey now.")
    policy: dict[str, Any]
    policy_written: dict[str, Any] = Field(description="What of the policy differs from the defaults.")
    evidence: EvidenceView
    terms: TermsView
    verdicts: list[VerdictView]
    approvals: Approvals
    wave_views: list[WaveView]
    wave_began_at: float | None
    wave_passed_at: float | None


class MemberView(Schema):
    device: str
    device_class: str
    wave: int | None
    arm: Literal["treated", "control", "waiting"]
    outcome: OutcomeWord
    cause: str = Field(description="Why it is bad, in the word that an error condition can name.")
    reason: str
    step: str | None
    attempt: int
    assigned_at: float | None
    deadline_at: float | None
    retry_at: float | None
    deferred_until: float | None
    bytes_fetched: int
    seconds: float
    latency_ratio: float | None = Field(description="p95 after / p95 before.")
    disagreed: bool | None
    previous: str | None = Field(description="What it ran when it was told: an abort brings it back there.")
    controls: list[str] = Field(description="Held back for this treated device alone.")
    partner: str | None = Field(description="Of a control: the treated device that it was drawn for.")
    second: OutcomeWord | None = Field(description="What came of a retry by an operator's order. Not counted.")
    returned: bool


class MemberPage(Schema):
    members: list[MemberView]
    next: Next


class WaitingView(Schema):
    device: str
    device_class: str
    wave: int | None
    online: bool
    why: Why
    sentence: str
    until: float | None = Field(description="When that ends by itself, where it is known.")


class WaitingPage(Schema):
    waiting: list[WaitingView]
    next: Next
    counts: dict[Why, int] = Field(description="Over all pages.")
    outlook: str
    due_at: float | None


class EvidencePointView(Schema):
    at: float
    wave: int
    e: float
    metrics: dict[str, float]
    treated: int
    reported: int
    bad: int


class EvidencePage(Schema):
    points: list[EvidencePointView] = Field(description="Oldest first.")
    next: Next


class Ordering(Schema):
    """Why it is ordered. Who does, the request's token or session says."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra={"example": {"reason": "lunch"}})

    reason: str = Field(default="", max_length=500, description="For the history.")
    seconds: float | None = Field(
        default=None, gt=0, le=90 * 86400.0, description="Of `extend`: how much longer devices have."
    )
