"""Reading the committed database: from any thread, beside the writer, never changing anything.

The API and the page read here what `SqlLedger.committed` does not keep in memory: history, and rollouts that ended.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import ColumnElement, Engine, true
from sqlmodel import Session, col, select

from muster_controller.core.rollout import ENDED, Rollout
from muster_controller.db import rows
from muster_controller.db.engine import translated
from muster_controller.db.tables import (
    BaselineRow,
    ControlRow,
    DesiredRow,
    DeviceRow,
    EventRow,
    MemberRow,
    NoteRow,
    RolloutRow,
    VerdictRow,
)
from muster_controller.ports import Baseline, Desired, Device, Note
from muster_shared.ids import DeviceId, EventId, RolloutId
from muster_shared.messages import Event


@dataclass(frozen=True)
class EventEntry:
    """An event and when the controller took it; `ordinal` only rises."""

    ordinal: int
    taken_at: float
    event: Event


@dataclass(frozen=True)
class NoteEntry:
    ordinal: int
    note: Note


class LedgerReader:
    """Every method raises LedgerUnavailable when the file cannot be read."""

    def __init__(self, path: Path, engine: Engine) -> None:
        self._path = path
        self._engine = engine

    def close(self) -> None:
        self._engine.dispose()

    def devices(self) -> list[Device]:
        with self._session() as session:
            return [rows.to_device(row) for row in session.exec(select(DeviceRow))]

    def all_desired(self) -> list[Desired]:
        with self._session() as session:
            return [rows.to_desired(row) for row in session.exec(select(DesiredRow))]

    def baselines(self) -> list[Baseline]:
        with self._session() as session:
            return [rows.to_baseline(row) for row in session.exec(select(BaselineRow))]

    def rollout(self, rollout: RolloutId) -> Rollout | None:
        return next(iter(self._rollouts(col(RolloutRow.id) == rollout)), None)

    def running_rollouts(self) -> list[Rollout]:
        return self._rollouts(col(RolloutRow.state).not_in([state.value for state in ENDED]))

    def rollouts(self, limit: int | None = None, offset: int = 0) -> list[Rollout]:
        """Return rollouts, newest first."""
        return self._rollouts(true(), limit, offset)

    def events(
        self,
        *,
        device: DeviceId | None = None,
        rollout: RolloutId | None = None,
        before: int | None = None,
        limit: int,
    ) -> Sequence[EventEntry]:
        """Return the newest first, from below the ordinal `before`."""
        query = select(EventRow).order_by(col(EventRow.ordinal).desc()).limit(limit)
        if device is not None:
            query = query.where(EventRow.device == device)
        if rollout is not None:
            query = query.where(EventRow.rollout == rollout)
        if before is not None:
            query = query.where(col(EventRow.ordinal) < before)
        with self._session() as session:
            return [EventEntry(row.ordinal or 0, row.taken_at, rows.to_event(row)) for row in session.exec(query)]

    def has_event(self, event: EventId) -> bool:
        with self._session() as session:
            return session.exec(select(EventRow.ordinal).where(EventRow.id == event)).first() is not None

    def notes(self, *, subject: str | None = None, before: int | None = None, limit: int) -> Sequence[NoteEntry]:
        """Return the newest first, from below the ordinal `before`."""
        query = select(NoteRow).order_by(col(NoteRow.ordinal).desc()).limit(limit)
        if subject is not None:
            query = query.where(NoteRow.subject == subject)
        if before is not None:
            query = query.where(col(NoteRow.ordinal) < before)
        with self._session() as session:
            return [NoteEntry(row.ordinal or 0, rows.to_note(row)) for row in session.exec(query)]

    def _rollouts(self, where: ColumnElement[bool], limit: int | None = None, offset: int = 0) -> list[Rollout]:
        query = (
            select(RolloutRow)
            .where(where)
            .order_by(col(RolloutRow.created_at).desc(), col(RolloutRow.id).desc())
            .limit(limit)
            .offset(offset)
        )
        with self._session() as session:
            return [
                rows.to_rollout(
                    row,
                    session.exec(
                        select(MemberRow).where(MemberRow.rollout == row.id).order_by(col(MemberRow.position))
                    ),
                    session.exec(
                        select(ControlRow)
                        .where(ControlRow.rollout == row.id)
                        .order_by(col(ControlRow.wave), col(ControlRow.device))
                    ),
                    session.exec(
                        select(VerdictRow).where(VerdictRow.rollout == row.id).order_by(col(VerdictRow.ordinal))
                    ),
                )
                for row in session.exec(query).all()
            ]

    @contextmanager
    def _session(self) -> Iterator[Session]:
        with translated(self._path), Session(self._engine) as session:
            yield session
