"""Operators, their sessions and tokens. Secrets are in the one answer that makes them, and in none after it."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from muster_controller.api.schemas.base import Next, Said, Schema
from muster_controller.operators.passwords import LENGTH_MAX
from muster_controller.operators.roles import Permission, PrincipalKind, Role
from muster_controller.operators.service import TOKEN_MAX_S

NameGiven = Annotated[str, Field(max_length=64, description="1 to 64 of a-z, 0-9 and . _ @ + -")]
Scope = Annotated[
    str, Field(max_length=1000, description="A label selector of the devices that count; empty: every device.")
]
Secret = Annotated[str, Field(max_length=LENGTH_MAX, json_schema_extra={"format": "password"})]


class Because(Schema):
    reason: Said = ""


class WhoAmI(Schema):
    """The principal of this request."""

    name: str
    role: Role
    selector: str = Field(description="Of the devices that it sees and touches; empty: all.")
    kind: PrincipalKind
    permissions: list[Permission]
    expires_at: float | None = Field(description="When the session or token runs out.")


class LoginOrder(Schema):
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={"example": {"name": "anna", "password": "three plain words", "where": "laptop"}},
    )

    name: str = Field(max_length=64)
    password: Secret
    where: str = Field(default="", max_length=40, description="Where the token is to be kept, to know it again.")


class TokenMade(Schema):
    token: str = Field(description="Shown this once.")
    id: str
    operator: str
    role: Role | None = Field(description="Null: as the operator.")
    selector: str
    expires_at: float


class TokenOrder(Schema):
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={"example": {"name": "nightly build", "role": "publisher", "ttl_s": 2_592_000}},
    )

    name: str = Field(min_length=1, max_length=64, description="What it is for.")
    operator: NameGiven | None = Field(default=None, description="Whose; null: one's own. Others' by admins alone.")
    role: Role | None = Field(default=None, description="Less than the operator's; null: as the operator.")
    selector: Scope = ""
    ttl_s: float = Field(default=90 * 86_400.0, gt=0, le=TOKEN_MAX_S, description="How long it lives, seconds.")
    reason: Said = ""


class CredentialView(Schema):
    id: str
    operator: str
    kind: Literal["session", "token"]
    name: str
    role: Role | None
    selector: str
    created_at: float
    used_at: float = Field(description="To the minute.")
    expires_at: float


class CredentialPage(Schema):
    credentials: list[CredentialView] = Field(description="Sessions and API tokens that count, newest first.")
    next: Next


class OperatorView(Schema):
    name: str
    role: Role
    selector: str
    subject: str = Field(description="`issuer subject` of OIDC; empty: none.")
    has_password: bool
    enabled: bool
    created_at: float
    created_by: str
    failures: int = Field(description="Logins that failed in a row.")
    locked_until: float = Field(description="In the past: not locked.")


class OperatorPage(Schema):
    operators: list[OperatorView]
    next: Next


class NewOperator(Schema):
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={"example": {"name": "anna", "role": "operator", "selector": "site=berlin"}},
    )

    name: NameGiven
    role: Role
    selector: Scope = ""
    subject: str = Field(default="", max_length=500, description="`issuer subject`, for who logs in by OIDC.")
    reason: Said = ""


class NewRole(Schema):
    role: Role
    selector: Scope = ""
    reason: Said = ""


class NewPassword(Schema):
    password: Secret
    reason: Said = ""


class OwnPassword(Schema):
    current: Secret
    password: Secret


class LinkMade(Schema):
    link: str = Field(description="Opens once, and sets the password. Shown this once.")
    expires_at: float


class OperatorMade(Schema):
    operator: OperatorView
    link: LinkMade
