"""The tables. Values that are only ever read whole (a twin, a policy, an event's body) are JSON in one column.

Times are Unix seconds as REAL, which keeps a Python float exactly. A change here needs a migration beside it; a test
compares the two.
"""

from typing import ClassVar

from sqlalchemy import Column, ForeignKey, Index, Integer, LargeBinary, MetaData, Table, Text
from sqlmodel import Field, SQLModel


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
    counter: int
    expires_at: float
    models: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    envelope: bytes = Field(sa_column=Column(LargeBinary, nullable=False))


class BaselineRow(Row, table=True):
    __tablename__ = "baseline"

    model: str = Field(primary_key=True)
    release: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    rollout: str
    selector: bytes = Field(sa_column=Column(LargeBinary, nullable=False))


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
    bytes_fetched: int
    seconds: float
    previous: bytes | None = Field(default=None, sa_column=Column(LargeBinary))
    returned: bool


class ControlRow(Row, table=True):
    __tablename__ = "rollout_control"

    rollout: str = Field(sa_column=Column(ForeignKey("rollout.id", ondelete="CASCADE"), primary_key=True))
    wave: int = Field(primary_key=True)
    device: str = Field(primary_key=True)
    device_class: str
    deadline_at: float
    outcome: str
    reason: str


class VerdictRow(Row, table=True):
    __tablename__ = "rollout_verdict"

    rollout: str = Field(sa_column=Column(ForeignKey("rollout.id", ondelete="CASCADE"), primary_key=True))
    ordinal: int = Field(primary_key=True)
    at: float
    wave: int
    kind: str
    reason: str
    e: float
    e_controls: float
    e_objective: float
    e_classes: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    strata: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    """The counts that E was computed from, so that anyone can compute it again."""


class EventRow(Row, table=True):
    __tablename__ = "event"
    __table_args__ = (Index(None, "device", "ordinal"), Index(None, "rollout", "ordinal"), Index(None, "taken_at"))

    ordinal: int | None = Field(default=None, sa_column=Column(Integer, primary_key=True, autoincrement=True))
    id: str = Field(unique=True)
    device: str
    taken_at: float
    """By the controller's clock; the device's own is inside the body and may be wrong."""
    rollout: str | None = None
    body: bytes = Field(sa_column=Column(LargeBinary, nullable=False))


class NoteRow(Row, table=True):
    __tablename__ = "note"
    __table_args__ = (Index(None, "subject", "ordinal"),)

    ordinal: int | None = Field(default=None, sa_column=Column(Integer, primary_key=True, autoincrement=True))
    at: float
    what: str
    subject: str
    detail: str
    actor: str


def table(row: type[Row]) -> Table:
    """Return the SQLAlchemy table of a row class."""
    return Row.metadata.tables[str(row.__tablename__)]
