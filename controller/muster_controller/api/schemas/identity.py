"""Enrolment: tokens, identities and the fleet CA. A token's secret is in the one answer that makes it."""

from typing import Annotated

from pydantic import ConfigDict, Field

from muster_controller.api.schemas.base import Next, Said, Schema
from muster_controller.identity.enrolment import Approval, IdentityState
from muster_controller.identity.service import SERIALS_MAX, TTL_S_MAX, TTL_S_MIN, USES_MAX
from muster_shared.enrolment import LABEL_KEY_MAX, LABEL_VALUE_MAX, LABELS_MAX, TEXT_MAX

Key = Annotated[str, Field(min_length=1, max_length=LABEL_KEY_MAX)]
Value = Annotated[str, Field(max_length=LABEL_VALUE_MAX)]
Serial = Annotated[str, Field(min_length=1, max_length=TEXT_MAX)]


class NewEnrolToken(Schema):
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={"example": {"labels": {"site": "berlin"}, "uses": 50, "ttl_s": 86400, "approval": "token"}},
    )

    labels: dict[Key, Value] = Field(
        default_factory=dict, max_length=LABELS_MAX, description="Every device that enrols with it has these."
    )
    uses: int = Field(default=1, ge=1, le=USES_MAX, description="So many devices.")
    ttl_s: float = Field(default=86_400.0, ge=TTL_S_MIN, le=TTL_S_MAX, description="Seconds until it runs out.")
    approval: Approval = Field(
        default=Approval.TOKEN,
        description="token: who has it is in; manual: somebody accepts each; serial: the hardware is on the list.",
    )
    serials: dict[Serial, str | None] = Field(
        default_factory=dict,
        max_length=SERIALS_MAX,
        description="For serial: hardware serial numbers, and which device each is to be; null: any name.",
    )
    reason: Said = ""


class EnrolTokenView(Schema):
    id: str
    labels: dict[str, str]
    uses: int = Field(description="Devices that enrolled with it, or wait to be accepted.")
    uses_max: int
    approval: Approval
    serials: int = Field(description="How many serial numbers are on its list.")
    created_at: float
    created_by: str
    expires_at: float
    revoked_at: float | None


class EnrolTokenMade(Schema):
    """`token` is shown this once."""

    token: str = Field(json_schema_extra={"format": "password"})
    ca_sha256: str = Field(description="Of the fleet CA's root: what the device will trust.")
    device_url: str = Field(description="Where devices enrol.")
    made: EnrolTokenView


class EnrolTokenPage(Schema):
    tokens: list[EnrolTokenView]
    next: Next


class IdentityView(Schema):
    device: str
    state: IdentityState
    fingerprint: str = Field(description="SHA-256 of the identity key: compare it with `muster-agent doctor`.")
    token: str = Field(description="The token it enrolled with, by id.")
    labels: dict[str, str] = Field(description="The token's.")
    hardware_serial: str = Field(description="As the device says.")
    agent_version: str
    device_class: str
    asked_at: float
    decided_at: float | None
    decided_by: str
    reason: str


class IdentityCertificateView(Schema):
    serial: str
    issued_at: float
    expires_at: float
    revoked_at: float | None


class IdentityDetail(IdentityView):
    certificates: list[IdentityCertificateView] = Field(description="The newest, newest first.")


class IdentityPage(Schema):
    identities: list[IdentityView]
    next: Next


class IdentityChanged(Schema):
    identity: IdentityView
    in_effect: bool = Field(description="Whether the broker has been told; if not yet, it is told until it takes it.")


class IdentityOrder(Schema):
    reason: Said = ""


class CaCertificateView(Schema):
    role: str = Field(description="root, intermediate, announced, retired, server or controller.")
    subject: str
    sha256: str
    issued_at: float
    expires_at: float


class CaView(Schema):
    fleet: str
    root_key_is_here: bool = Field(description="Then whoever takes this machine has the fleet: `muster ca take-root`.")
    certificates: list[CaCertificateView]
    root: str = Field(description="PEM.")
