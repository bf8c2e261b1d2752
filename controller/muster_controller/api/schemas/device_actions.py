"""Holds of devices, calls to them, and the end of one."""

from typing import Annotated, Any, Literal

from pydantic import Field

from muster_controller.api.schemas.base import Next, Said, Schema
from muster_controller.holds import HoldKind
from muster_shared.call import LINES_MAX, CallKind

LabelWord = Annotated[str, Field(max_length=128)]


class DeviceOrder(Schema):
    reason: Said = ""


class HoldView(Schema):
    device: str
    kind: HoldKind = Field(description="pinned, quarantined, gone (decommissioned), or revoked (it lost its identity).")
    by: str
    at: float
    reason: str


class HoldPage(Schema):
    holds: list[HoldView]
    next: Next


class DeviceOrdered(Schema):
    """How the device stands now."""

    device: str
    hold: HoldView | None = Field(description="Null: rollouts take it.")


class Decommissioned(Schema):
    device: str
    hold: HoldView
    identity: Literal["revoked", "none"] = Field(description="What became of its identity; none: it had none.")


class DeviceLabelOrder(Schema):
    set: dict[LabelWord, LabelWord] = Field(default={}, max_length=32)
    unset: list[LabelWord] = Field(default=[], max_length=32)
    changes: list[LabelWord] = Field(default=[], max_length=32, description="In words: `key=value`, `key-`.")
    reason: Said = ""


class DeviceLabels(Schema):
    device: str
    granted_labels: dict[str, str] = Field(description="What operators gave to it, as it is now.")


class CallOrder(Schema):
    what: CallKind
    lines: int = Field(100, ge=1, le=LINES_MAX, description="Of `logs`: how many, from the end.")


class CallView(Schema):
    id: str
    device: str
    what: CallKind
    asked_by: str
    asked_at: float
    expires_at: float
    state: Literal["waiting", "answered", "expired"] = Field(
        description="expired: none came in time; the device is away, its agent knows no calls, or its clock is off."
    )
    answered_at: float | None
    ok: bool | None = Field(description="Whether it did what it was asked for, and found nothing wrong.")
    answer: dict[str, Any] | None = Field(description="What the device said: `Answer` of the protocol.")


class CallPage(Schema):
    calls: list[CallView]
    next: Next
