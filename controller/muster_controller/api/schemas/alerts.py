"""What the API says and takes of alerts, silences, objectives and receivers."""

from typing import Annotated, Literal

from pydantic import Field

from muster_controller.api.schemas.base import Next, Said, Schema
from muster_controller.core.alerts.burn import TARGET_MAX, TARGET_MIN, Indicator
from muster_controller.core.alerts.finding import Severity
from muster_controller.core.alerts.machine import State
from muster_controller.db.receiver_store import Kind

PEM_MAX = 64 * 1024
Pattern = Annotated[str, Field(max_length=200, description="Empty: all. `*` at its end stands for anything.")]


class AlertView(Schema):
    id: str
    rule: str
    subject: str = Field(description="An objective, a release, a device class, a rollout, a certificate, a mixer.")
    severity: Severity
    state: State
    summary: str
    facts: dict[str, str | int | float | bool | None] = Field(description="What it was decided from.")
    runbook: str = Field(description="The page that says what to do, in the repository; empty: there is none.")
    began_at: float
    changed_at: float
    seen_at: float = Field(description="When its condition held last, within a minute.")
    resolved_at: float | None
    told_at: float | None = Field(description="When receivers were told last that it fires; null: never.")
    times: int = Field(description="How often it came back within an hour of its end.")
    silenced: bool
    acknowledged_by: str
    acknowledged_at: float | None
    comment: str


class AlertPage(Schema):
    alerts: list[AlertView] = Field(description="Newest first.")
    next: Next


class RuleView(Schema):
    name: str
    title: str
    for_s: float = Field(description="How long its condition has to hold before it fires.")
    clear_s: float = Field(description="How long it has to be away before the alert ends.")
    runbook: str


class RulePage(Schema):
    rules: list[RuleView]
    next: Next


class Acknowledgement(Schema):
    comment: Said = ""


class NewSilence(Schema):
    rule: Pattern = ""
    subject: Pattern = ""
    length_s: float = Field(gt=0, le=30 * 86_400, allow_inf_nan=False)
    begins_at: float | None = Field(
        default=None, ge=0, le=1e11, allow_inf_nan=False, description="Unix seconds; null: now."
    )
    reason: Said = ""


class SilenceView(Schema):
    id: str
    rule: str
    subject: str
    begins_at: float
    ends_at: float
    by: str
    reason: str


class SilencePage(Schema):
    silences: list[SilenceView] = Field(description="Those that have not ended; the next to end first.")
    next: Next


class ObjectiveOrder(Schema):
    model: str = Field(max_length=64)
    device_class: str = Field(default="", max_length=64, description="Empty: every class.")
    indicator: Indicator
    target: float = Field(
        ge=TARGET_MIN, le=TARGET_MAX, description="Share of requests that must be good over 28 days, such as 0.999."
    )
    reason: Said = ""


class ObjectiveView(Schema):
    name: str
    model: str
    device_class: str
    indicator: Indicator
    target: float
    created_at: float
    created_by: str
    requests: int = Field(description="Of 28 days, that count; so the next.")
    bad: int
    budget_left: float | None = Field(
        description="Share of the error budget of 28 days; negative: overdrawn; null: there was no traffic."
    )
    rates: dict[str, float | None] = Field(
        description="Burn rates, by window in seconds: 1 uses up the budget in 28 days; null: no traffic."
    )


class ObjectivePage(Schema):
    objectives: list[ObjectiveView] = Field(description="By name.")
    next: Next


class NewReceiver(Schema):
    name: str = Field(max_length=64)
    kind: Kind
    address: str = Field(
        max_length=2000, description="An http or https URL, a mail address, or mqtts://[user@]host[:port]/topic."
    )
    password: str = Field(default="", max_length=1000, description="Of the user at a broker; it is not shown again.")
    ca: str = Field(
        default="", max_length=PEM_MAX, description="PEM: roots of a broker's certificate. Empty: usual ones."
    )
    certificate: str = Field(
        default="", max_length=PEM_MAX, description="PEM: a client certificate for a broker, its chain and its key."
    )
    severities: list[Severity] = Field(default_factory=list, max_length=3, description="Empty: all.")
    reviews: bool = Field(default=False, description="Whether weekly reviews go there, too.")
    reason: Said = ""


class ReceiverView(Schema):
    name: str
    kind: Kind
    address: str
    severities: list[Severity]
    reviews: bool
    created_at: float
    created_by: str
    disabled_at: float | None
    waiting: int = Field(description="Notices that wait to be told.")
    told: int = Field(description="Of the last week; so the next.")
    given_up: int
    error: str = Field(description="What a try that failed said last; empty: none did.")


class ReceiverMade(Schema):
    receiver: ReceiverView
    secret: str | None = Field(description="Of a webhook's signature, as Standard Webhooks has it. Shown this once.")


class ReceiverPage(Schema):
    receivers: list[ReceiverView] = Field(description="By name.")
    next: Next


class ReceiverTested(Schema):
    told: Literal[True] = True
