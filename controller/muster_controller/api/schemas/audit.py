"""What the API says of the audit log."""

from typing import Literal

from pydantic import Field

from muster_controller.api.schemas.base import Next, Schema


class AuditLineView(Schema):
    ordinal: int = Field(description="1, 2, 3 ... without a gap.")
    at: float
    actor: str = Field(description="A principal's name, `device:<id>`, or `controller` for what it decided by itself.")
    action: str = Field(description="What was done, such as `rollout.abort`.")
    subject: str
    detail: str
    reason: str
    request_id: str = Field(description="Of the request that led to it; empty: none did.")
    hash: str = Field(description="SHA-256 of the hash before and this line, in hex.")


class AuditPage(Schema):
    lines: list[AuditLineView] = Field(description="Newest first.")
    next: Next


class CheckpointView(Schema):
    """The head of the log, signed by the controller's audit key (ed25519). Keep it elsewhere: it bears witness."""

    fleet: str
    ordinal: int
    hash: str
    at: float
    key: str = Field(description="The public key in hex.")
    signature: str = Field(description="In hex.")


class AuditBreak(Schema):
    ordinal: int = Field(description="The first line that does not hold, ...")
    last: int = Field(description="... and the last.")
    flaw: Literal["altered", "missing", "reordered", "foreign", "garbled", "truncated", "head", "forked"]
    said: str


class AuditReport(Schema):
    holds: bool
    lines: int
    head: int = Field(description="The last line that is there.")
    hash: str
    breaks: list[AuditBreak] = Field(description="By place; the first thousand.")
    count: int = Field(description="Of all breaks.")
