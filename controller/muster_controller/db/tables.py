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


def table(row: type[Row]) -> Table:
    """Return the SQLAlchemy table of a row class."""
    return Row.metadata.tables[str(row.__tablename__)]
