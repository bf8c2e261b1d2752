"""Models, their releases, blobs and trust metadata."""

from typing import Any

from pydantic import Field

from muster_controller.api.schemas.base import Next, Schema
from muster_controller.api.schemas.devices import ReleaseView
from muster_controller.api.schemas.fleet import ExpiryView


class BaselineView(Schema):
    """What every device of a group should run when no rollout says otherwise. Of those that fit, the newest counts."""

    version: str
    selector: str = Field(description="Empty: every device.")
    rollout: str
    at: float


class ModelView(Schema):
    name: str
    versions: list[str] = Field(description="Published and not revoked, oldest first.")
    baseline: str | None = Field(description="Of the newest baseline.")
    baselines: list[BaselineView] = Field(description="Newest first.")
    devices: dict[str, int] = Field(description="Version to the number of devices that it serves on.")


class ModelPage(Schema):
    models: list[ModelView]
    next: Next


class FileView(Schema):
    path: str
    sha256: str
    length: int


class VariantView(Schema):
    name: str
    runtime: str
    precision: str
    files: list[str]
    hardware: dict[str, Any]


class VersionDetail(ReleaseView):
    bundle_length: int
    is_revoked: bool = Field(description="No device may run it any more.")
    licence: str
    card: str = Field(description="The model card, Markdown.")
    files: list[FileView]
    variants: list[VariantView]
    slo: dict[str, Any]
    lineage: dict[str, Any]
    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]
    labels: list[str]


class Publication(Schema):
    """The next signed metadata of a model's release role, and the manifest that it adds. Exact text: it is signed."""

    metadata: str = Field(description="As `muster model sign` wrote it.")
    manifest: str | None = Field(default=None, description="The bundle.json; null to revoke or renew.")


class Published(Schema):
    changed: bool = Field(description="False when exactly this was published before.")
    model: str
    versions: list[str]


class OfflineTrust(Schema):
    """The operator's root and targets, and the assignment keys that the targets vouch for. Exact text: it is signed."""

    root: str
    targets: str
    keys: str
    between: list[str] = Field(
        default_factory=list,
        max_length=64,
        description="Roots between the controller's and this one, in order; it passes over those that it has.",
    )
    releases: dict[str, str] = Field(
        default_factory=dict,
        description="By role: the same releases signed with other keys, for models whose keys the targets change.",
    )


class TrustChanged(Schema):
    changed: bool


class TrustPage(Schema):
    files: list[str] = Field(description="What `GET /trust/{file}` serves.")
    expiries: list[ExpiryView]


class BlobStored(Schema):
    sha256: str
    length: int
    created: bool
