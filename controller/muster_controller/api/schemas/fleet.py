"""The fleet at a glance."""

from typing import Literal

from pydantic import Field

from muster_controller.api.schemas.base import Schema
from muster_controller.api.schemas.rollouts import RolloutSummary
from muster_controller.api.standing import Standing


class Health(Schema):
    status: Literal["ok"]
    version: str
    fleet: str
    broker_connected: bool
    leading: bool = Field(description="Whether this controller decides; of several with one database, one does.")
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


class Status(Schema):
    fleet: str
    version: str
    uptime_s: float
    broker_url: str
    broker_connected: bool
    open_lab: bool = Field(description="Whether the broker takes anybody on its machine: for laboratories alone.")
    initialised: bool
    devices: int
    online: int
    standings: dict[Standing, int]
    classes: dict[str, int]
    versions: list[VersionView]
    baselines: dict[str, str] = Field(
        description="Model to the version that devices get when no rollout says otherwise, by the newest baseline."
    )
    rollouts: list[RolloutSummary] = Field(description="Those under way.")
    expiries: list[ExpiryView] = Field(description="When each role's metadata runs out, the nearest first.")
    counters: dict[str, int] = Field(description="Since the start.")
