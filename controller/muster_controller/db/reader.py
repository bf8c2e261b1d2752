"""Reading the committed database: from any thread, beside the writer, never changing anything.

The API and the page read here what `SqlLedger.committed` does not keep in memory: history, and rollouts that ended.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar, cast

from sqlalchemy import ColumnElement, Connection, Engine, Select, func, or_, select, true
from sqlmodel import col

from muster_controller.core.rollout.alike import Summed
from muster_controller.core.rollout.events import Plot
from muster_controller.core.rollout.state import ENDED, Rollout
from muster_controller.db import rollout_rows, rollout_sums, rows
from muster_controller.db.cache import Loaded
from muster_controller.db.ended import DEVICES_MAX, ROLLOUTS_MAX, Ended
from muster_controller.db.engine import Database
from muster_controller.db.tables import (
    BaselineRow,
    ControlRow,
    DesiredRow,
    DeviceRow,
    EventRow,
    IssuedRow,
    MemberRow,
    NoteRow,
    PointRow,
    RolloutRow,
    Row,
    StratumRow,
    VerdictRow,
    WriterRow,
    table,
)
from muster_controller.ports import Issued, Note
from muster_shared.ids import DeviceId, EventId, RolloutId
from muster_shared.messages import Event

R = TypeVar("R", bound=Row)

WARM_FROM = 5000  # Devices; what is smaller is read in a tenth of a second.

_RUNNING = col(RolloutRow.state).not_in([state.value for state in ENDED])


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


@dataclass(frozen=True)
class Headline:
    """What a rollout is called and how it stands; times are Unix seconds."""

    id: RolloutId
    version: str
    state: str
    created_at: float
    ended_at: float | None


class LedgerReader:
    """Every method raises LedgerUnavailable when the database cannot be read."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._engine: Engine = database.open_reader()
        self.ended = Ended()
        """Kept true by whoever writes through the same ledger."""

    def close(self) -> None:
        self._engine.dispose()

    def generation(self) -> int:
        """Return how often the database was written."""
        with self._connection() as connection:
            return _generation(connection)

    def everything(self) -> Loaded:
        """Return what is always at hand, all of it as of one commit."""
        with self._connection() as connection:
            return Loaded(
                generation=_generation(connection),
                devices={each.id: each for each in map(rows.to_device, _all(connection, DeviceRow))},
                desired={each.device: each for each in map(rows.to_desired, _all(connection, DesiredRow))},
                baselines={
                    (each.release.model, each.selector): each
                    for each in map(rows.to_baseline, _all(connection, BaselineRow))
                },
                running={each.id: each for each in _rollouts(connection, _RUNNING)},
            )

    # -- rollouts ----------------------------------------------------------------------------------------------------

    def rollout(self, rollout: RolloutId) -> Rollout | None:
        found = self.ended.get(rollout)
        if found is not None:
            return found
        moment = self.ended.moment(rollout)
        with self._connection() as connection:
            found = next(iter(_rollouts(connection, col(RolloutRow.id) == rollout)), None)
        if found is not None and found.state in ENDED:
            self.ended.offer(found, moment)
        return found

    def warm(self, is_over: Callable[[], bool] = lambda: False) -> list[RolloutId]:
        """Have the newest ended rollouts at hand that take long to read, and return which. It takes seconds each.

        Args:
            is_over: asked before each, whether to leave it at that.
        Raises:
            LedgerUnavailable: the database is away.
        """
        columns, members = table(RolloutRow).c, table(MemberRow).c
        newest = select(columns.id).where(~_RUNNING).order_by(columns.created_at.desc()).limit(ROLLOUTS_MAX)
        with self._connection() as connection:
            sizes = {
                RolloutId(row.id): connection.execute(
                    select(func.count()).select_from(table(MemberRow)).where(members.rollout == row.id)
                ).scalar_one()
                for row in connection.execute(newest).all()
            }
        found: list[RolloutId] = []
        left = DEVICES_MAX
        for name, size in sizes.items():
            if is_over():
                break
            if WARM_FROM <= size <= left and (rollout := self.rollout(name)) is not None:
                left -= len(rollout.members) + len(rollout.controls)
                self.ended.roll(rollout)
                found.append(name)
        return found

    def rollouts(
        self,
        limit: int | None = None,
        offset: int = 0,
        *,
        model: str | None = None,
        state: str | None = None,
        after: RolloutId | None = None,
        since: float | None = None,
        until: float | None = None,
        text: str | None = None,
    ) -> list[Rollout]:
        """Return rollouts, newest first.

        Args:
            text: Only those whose id, model, creator or reason has it somewhere.
            after: Only those that come behind this one; none, when it is not known.
            since: Only those that had not ended then.
            until: Only those that were created until then.
        """
        where = _listed(model, state, after, text)
        if since is not None:
            where &= col(RolloutRow.ended_at).is_(None) | (col(RolloutRow.ended_at) >= since)
        if until is not None:
            where &= col(RolloutRow.created_at) <= until
        with self._connection() as connection:
            return _rollouts(connection, where, limit, offset)

    def has_rollout(self, rollout: RolloutId) -> bool:
        with self._connection() as connection:
            return (
                connection.execute(select(table(RolloutRow).c.id).where(col(RolloutRow.id) == rollout)).first()
                is not None
            )

    def summed(
        self,
        limit: int,
        *,
        model: str | None = None,
        state: str | None = None,
        after: RolloutId | None = None,
        text: str | None = None,
        known: Mapping[RolloutId, Rollout] | None = None,
    ) -> list[Summed]:
        """Return rollouts as `rollouts` does, newest first, with counts in the place of devices and no verdicts.

        Args:
            known: These, in the state they have here, are at hand: they are returned as given, and nothing is counted.
        """
        held = known or {}
        with self._connection() as connection:
            headers = list(_rows(connection, RolloutRow, _newest(_listed(model, state, after, text)).limit(limit)))
            found = [rollout_rows.to_header(row) for row in headers]
            counted = [each for each in found if each.id not in held or held[each.id].state is not each.state]
            sums = {each.rollout.id: each for each in rollout_sums.summed(connection, counted)}
        return [sums[each.id] if each.id in sums else Summed(held[each.id], ()) for each in found]

    def headlines(self) -> dict[str, Headline]:
        """Return the newest rollout of each model, without its devices."""
        columns = table(RolloutRow).c
        newest = select(columns.model, func.max(columns.created_at).label("at")).group_by(columns.model).subquery()
        query = select(columns.id, columns.model, columns.release, columns.state, columns.created_at, columns.ended_at)
        query = query.join(newest, (columns.model == newest.c.model) & (columns.created_at == newest.c.at))
        with self._connection() as connection:
            found = connection.execute(query.order_by(columns.id)).all()
        return {
            str(row.model): Headline(
                RolloutId(row.id), rows.to_release(row.release).version, row.state, row.created_at, row.ended_at
            )
            for row in found
        }

    def points(self, rollout: RolloutId) -> list[Plot]:
        """Return the points of its chart, oldest first."""
        query = _select(PointRow).where(col(PointRow.rollout) == rollout).order_by(col(PointRow.ordinal))
        with self._connection() as connection:
            return [rollout_rows.to_point(row) for row in _rows(connection, PointRow, query)]

    # -- history -----------------------------------------------------------------------------------------------------

    def issued(self, device: DeviceId, *, until: float | None = None, limit: int) -> list[Issued]:
        """Return what the device was told, newest first."""
        query = _select(IssuedRow).where(col(IssuedRow.device) == device)
        if until is not None:
            query = query.where(col(IssuedRow.at) <= until)
        query = query.order_by(col(IssuedRow.counter).desc()).limit(limit)
        with self._connection() as connection:
            return [rows.to_issued(row) for row in _rows(connection, IssuedRow, query)]

    def told(self, at: float, device: DeviceId | None = None) -> dict[DeviceId, Issued]:
        """Return the last that each device had been told by the moment `at`; of `device` alone when it is given."""
        columns = table(IssuedRow).c
        newest = select(columns.device, func.max(columns.counter).label("counter")).where(columns.at <= at)
        if device is not None:
            newest = newest.where(columns.device == device)
        last = newest.group_by(columns.device).subquery()
        query = _select(IssuedRow).join(last, (columns.device == last.c.device) & (columns.counter == last.c.counter))
        with self._connection() as connection:
            return {each.device: each for each in map(rows.to_issued, _rows(connection, IssuedRow, query))}

    def events(
        self,
        *,
        device: DeviceId | None = None,
        rollout: RolloutId | None = None,
        before: int | None = None,
        since: float | None = None,
        until: float | None = None,
        limit: int,
    ) -> Sequence[EventEntry]:
        """Return the newest first, from below the ordinal `before`; taken after `since` and not after `until`."""
        query = _select(EventRow).order_by(col(EventRow.ordinal).desc()).limit(limit)
        if device is not None:
            query = query.where(col(EventRow.device) == device)
        if rollout is not None:
            query = query.where(col(EventRow.rollout) == rollout)
        if since is not None:
            query = query.where(col(EventRow.taken_at) > since)
        if until is not None:
            query = query.where(col(EventRow.taken_at) <= until)
        if before is not None:
            query = query.where(col(EventRow.ordinal) < before)
        with self._connection() as connection:
            found = _rows(connection, EventRow, query)
            return [EventEntry(row.ordinal or 0, row.taken_at, rows.to_event(row)) for row in found]

    def known_events(self, events: Sequence[EventId]) -> set[EventId]:
        """Return those of `events` that were taken."""
        query = select(table(EventRow).c.id).where(col(EventRow.id).in_(events))
        with self._connection() as connection:
            return {EventId(row.id) for row in connection.execute(query)}

    def notes(
        self,
        *,
        subject: str | None = None,
        what: Collection[str] | None = None,
        before: int | None = None,
        since: float | None = None,
        until: float | None = None,
        limit: int,
    ) -> Sequence[NoteEntry]:
        """Return the newest first, from below the ordinal `before`; made after `since` and not after `until`."""
        query = _select(NoteRow).order_by(col(NoteRow.ordinal).desc()).limit(limit)
        if subject is not None:
            query = query.where(col(NoteRow.subject) == subject)
        if what is not None:
            query = query.where(col(NoteRow.what).in_(what))
        if since is not None:
            query = query.where(col(NoteRow.at) > since)
        if until is not None:
            query = query.where(col(NoteRow.at) <= until)
        if before is not None:
            query = query.where(col(NoteRow.ordinal) < before)
        with self._connection() as connection:
            return [NoteEntry(row.ordinal or 0, rows.to_note(row)) for row in _rows(connection, NoteRow, query)]

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        with self._database.translated(), self._engine.begin() as connection:
            yield connection


def _listed(model: str | None, state: str | None, after: RolloutId | None, text: str | None) -> ColumnElement[bool]:
    """Return what rollouts are of a list; see `LedgerReader.rollouts`."""
    columns = table(RolloutRow).c
    where: ColumnElement[bool] = true()
    if model is not None:
        where &= columns.model == model
    if state is not None:
        where &= columns.state == state
    if after is not None:
        created_at = select(columns.created_at).where(columns.id == after).scalar_subquery()
        where &= (columns.created_at < created_at) | ((columns.created_at == created_at) & (columns.id < after))
    if text is not None:
        told = (columns.id, columns.model, columns.created_by, columns.reason)
        where &= or_(*(each.icontains(text, autoescape=True) for each in told))
    return where


def _newest(where: ColumnElement[bool]) -> Select[tuple[object, ...]]:
    columns = table(RolloutRow).c
    return _select(RolloutRow).where(where).order_by(columns.created_at.desc(), columns.id.desc())


def _rollouts(
    connection: Connection, where: ColumnElement[bool], limit: int | None = None, offset: int = 0
) -> list[Rollout]:
    query = _newest(where).limit(limit).offset(offset)
    return [
        rollout_rows.to_rollout(
            row,
            _of(connection, row.id, MemberRow, "position"),
            _of(connection, row.id, ControlRow, "wave", "device"),
            _of(connection, row.id, StratumRow, "wave", "device_class"),
            _of(connection, row.id, VerdictRow, "ordinal"),
        )
        for row in list(_rows(connection, RolloutRow, query))
    ]


def _of(connection: Connection, rollout: str, kind: type[R], *order: str) -> Iterator[R]:
    columns = table(kind).c
    query = _select(kind).where(columns.rollout == rollout).order_by(*(columns[name] for name in order))
    return _rows(connection, kind, query)


def _all(connection: Connection, kind: type[R]) -> Iterator[R]:
    return _rows(connection, kind, _select(kind))


def _select(kind: type[Row]) -> Select[tuple[object, ...]]:
    return select(*table(kind).columns)


def _rows(connection: Connection, _kind: type[R], query: Select[tuple[object, ...]]) -> Iterator[R]:
    """Run `query`. A plain row has the columns of its table as attributes, and costs a tenth of an ORM object."""
    return cast("Iterator[R]", iter(connection.execute(query)))


def _generation(connection: Connection) -> int:
    return int(connection.execute(select(table(WriterRow).c.generation)).scalar_one())
