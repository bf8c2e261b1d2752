"""Noised sums, mixers and operational series as rows. Not of the ledger: any controller may write them.

    hour of a mixer ─ add ────────▶ mixed 3600 s ─ in the same transaction ─▶ mixed 86400 s, rolled up
    5 minutes of twins ─ add_series ─▶ series 300 s, 3600 s and 86400 s, in one transaction

So a roll-up is never behind and never done twice, and there is nothing to resume: a batch is there with its part of the
day, or not at all. `prune` takes away what is too old, a bounded piece a call.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
from sqlalchemy import (
    ColumnElement,
    Connection,
    RowMapping,
    Select,
    Table,
    and_,
    delete,
    func,
    insert,
    or_,
    select,
    update,
)

from muster_controller.core.metrics.rollup import MIXED_KEEP_S, ROLLED, SERIES_KEEP_S, added, batch_of, day_of
from muster_controller.core.metrics.series import BIN_S, HOST, Group, Series, merged, rolled_up
from muster_controller.core.metrics.sums import MixedSum
from muster_controller.db.rows import Values
from muster_controller.db.side import SideDatabase
from muster_controller.db.tables import MixedRow, MixerRow, SeriesRow, table
from muster_controller.db.writing import upsert
from muster_shared.errors import MusterError
from muster_shared.ids import ModelName
from muster_shared.metrics import DAY_S, HOUR_S, Cell, Kind, Mixed, MixerState

ROWS_MAX: Final = 50_000
"""Of one answer."""
_WRITERS: Final = 0x4D757374657243  # The advisory lock of those who add up; the number says "MusterC".
_MIXED, _MIXER, _SERIES = table(MixedRow), table(MixerRow), table(SeriesRow)
_numbers: msgspec.json.Decoder[tuple[int, ...]] = msgspec.json.Decoder(tuple[int, ...])
_states: msgspec.json.Decoder[MixerState] = msgspec.json.Decoder(MixerState)


class TooMuchAsked(MusterError):
    """More rows than one answer may be made of."""

    def __init__(self) -> None:
        super().__init__(
            f"that is more than {ROWS_MAX} sums or points; ask about fewer days, or about one version, class or region"
        )


@dataclass(frozen=True)
class MixerEntry:
    """A mixer as it is known: `state` is what it said of itself last, at `seen_at`; None: it has said nothing yet."""

    id: str
    created_at: float
    created_by: str
    public_key: str
    seen_at: float
    state: MixerState | None


@dataclass(frozen=True)
class Known:
    """A cell that there are sums of, and of when. `first` and `last` are the beginnings of days."""

    cell: Cell
    kinds: tuple[Kind, ...]
    first: float
    last: float
    devices: int
    """The most in any hour, or merged day."""


class MetricsStore:
    """Raises LedgerUnavailable and LedgerRefused, as `SideDatabase`."""

    def __init__(self, database: SideDatabase) -> None:
        self._side = database

    # -- noised sums -------------------------------------------------------------------------------------------------

    def add(self, batches: Sequence[Mixed]) -> int:
        """Keep what mixers published, checked before; return how many batches were new. All of them, or none."""
        taken = 0
        with self._side.transaction() as connection:
            _lock(connection)
            for each in batches:
                if connection.execute(select(_MIXED.c.kind).where(_MIXED.c.batch == _name(each))).first() is None:
                    taken += 1
                    _add(connection, each)
        return taken

    def mixed(
        self,
        model: str | None = None,
        kind: Kind | None = None,
        period_s: int | None = None,
        since: float | None = None,
        until: float | None = None,
        version: str | None = None,
        device_class: str | None = None,
        region: str | None = None,
    ) -> list[MixedSum]:
        """Return sums of periods that begin at `since` or later and before `until`, oldest first.

        Args:
            period_s: 3600: hours. 86400: days, both rolled up and sent merged. None: nothing twice and all that is
                there: days where all of the day is asked about, hours at the edges.
        Raises:
            TooMuchAsked: more than ROWS_MAX.
        """
        query = select(_MIXED).where(_window(_MIXED, period_s, since, until))
        for column, value in (("model", model), ("version", version), ("device_class", device_class)):
            query = query if value is None else query.where(_MIXED.c[column] == value)
        query = query if region is None else query.where(_MIXED.c.region == region)
        query = query if kind is None else query.where(_MIXED.c.kind == kind.value)
        return [_mixed(row) for row in self._rows(query, _MIXED.c.period_start, _MIXED.c.batch, _MIXED.c.kind)]

    def known(self, model: str | None = None) -> list[Known]:
        """Return every cell that there are sums of, by name."""
        names = [_MIXED.c[name] for name in ("model", "version", "device_class", "region", "classes")]
        start = _MIXED.c.period_start
        numbers = (func.min(start).label("first"), func.max(start).label("last"), func.max(_MIXED.c.devices).label("n"))
        query = select(*names, _MIXED.c.kind, *numbers).where(_MIXED.c.period_s == DAY_S)
        query = query if model is None else query.where(_MIXED.c.model == model)
        found: dict[Cell, list[RowMapping]] = {}
        for row in self._rows(query.group_by(*names, _MIXED.c.kind), *names, _MIXED.c.kind):
            found.setdefault(_cell(row), []).append(row)
        return [
            Known(
                cell,
                tuple(Kind(row["kind"]) for row in rows),
                min(row["first"] for row in rows),
                max(row["last"] for row in rows),
                max(row["n"] for row in rows),
            )
            for cell, rows in sorted(found.items())
        ]

    # -- mixers ------------------------------------------------------------------------------------------------------

    def say_mixer(self, state: MixerState, now: float) -> None:
        """Keep what a mixer says of itself; one that nobody made here has a certificate all the same, or could not."""
        said = {"seen_at": now, "state": msgspec.json.encode(state)}
        with self._side.transaction() as connection:
            _lock(connection)
            if connection.execute(update(_MIXER).where(_MIXER.c.id == state.mixer).values(said)).rowcount == 0:
                values = {"id": state.mixer, "created_at": now, "created_by": "", "public_key": "", **said}
                connection.execute(insert(_MIXER).values(values))

    def mixers(self) -> list[MixerEntry]:
        """Return every mixer, by id."""
        with self._side.reading() as connection:
            rows = connection.execute(select(_MIXER).order_by(_MIXER.c.id)).mappings().all()
        return [
            MixerEntry(
                row["id"],
                row["created_at"],
                row["created_by"],
                row["public_key"],
                row["seen_at"],
                None if row["state"] is None else _states.decode(bytes(row["state"])),
            )
            for row in rows
        ]

    # -- operational series ------------------------------------------------------------------------------------------

    def add_series(self, points: Iterable[Series]) -> None:
        """Add points of 5 minutes to what is there, in all three periods, in one transaction."""
        fine = rolled_up(points, BIN_S)
        if not fine:
            return
        with self._side.transaction() as connection:
            _lock(connection)
            for period_s in SERIES_KEEP_S:
                ours = rolled_up(fine, period_s)
                there = _there(connection, period_s, sorted({each.at for each in ours}))
                both = [
                    each if (known := there.get((each.group, each.at))) is None else merged(known, each)
                    for each in ours
                ]
                upsert(connection, SeriesRow, map(_series_values, both))

    def series(
        self,
        model: str | None = None,
        period_s: int = HOUR_S,
        since: float | None = None,
        until: float | None = None,
        version: str | None = None,
        device_class: str | None = None,
        region: str | None = None,
    ) -> list[Series]:
        """Return points that begin at `since` or later and before `until`, oldest first.

        Args:
            model: None: of every model. `series.HOST`: of whole devices, each counted once.
        Raises:
            TooMuchAsked: more than ROWS_MAX.
        """
        query = select(_SERIES).where(_window(_SERIES, period_s, since, until))
        query = query.where(_SERIES.c.model != HOST if model is None else _SERIES.c.model == model)
        for column, value in (("version", version), ("device_class", device_class), ("region", region)):
            query = query if value is None else query.where(_SERIES.c[column] == value)
        names = [_SERIES.c[name] for name in ("model", "version", "device_class", "region")]
        return [_series(row) for row in self._rows(query, _SERIES.c.at, *names)]

    # -- upkeep ------------------------------------------------------------------------------------------------------

    def prune(self, now: float) -> int:
        """Take away what is older than it is kept (`rollup`); return how many rows went.

        At most one day of each period in one transaction: until it returns 0 there may be more.
        """
        gone = 0
        for rows, at, keep in ((_MIXED, "period_start", MIXED_KEEP_S), (_SERIES, "at", SERIES_KEEP_S)):
            for period_s, keep_s in keep.items():
                gone += self._prune(rows, rows.c[at], period_s, now - keep_s)
        return gone

    def _prune(self, rows: Table, at: ColumnElement[float], period_s: int, before: float) -> int:
        old = and_(rows.c.period_s == period_s, at < before)
        with self._side.reading() as connection:
            oldest = connection.execute(select(func.min(at)).where(old)).scalar()
        if oldest is None:
            return 0
        until = min(before, day_of(float(oldest)) + DAY_S)
        with self._side.transaction() as connection:
            return connection.execute(delete(rows).where(rows.c.period_s == period_s, at < until)).rowcount

    def _rows(self, query: "Select[tuple[object, ...]]", *order: ColumnElement[object]) -> Sequence[RowMapping]:
        with self._side.reading() as connection:
            rows = connection.execute(query.order_by(*order).limit(ROWS_MAX + 1)).mappings().all()
        if len(rows) > ROWS_MAX:
            raise TooMuchAsked
        return rows


def _lock(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":  # SQLite began with its only lock.
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_WRITERS})")


def _window(rows: Table, period_s: int | None, since: float | None, until: float | None) -> ColumnElement[bool]:
    at = rows.c.at if rows is _SERIES else rows.c.period_start

    def between(begin: float | None, end: float | None, of_s: int) -> ColumnElement[bool]:
        bounds = [rows.c.period_s == of_s]
        bounds += [] if begin is None else [at >= begin]
        bounds += [] if end is None else [at < end]
        return and_(*bounds)

    if period_s is not None:
        return between(since, until, period_s)
    first = None if since is None else day_of(since + DAY_S - 1e-6)
    last = None if until is None else day_of(until)
    if first is not None and last is not None and first > last:  # Within one day.
        return between(since, until, HOUR_S)
    edges = [between(first, last, DAY_S)]
    edges += [] if since is None or first is None or since == first else [between(since, first, HOUR_S)]
    edges += [] if until is None or last is None or until == last else [between(last, until, HOUR_S)]
    return or_(*edges)


def _add(connection: Connection, mixed: Mixed) -> None:
    """Keep a new batch, and add hours to their day."""
    ours = [
        MixedSum(
            batch=_name(mixed),
            kind=kind,
            mixer=mixed.mixer,
            cell=mixed.cell,
            period_start=float(mixed.period_start),
            period_s=mixed.period_s,
            devices=mixed.devices,
            late=mixed.late,
            sums=mixed.sums[kind],
            variance=mixed.sigma[kind] ** 2,
        )
        for kind in sorted(mixed.sums)
    ]
    upsert(connection, MixedRow, map(_mixed_values, ours))
    if mixed.period_s != HOUR_S:
        return
    day = day_of(mixed.period_start)
    query = select(_MIXED).where(_MIXED.c.batch == batch_of(mixed.cell, day))
    days = {each.kind: each for each in map(_mixed, connection.execute(query).mappings())}
    windows = _windows(connection, mixed.cell, day)
    rolled = [added(days.get(each.kind), each, windows[each.kind]) for each in ours]
    upsert(connection, MixedRow, map(_mixed_values, rolled))


def _name(mixed: Mixed) -> str:
    """Return the name of a batch among those of all mixers."""
    return f"{mixed.mixer}/{mixed.batch}"


def _windows(connection: Connection, cell: Cell, day: float) -> Mapping[Kind, list[tuple[float, int]]]:
    """Return (period_start, devices) of the hours of a cell and day that are there, by kind."""
    start = _MIXED.c.period_start
    query = select(_MIXED.c.kind, start, _MIXED.c.devices).where(
        _MIXED.c.model == cell.model,
        _MIXED.c.period_s == HOUR_S,
        start >= day,
        start < day + DAY_S,
        _MIXED.c.version == cell.version,
        _MIXED.c.device_class == cell.device_class,
        _MIXED.c.region == cell.region,
        _MIXED.c.classes == cell.classes,
    )
    found: dict[Kind, list[tuple[float, int]]] = {}
    for row in connection.execute(query).all():
        found.setdefault(Kind(row.kind), []).append((float(row.period_start), int(row.devices)))
    return found


def _there(connection: Connection, period_s: int, at: Sequence[float]) -> Mapping[tuple[Group, float], Series]:
    query = select(_SERIES).where(_SERIES.c.period_s == period_s, _SERIES.c.at.in_(at))
    return {(each.group, each.at): each for each in map(_series, connection.execute(query).mappings())}


def _cell(row: RowMapping) -> Cell:
    return Cell(
        model=ModelName(row["model"]),
        version=row["version"],
        device_class=row["device_class"],
        region=row["region"],
        classes=row["classes"],
    )


def _mixed(row: RowMapping) -> MixedSum:
    return MixedSum(
        batch=row["batch"],
        kind=Kind(row["kind"]),
        mixer=row["mixer"],
        cell=_cell(row),
        period_start=row["period_start"],
        period_s=row["period_s"],
        devices=row["devices"],
        late=bool(row["late"]),
        sums=_numbers.decode(bytes(row["sums"])),
        variance=row["variance"],
        periods=row["periods"],
    )


def _mixed_values(each: MixedSum) -> Values:
    cell = each.cell
    return (
        *(each.batch, each.kind.value, each.mixer, cell.model, cell.version, cell.device_class, cell.region),
        *(cell.classes, each.period_start, each.period_s, each.devices, each.late),
        *(msgspec.json.encode(each.sums), each.variance, each.periods),
    )


def _series(row: RowMapping) -> Series:
    group = Group(row["model"], row["version"], row["device_class"], row["region"])
    return Series(group, **{name: row[name] for name in _SERIES_FIELDS})


def _series_values(each: Series) -> Values:
    group = each.group
    names = (group.model, group.version, group.device_class, group.region)
    return (*names, *(getattr(each, name) for name in _SERIES_FIELDS))


_SERIES_FIELDS: Final = tuple(column.name for column in _SERIES.columns)[4:]
assert tuple(Series.__dataclass_fields__)[1:] == _SERIES_FIELDS, "the row has the fields of the value, in their order"
assert tuple(column.name for column in _MIXED.columns)[-3:] == ("sums", "variance", "periods"), (
    "as `_mixed_values` has it"
)
assert ROLLED[0] == "/", "no batch has such a name"
