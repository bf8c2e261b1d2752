"""What changed: between two moments, or from one device to another."""

from typing import Any, Literal

from pydantic import ConfigDict, Field

from muster_controller.api.schemas.base import Schema


class FieldChange(Schema):
    """One thing that is not what it was; null: it was not there."""

    what: str = Field(description="Such as `labels.site` or `policy.alpha`.")
    before: Any
    after: Any


class AssignmentChange(Schema):
    """Devices that should run another release at the end than at the beginning, by what moved them."""

    model: str
    before: str | None
    after: str | None
    rollout: str = Field(description="Which rollout says so; late devices have it by its baseline.")
    by: str = Field(description="Who created that rollout.")
    devices: int
    sample: list[str] = Field(description="Some of them, by id.")


class Switches(Schema):
    """How often devices reported that another release serves."""

    model: str
    version: str
    switched: int
    rolled_back: int


class OrderGiven(Schema):
    at: float
    what: str
    by: str
    detail: str


class RolloutChange(Schema):
    """A rollout that began, ended or was given orders."""

    rollout: str
    model: str
    version: str
    created_at: float
    created_by: str
    ended_at: float | None
    state: str
    reason: str
    policy: dict[str, Any] = Field(description="What differs from the defaults.")
    compared_with: str | None = Field(description="The rollout of the model before it, whose policy was another.")
    policy_changes: list[FieldChange]
    orders: list[OrderGiven]


class BaselineChange(Schema):
    """What devices of a group should run when no rollout says otherwise."""

    model: str
    selector: str
    before: str | None
    after: str
    at: float
    rollout: str
    by: str


class NoteLine(Schema):
    at: float
    what: str
    subject: str
    detail: str
    by: str


class TimeDiff(Schema):
    """What changed from one moment to another. `left_out` says by section how many lines did not fit."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    begin: float = Field(alias="from")
    end: float = Field(alias="to")
    model: str | None
    device: str | None
    assignments: list[AssignmentChange]
    switches: list[Switches]
    rollouts: list[RolloutChange]
    baselines: list[BaselineChange]
    trust: list[NoteLine] = Field(description="Releases, keys and trust metadata, and assignments that were refused.")
    groups: list[NoteLine] = Field(description="Devices that came into a group, left it, or were taken over.")
    left_out: dict[str, int]


class ModelSide(Schema):
    """One model on one device."""

    desired: str | None
    active: str | None
    standby: str | None
    baseline: str | None = Field(description="What its group should run when no rollout says otherwise.")
    why: str = Field(description="Which rollout or baseline says so, since when, and by whom.")


class DeviceSide(Schema):
    device: str
    online: bool
    seen_at: float
    standing: str


class ModelDiff(Schema):
    model: str
    same: bool
    a: ModelSide
    b: ModelSide


class DeviceDiff(Schema):
    """What is different from device `a` to device `b`."""

    a: DeviceSide
    b: DeviceSide
    kind: Literal["devices"] = "devices"
    differences: list[FieldChange] = Field(description="`before` is what `a` says, `after` what `b` says.")
    models: list[ModelDiff]
