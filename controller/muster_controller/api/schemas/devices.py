"""Devices, and what they reported."""

from typing import Any, Literal

from pydantic import ConfigDict, Field

from muster_controller.api.schemas.base import Next, Schema
from muster_controller.api.schemas.device_actions import HoldView
from muster_controller.api.standing import Standing


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
    found: int = Field(description="How many there are on all pages.")
    next: Next


class SlotView(Schema):
    model: str
    phase: str = Field(description="idle, or how far the update under way has come.")
    active: ReleaseView | None
    standby: ReleaseView | None
    desired: ReleaseView | None = Field(description="What the controller wants.")
    rollout: str | None = Field(description="Which rollout says so.")
    since: float | None = Field(description="When it was said.")
    progress: float | None = Field(description="Share 0..1 of the bytes of the running update.")
    engine: str | None
    requests: int
    latency_ms_p95: float | None
    last_error: str | None


class DeviceDetail(DeviceView):
    granted_labels: dict[str, str] = Field(
        description="What its enrolment token gave to it; in `labels` they stand before what the device claims."
    )
    hold: HoldView | None = Field(description="Who keeps it out of rollouts; null: nobody.")
    slots: list[SlotView]
    assignment_counter: int
    accepted_counter: int
    assignment_expires_at: float | None
    endpoint: str | None
    timezone: str | None = Field(description="Of its maintenance windows.")
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
    next: int | None = Field(description="Give it as `cursor` for the next page; null on the last.")


class NoteView(Schema):
    cursor: int
    at: float
    what: str
    subject: str
    detail: str
    actor: str


class NotePage(Schema):
    notes: list[NoteView]
    next: int | None = Field(description="Give it as `cursor` for the next page; null on the last.")
