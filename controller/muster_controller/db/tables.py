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


def table(row: type[Row]) -> Table:
    """Return the SQLAlchemy table of a row class."""
    return Row.metadata.tables[str(row.__tablename__)]
