"""A release beyond its manifest: who signed it, where it serves, how it differs from another, whether it would do."""

from pydantic import ConfigDict, Field

from muster_controller.api.schemas.base import Schema
from muster_controller.api.schemas.models import FileView


class RoleKeyView(Schema):
    id: str = Field(description="The TUF key id; `muster key list` names its own keys so.")
    has_signed: bool


class RoleView(Schema):
    """A role of the trust metadata in force."""

    role: str
    delegated_by: str = Field(description="The role whose metadata names its keys.")
    is_online: bool = Field(description="Signed by this controller, and renewed by itself.")
    threshold: int
    signed: int = Field(description="How many of its keys signed what is in force.")
    version: int | None = Field(description="Null: delegated, but nothing is signed yet.")
    expires_at: float | None
    keys: list[RoleKeyView]


class RoleStepView(Schema):
    """One version of a release role."""

    version: int
    added: list[str] = Field(description="Versions of the model.")
    removed: list[str] = Field(description="Revoked.")
    signed_by: list[str] = Field(description="Ids of keys that may sign now, and signed then.")
    others: int = Field(description="Signatures of keys that may not sign any more.")


class ReleaseTrust(Schema):
    """Who signed a release, and what became of it."""

    model: str
    version: str
    is_revoked: bool
    role: RoleView
    steps: list[RoleStepView] = Field(
        description="Versions of the role that brought or took this release, newest first."
    )


class PickView(Schema):
    """What the devices of one class run a release with, by their last twins. Null: unknown, not zero."""

    device_class: str
    variant: str = Field(description="Of the manifest; empty: the agents do not tell.")
    engine: str
    device: str = Field(description="Of the engine: CPU, GPU, NPU.")
    precision: str
    threads: int
    devices: int
    latency_ms_p95: float | None = Field(description="Of requests: the middle device's.")
    worst_ms_p95: float | None = Field(description="Of requests: the slowest device's.")
    rows_per_s: float | None = Field(description="As measured when it was chosen: the middle device's.")
    alone_ms_p95: float | None = Field(description="Of single rows, as measured then: the middle device's.")
    requests: int
    errors: int
    slow: int = Field(description="Of the requests, later than the release's claim.")
    fell_back: int = Field(description="Devices that do not run it on what the variant asks for.")
    why: str = Field(description="Of one that fell back.")


class VersionUse(Schema):
    """Where a release serves now."""

    model: str
    version: str
    devices: int
    online: int
    standby: int = Field(description="Devices that could go back to it without a download.")
    classes: dict[str, int]
    labels: dict[str, dict[str, int]] = Field(description="By key and value; keys with many values are left out.")
    picks: list[PickView]


class FileChange(Schema):
    path: str
    length_before: int | None = Field(description="Null: it is not in that release.")
    length_after: int | None
    is_same: bool = Field(description="The same bytes.")


class FactChange(Schema):
    name: str
    before: str
    after: str
    is_same: bool


class LatencyChange(Schema):
    """One device class, each side over all of its variants."""

    device_class: str
    devices_before: int
    devices_after: int
    before_ms: float | None = Field(description="p95 of requests: the middle device's; null: unknown.")
    after_ms: float | None
    variants_before: list[str]
    variants_after: list[str]


class LineChange(Schema):
    mark: str = Field(description="One of `same`, `gone`, `new`, `left`: so many lines between are the same.")
    text: str


class VersionComparison(Schema):
    """Two releases of a model. What they see and say is compared by `/metrics/{model}/compare` and `…/slices`."""

    model: str
    before: str
    after: str
    bytes_before: int
    bytes_after: int
    bytes_shared: int = Field(description="Of the later one, that a device with the earlier one need not fetch.")
    files: list[FileChange]
    facts: list[FactChange]
    latency: list[LatencyChange]
    card: list[LineChange]


class ReleaseCheck(Schema):
    """What publishing would do. Nothing was changed."""

    model: str
    version: str | None = Field(description="That is added; null: of a revocation or a renewal.")
    is_new: bool = Field(description="False: exactly this was published before.")
    added: list[str]
    removed: dict[str, int] = Field(description="Versions that it revokes, and how many devices serve them now.")
    missing: list[FileView] = Field(description="Files that have to go to `PUT /blobs/{sha256}` before.")
    bytes: int = Field(description="Of the missing files.")


class CertificateOwn(Schema):
    """A certificate that this controller answers for."""

    role: str = Field(description="root, intermediate, announced, retired, server, controller, page, or mixer.")
    name: str
    sha256: str = Field(description="Of the certificate; empty: of a mixer, which keeps its own.")
    issued_at: float | None
    expires_at: float


class ExpiryBin(Schema):
    begins_at: float
    devices: int


class DeviceExpiry(Schema):
    device: str
    expires_at: float


class DeviceCertificates(Schema):
    """The newest certificate of each device."""

    valid: int = Field(description="Devices with one that holds.")
    lapsed: int = Field(description="Devices that are admitted, and whose certificates have all run out.")
    revoked: int = Field(description="Certificates that are revoked and would hold else.")
    days: list[ExpiryBin] = Field(description="How many run out in each day from now on; the last: that day or later.")
    soonest: list[DeviceExpiry]


class KeysView(Schema):
    """Every key and certificate that something rests on, and when it runs out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    roles: list[RoleView]
    assignment_keys: list[str] = Field(description="Ids of the keys whose assignments devices accept.")
    mixer_keys: dict[str, str] = Field(
        description="Ids of the keys to which devices seal metrics, and whose they are; empty: of none admitted here."
    )
    certificates: list[CertificateOwn]
    root_key_is_here: bool = Field(description="The fleet CA's: then whoever takes this machine has the fleet.")
    devices: DeviceCertificates
