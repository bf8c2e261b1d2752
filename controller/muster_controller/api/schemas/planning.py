"""What is ordered of the fleet: rollouts and rollbacks, their plans, and policies."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from muster_controller.api.schemas.base import Schema
from muster_controller.policy_document.nodes import BYTES_MAX

PolicyGiven = Annotated[
    dict[str, Any] | Annotated[str, Field(max_length=BYTES_MAX)],
    Field(description="The policy as an object, or as the text of a YAML or JSON document. `GET /policies/schema`."),
]
ModelGiven = Annotated[str, Field(max_length=64)]
VersionGiven = Annotated[str, Field(max_length=64, description="Of a published release.")]


class RolloutOrder(Schema):
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={
            "examples": [
                {"model": "digits", "version": "1.4.0", "policy": {"waves": [5, "25%"], "alpha": 0.05}},
                {"model": "digits", "version": "1.4.0", "policy": "waves: [5, 25%]\nsoak_s: 2h\n", "dry_run": True},
            ]
        },
    )

    model: ModelGiven
    version: VersionGiven
    policy: PolicyGiven = Field(default_factory=dict)
    dry_run: bool = Field(default=False, description="Say what would happen, and do nothing.")


class RollbackOrder(Schema):
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={"example": {"to": "1.3.0", "reason": "1.4.0 reads sevens as ones"}},
    )

    to: VersionGiven
    policy: PolicyGiven | None = Field(default=None, description="By a rollout of this policy; null: at once.")
    at_once: bool | None = Field(
        default=None, description="Tell every device now, without waves or a gate: what is done without a policy."
    )
    dry_run: bool = Field(default=False, description="Say what would happen, and do nothing.")
    reason: str = Field(default="", max_length=500, description="For the history.")


class Rival(Schema):
    """A rollout of the same model that has some of the same devices."""

    rollout: str
    version: str
    state: Literal["running", "paused", "aborting"]
    priority: int
    devices: int = Field(description="That both have.")
    then: Literal["refused", "taken_over", "superseded"] = Field(
        description="refused: this one would not begin. taken_over: its shared devices come to this one."
        " superseded: it ends."
    )


class Plan(Schema):
    """What a rollout or a rollback would do now."""

    model: str
    version: str
    previous: str | None = Field(description="What an abort goes back to: what most of the devices run now.")
    refusal: str | None = Field(description="Why it would be refused now; null: it would begin.")
    at_once: bool
    devices: int
    online: int
    changing: int = Field(description="Of the devices: those that should run something else now.")
    in_standby: int = Field(description="Of the devices: those that keep this version and switch without a download.")
    previous_active: int = Field(
        description="Of the devices: those that run `previous`, and keep it in standby for the way back."
    )
    classes: dict[str, int]
    waves: list[int] = Field(description="Of a ramp only the first is settled; the rest stands as one.")
    first_wave: dict[str, int] = Field(description="Device class to how many of it the first wave takes.")
    controls: dict[str, int] = Field(description="Device class to how many can be held back beside the first wave.")
    warnings: list[str] = Field(description="What holds, but less well than its author may think.")
    rivals: list[Rival]
    policy: dict[str, Any]
    policy_written: dict[str, Any] = Field(description="What of the policy differs from the defaults.")


class PolicyQuestion(Schema):
    model_config = ConfigDict(
        extra="forbid", frozen=True, json_schema_extra={"example": {"policy": "waves: [5, 25%]\nsoak_s: 2h\n"}}
    )

    policy: PolicyGiven


class PolicyChecked(Schema):
    """Whether a policy can be evaluated and, by the present fleet, satisfied."""

    valid: bool
    message: str | None = Field(description="Why it is refused.")
    field: str | None = Field(description="The path of what is wrong.")
    line: int | None = Field(description="Where it stands, from 1; of an object: as laid out by two spaces.")
    written: dict[str, Any] = Field(description="What of it differs from the defaults.")
    devices: int = Field(description="That its selector names now, whatever they can run.")
    classes: dict[str, int]
    warnings: list[str]
