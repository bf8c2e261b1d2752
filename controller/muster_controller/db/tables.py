"""The tables. Values that are only ever read whole (a twin, a policy, an event's body) are JSON in one column.

Times are Unix seconds as REAL, which keeps a Python float exactly. A change here needs a migration beside it; a test
compares the two. The order of the columns is that of the tuples in `rows` and `rollout_rows`.
"""

from typing import ClassVar

from sqlalchemy import BigInteger, Column, ForeignKey, Index, Integer, LargeBinary, MetaData, Table, Text
from sqlmodel import Field, SQLModel

Wide = BigInteger().with_variant(Integer, "sqlite")  # SQLite's INTEGER has 64 bits, and numbers rows only when it is.


class Row(SQLModel):
    """The base of all tables, with metadata of its own: another user of SQLModel in the process is not migrated."""

    metadata: ClassVar[MetaData] = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class WriterRow(Row, table=True):
    """The one row that every write transaction locks: how often the database was written, and who leads."""

    __tablename__ = "writer"

    id: int = Field(primary_key=True)
    generation: int = Field(sa_column=Column(Wide, nullable=False))
    holder: str
    """Of the lease; empty: nobody."""
    url: str
    """Of the holder's API."""
    until: float
    """When the lease runs out, by `clock`."""
    clock: str
    """Whose seconds `until` counts; see `lease`."""


class DeviceRow(Row, table=True):
    __tablename__ = "device"

    id: str = Field(primary_key=True)
    online: bool
    boot: str
    seen_at: float
    twin: bytes | None = Field(default=None, sa_column=Column(LargeBinary))


class DesiredRow(Row, table=True):
    __tablename__ = "desired"

    device: str = Field(primary_key=True)
    counter: int = Field(sa_column=Column(Wide, nullable=False))
    expires_at: float
    issued_at: float
    models: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    envelope: bytes = Field(sa_column=Column(LargeBinary, nullable=False))


class IssuedRow(Row, table=True):
    """The history of `desired`: a row for every counter."""

    __tablename__ = "issued"

    device: str = Field(primary_key=True)
    counter: int = Field(sa_column=Column(Wide, primary_key=True, autoincrement=False))
    at: float
    models: bytes = Field(sa_column=Column(LargeBinary, nullable=False))


class BaselineRow(Row, table=True):
    __tablename__ = "baseline"

    model: str = Field(primary_key=True)
    selector: str = Field(sa_column=Column(Text, primary_key=True))
    release: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    rollout: str
    at: float


class RolloutRow(Row, table=True):
    __tablename__ = "rollout"
    __table_args__ = (Index(None, "created_at"),)

    id: str = Field(primary_key=True)
    model: str
    release: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    previous: bytes | None = Field(default=None, sa_column=Column(LargeBinary))
    policy: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    waves: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    created_at: float
    created_by: str
    state: str
    reason: str = Field(sa_column=Column(Text, nullable=False))
    wave: int
    wave_began_at: float | None = None
    wave_passed_at: float | None = None
    aborting_at: float | None = None
    ended_at: float | None = None
    confirmed_wave: int
    at_once: bool
    pause: str | None = None
    paced_at: float
    credit: float
    due_at: float
    plotted_e: float
    recalled: int
    approvals: bytes = Field(sa_column=Column(LargeBinary, nullable=False))


class MemberRow(Row, table=True):
    __tablename__ = "rollout_member"

    rollout: str = Field(sa_column=Column(ForeignKey("rollout.id", ondelete="CASCADE"), primary_key=True))
    device: str = Field(primary_key=True)
    device_class: str
    position: int
    wave: int | None = None
    outcome: str
    reason: str
    assigned_at: float | None = None
    deadline_at: float | None = None
    step: str | None = None
    bytes_fetched: int = Field(sa_column=Column(Wide, nullable=False))
    seconds: float
    previous: bytes | None = Field(default=None, sa_column=Column(LargeBinary))
    returned: bool
    cause: str
    attempt: int
    retry_at: float | None = None
    deferred_until: float | None = None
    controls: bytes | None = Field(default=None, sa_column=Column(LargeBinary))
    latency: float | None = None
    is_paired: bool
    disagreed: bool | None = None
    second: str | None = None


class ControlRow(Row, table=True):
    __tablename__ = "rollout_control"

    rollout: str = Field(sa_column=Column(ForeignKey("rollout.id", ondelete="CASCADE"), primary_key=True))
    wave: int = Field(primary_key=True)
    device: str = Field(primary_key=True)
    device_class: str
    partner: str
    assigned_at: float | None = None
    deadline_at: float | None = None
    deferred_until: float | None = None
    outcome: str
    reason: str
    latency: float | None = None


class StratumRow(Row, table=True):
    """What only a stratum remembers: its pairs, in bins. All its other counts follow from the devices."""

    __tablename__ = "rollout_stratum"

    rollout: str = Field(sa_column=Column(ForeignKey("rollout.id", ondelete="CASCADE"), primary_key=True))
    wave: int = Field(primary_key=True)
    device_class: str = Field(primary_key=True)
    latency: bytes = Field(sa_column=Column(LargeBinary, nullable=False))


class VerdictRow(Row, table=True):
    __tablename__ = "rollout_verdict"

    rollout: str = Field(sa_column=Column(ForeignKey("rollout.id", ondelete="CASCADE"), primary_key=True))
    ordinal: int = Field(primary_key=True)
    at: float
    wave: int
    kind: str
    reason: str
    e: float
    evidence: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    """E, and the counts that it was computed from, so that anyone can compute it again."""


class PointRow(Row, table=True):
    __tablename__ = "rollout_point"
    __table_args__ = (Index(None, "rollout", "ordinal"),)

    ordinal: int | None = Field(default=None, sa_column=Column(Wide, primary_key=True, autoincrement=True))
    rollout: str = Field(sa_column=Column(ForeignKey("rollout.id", ondelete="CASCADE"), nullable=False))
    at: float
    wave: int
    e: float
    metrics: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    treated: int
    reported: int
    bad: int


class EventRow(Row, table=True):
    __tablename__ = "event"
    __table_args__ = (Index(None, "device", "ordinal"), Index(None, "rollout", "ordinal"), Index(None, "taken_at"))

    ordinal: int | None = Field(default=None, sa_column=Column(Wide, primary_key=True, autoincrement=True))
    id: str = Field(unique=True)
    device: str
    taken_at: float
    """By the controller's clock; the device's own is inside the body and may be wrong."""
    rollout: str | None = None
    body: bytes = Field(sa_column=Column(LargeBinary, nullable=False))


class NoteRow(Row, table=True):
    __tablename__ = "note"
    __table_args__ = (Index(None, "subject", "ordinal"),)

    ordinal: int | None = Field(default=None, sa_column=Column(Wide, primary_key=True, autoincrement=True))
    at: float
    what: str
    subject: str
    detail: str
    actor: str


class EnrolTokenRow(Row, table=True):
    """What lets devices enrol. Of the secret only its SHA-256 is here."""

    __tablename__ = "enrol_token"

    id: str = Field(primary_key=True)
    secret_sha256: str
    labels: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    uses_max: int
    uses: int
    created_at: float
    created_by: str
    expires_at: float
    revoked_at: float | None = None
    approval: str
    """`token`, `manual` or `serial`."""
    serials: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    """For `serial`: a JSON object from serial number to device id or null."""


class IdentityRow(Row, table=True):
    """A device that enrolled, or waits to be accepted."""

    __tablename__ = "identity"
    __table_args__ = (Index(None, "state"), Index(None, "fingerprint"))

    device: str = Field(primary_key=True)
    state: str
    """`waiting`, `accepted`, `rejected` or `revoked`."""
    public_key: str = Field(sa_column=Column(Text, nullable=False))
    """PEM of the identity key."""
    fingerprint: str
    """SHA-256 of its DER, in hex: what people compare."""
    token: str
    labels: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    hardware_serial: str
    agent_version: str
    device_class: str
    asked_at: float
    decided_at: float | None = None
    decided_by: str
    reason: str = Field(sa_column=Column(Text, nullable=False))


class CertificateRow(Row, table=True):
    """Every certificate that the fleet CA issued."""

    __tablename__ = "certificate"
    __table_args__ = (Index(None, "device", "issued_at"), Index(None, "expires_at"))

    serial: str = Field(primary_key=True)
    """Hex."""
    device: str
    """The subject's common name."""
    issued_at: float
    expires_at: float
    revoked_at: float | None = None
    nonce: str = Field(unique=True)
    """Of the request: none is granted twice."""


class OperatorRow(Row, table=True):
    """A person or a machine that may order. `password` is an argon2id string; empty: by OIDC or tokens alone."""

    __tablename__ = "operator"

    name: str = Field(primary_key=True)
    password: str
    subject: str
    """`issuer subject` of OIDC; empty: none."""
    role: str
    selector: str = Field(sa_column=Column(Text, nullable=False))
    """Of the devices that it may touch; empty: all."""
    created_at: float
    created_by: str
    disabled_at: float | None = None
    failures: int
    """Logins that failed in a row."""
    locked_until: float


class CredentialRow(Row, table=True):
    """A session of the page, an API token or a one-time link. Of the secret only its SHA-256 is here."""

    __tablename__ = "credential"
    __table_args__ = (Index(None, "operator"),)

    id: str = Field(primary_key=True)
    operator: str
    kind: str
    """`session`, `token` or `once`."""
    name: str
    secret_sha256: str
    role: str
    """An API token may be less than its operator; empty: as the operator."""
    selector: str = Field(sa_column=Column(Text, nullable=False))
    created_at: float
    used_at: float
    expires_at: float
    revoked_at: float | None = None


class AuditRow(Row, table=True):
    """One change: who, what, why. Appended only; each hash covers the one before (`db.audit`)."""

    __tablename__ = "audit"
    __table_args__ = (Index(None, "subject", "ordinal"), Index(None, "actor", "ordinal"))

    ordinal: int = Field(sa_column=Column(Wide, primary_key=True, autoincrement=False))
    """1, 2, 3 ... without a gap."""
    at: float
    actor: str
    action: str
    subject: str
    detail: str = Field(sa_column=Column(Text, nullable=False))
    reason: str = Field(sa_column=Column(Text, nullable=False))
    request_id: str
    hash: str


class AuditHeadRow(Row, table=True):
    """The one row that everybody locks who appends to `audit`."""

    __tablename__ = "audit_head"

    id: int = Field(primary_key=True)
    ordinal: int = Field(sa_column=Column(Wide, nullable=False))
    hash: str


class AgreementRow(Row, table=True):
    """What every controller of this database has in common (`identity.agreement`)."""

    __tablename__ = "agreement"

    name: str = Field(primary_key=True)
    value: str
    rank: int = Field(sa_column=Column(Wide, nullable=False))
    """A value of a higher one takes the place of this."""


class MixedRow(Row, table=True):
    """Noised sums of one kind of one cell and period, as a mixer published them, or as days were made of hours."""

    __tablename__ = "mixed"
    __table_args__ = (Index(None, "model", "period_s", "period_start"), Index(None, "period_s", "period_start"))

    batch: str = Field(primary_key=True)
    """Of the message; of a roll-up, a name made of what it is of."""
    kind: str = Field(primary_key=True)
    mixer: str
    model: str
    version: str
    device_class: str
    region: str
    classes: int
    period_start: float
    period_s: int
    devices: int
    """Windows in it; of a roll-up the largest of its hours."""
    late: bool
    sums: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    """JSON array of integers, in units."""
    variance: float
    """Of the noise on each of them, units^2."""
    periods: int
    """How many windows of one device may be in it: 1, or up to 24 of a roll-up."""


class MixerRow(Row, table=True):
    """A mixer and what it said of itself last."""

    __tablename__ = "mixer"

    id: str = Field(primary_key=True)
    created_at: float
    created_by: str
    public_key: str
    """Hex of its X25519 key; empty: not told."""
    seen_at: float
    state: bytes | None = Field(default=None, sa_column=Column(LargeBinary))
    """`metrics.MixerState` as JSON."""


class SeriesRow(Row, table=True):
    """Operational counts of one release on one device class, from the twins: no content, but known by device."""

    __tablename__ = "series"
    __table_args__ = (Index(None, "period_s", "at"),)

    model: str = Field(primary_key=True)
    version: str = Field(primary_key=True)
    device_class: str = Field(primary_key=True)
    region: str = Field(primary_key=True)
    at: float = Field(primary_key=True)
    """Beginning of the period."""
    period_s: int = Field(primary_key=True)
    """300, 3600 or 86400."""
    devices: int
    """That said something in the period."""
    requests: int = Field(sa_column=Column(Wide, nullable=False))
    errors: int = Field(sa_column=Column(Wide, nullable=False))
    slow: int = Field(sa_column=Column(Wide, nullable=False))
    inferences: int = Field(sa_column=Column(Wide, nullable=False))
    cpu_ms: float
    energy_j: float | None = None
    """None where no device has a sensor."""
    bytes_sent: float
    bytes_received: float
    latency_ms_p95_max: float | None = None
    """The slowest device's."""
    cpu_percent_max: float | None = None
    """Of the busiest device: headroom is what is left of it."""
    cpu_percent_sum: float
    """Over devices that told, to be divided by `cpu_told`."""
    cpu_told: int


class ObjectiveRow(Row, table=True):
    """A service level objective of one model."""

    __tablename__ = "objective"

    name: str = Field(primary_key=True)
    model: str
    selector_class: str
    """Device class; empty: all."""
    indicator: str
    """`availability` or `latency`."""
    target: float
    """Share 0..1 of requests that must be good over 28 days."""
    created_at: float
    created_by: str


class AlertRow(Row, table=True):
    """One alert from when it began until it is forgotten."""

    __tablename__ = "alert"
    __table_args__ = (Index(None, "state", "began_at"), Index(None, "rule", "subject"))

    id: str = Field(primary_key=True)
    rule: str
    subject: str
    """What it is about: a model, a release, a device class, a rollout, a certificate."""
    severity: str
    """`page`, `ticket` or `info`."""
    state: str
    """`pending`, `firing` or `resolved`."""
    summary: str = Field(sa_column=Column(Text, nullable=False))
    facts: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    """JSON object of what it was decided from."""
    began_at: float
    changed_at: float
    seen_at: float
    """When its condition held last."""
    resolved_at: float | None = None
    told_at: float | None = None
    """When receivers were told last that it fires; None: never."""
    times: int
    """How often it came back soon after it had ended."""
    acknowledged_by: str
    acknowledged_at: float | None = None
    comment: str = Field(sa_column=Column(Text, nullable=False))


class SilenceRow(Row, table=True):
    """Alerts that fit are not told of until it ends."""

    __tablename__ = "silence"

    id: str = Field(primary_key=True)
    rule: str
    """Empty: every rule; `*` at the end stands for anything. So `subject`."""
    subject: str
    begins_at: float
    ends_at: float
    by: str
    reason: str = Field(sa_column=Column(Text, nullable=False))


class ReceiverRow(Row, table=True):
    """Where alerts and reviews are told: a webhook, a mail address or an MQTT topic."""

    __tablename__ = "receiver"

    name: str = Field(primary_key=True)
    kind: str
    """`webhook`, `email` or `mqtt`."""
    address: str = Field(sa_column=Column(Text, nullable=False))
    severities: str
    """By comma; empty: all."""
    reviews: bool
    secret: str
    """Of a webhook's signature. Shown once, and in no log."""
    created_at: float
    created_by: str
    disabled_at: float | None = None


class NoticeRow(Row, table=True):
    """Something to be told to a receiver, until it was."""

    __tablename__ = "notice"
    __table_args__ = (Index(None, "state", "next_at"),)

    id: str = Field(primary_key=True)
    receiver: str
    body: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    state: str
    """`waiting`, `told` or `given_up`."""
    attempts: int
    next_at: float
    created_at: float
    error: str = Field(sa_column=Column(Text, nullable=False))


class ReviewRow(Row, table=True):
    """A weekly review, as it was made."""

    __tablename__ = "review"

    week: str = Field(primary_key=True)
    """ISO: 2026-W47."""
    made_at: float
    body: bytes = Field(sa_column=Column(LargeBinary, nullable=False))


class HoldRow(Row, table=True):
    """A device that rollouts leave alone: pinned to what it runs, or quarantined."""

    __tablename__ = "device_hold"

    device: str = Field(primary_key=True)
    kind: str
    """`pinned` or `quarantined`."""
    reason: str = Field(sa_column=Column(Text, nullable=False))
    by: str
    at: float


class CallRow(Row, table=True):
    """Something that one device was asked to do now: a self-test, a benchmark, the end of its log."""

    __tablename__ = "device_call"
    __table_args__ = (Index(None, "device", "asked_at"),)

    id: str = Field(primary_key=True)
    device: str
    what: str
    asked_by: str
    asked_at: float
    expires_at: float
    answered_at: float | None = None
    ok: bool | None = None
    answer: bytes | None = Field(default=None, sa_column=Column(LargeBinary, nullable=True))
    """The answer's payload as it came, bounded."""


class ViewRow(Row, table=True):
    """A filter of a list that an operator keeps under a name."""

    __tablename__ = "saved_view"

    operator: str = Field(primary_key=True)
    page: str = Field(primary_key=True)
    """`devices` or another list."""
    name: str = Field(primary_key=True)
    query: str = Field(sa_column=Column(Text, nullable=False))
    """Of the URL, without `?`."""
    saved_at: float


class FleetSampleRow(Row, table=True):
    """How the fleet stood at a moment: counts alone. Thinned out as they age."""

    __tablename__ = "fleet_sample"
    __table_args__ = (Index(None, "period_s", "at"),)

    at: float = Field(primary_key=True)
    period_s: int = Field(primary_key=True)
    """What it stands for: 300 s, an hour or a day."""
    body: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    """JSON: devices, online, standings, versions by model."""


class DeviceSampleRow(Row, table=True):
    """What a device said of its host and its models at a moment. Kept for a day or two, for its page."""

    __tablename__ = "device_sample"

    device: str = Field(primary_key=True)
    at: float = Field(primary_key=True)
    body: bytes = Field(sa_column=Column(LargeBinary, nullable=False))


class OnceRow(Row, table=True):
    """An order that came with an idempotency key, and what it was answered: the same key is not carried out twice."""

    __tablename__ = "idempotency"
    __table_args__ = (Index(None, "at"),)

    principal: str = Field(primary_key=True)
    key: str = Field(primary_key=True)
    request: str
    """SHA-256 of method, path and body."""
    at: float
    status: int | None = None
    """None: it is being carried out."""
    headers: str = Field(default="", sa_column=Column(Text, nullable=False))
    body: bytes | None = Field(default=None, sa_column=Column(LargeBinary, nullable=True))


def table(row: type[Row]) -> Table:
    """Return the SQLAlchemy table of a row class."""
    return Row.metadata.tables[str(row.__tablename__)]
