"""Reads the tables of metrics for other tools: rows in order, in pieces, never changing anything.

What these rows mean and how they come about `metrics` knows; here they are copied. Every method raises
LedgerUnavailable when the database cannot be read.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Column, RowMapping, Select, case, func, literal, select, text, tuple_

from muster_controller.core.metrics.series import Group, Series
from muster_controller.core.metrics.sums import MixedSum
from muster_controller.db.metrics_store import MetricsStore, MixerEntry
from muster_controller.db.side import SideDatabase
from muster_controller.db.tables import (
    AlertRow,
    CertificateRow,
    IdentityRow,
    MixedRow,
    ObjectiveRow,
    RolloutRow,
    SeriesRow,
    table,
)
from muster_controller.identity.enrolment import IdentityState
from muster_shared.metrics import Cell, Kind

DAY_S = 86_400.0
PAGE = 2000  # Rows a read transaction.
OBJECTIVES_MAX = 1000

_SERIES, _MIXED = table(SeriesRow), table(MixedRow)


@dataclass(frozen=True)
class Objective:
    name: str
    model: str
    device_class: str
    indicator: str
    target: float


class MetricsReading:
    """Reads from any thread."""

    def __init__(self, side: SideDatabase) -> None:
        self._side = side
        self._store = MetricsStore(side)

    def series(self, period_s: int, since: float, until: float) -> Iterator[Series]:
        """Give the rows of periods of `period_s` that begin in [since, until), by time."""
        columns = _SERIES.c
        key = (columns.at, columns.model, columns.version, columns.device_class, columns.region)
        where = (columns.period_s == period_s, columns.at >= since, columns.at < until)
        return map(_series, self._walk(select(*columns).where(*where), key))

    def sums(
        self, period_s: int, since: float, until: float, kinds: Sequence[Kind] = tuple(Kind)
    ) -> Iterator[MixedSum]:
        """Give the noised sums of periods of `period_s` that begin in [since, until), by time."""
        columns = _MIXED.c
        query = select(*columns).where(
            columns.period_s == period_s,
            columns.period_start >= since,
            columns.period_start < until,
            columns.kind.in_([kind.value for kind in kinds]),
        )
        return map(_sums, self._walk(query, (columns.period_start, columns.batch, columns.kind)))

    def mixers(self) -> list[MixerEntry]:
        """Return every mixer, by id."""
        return self._store.mixers()

    def alerts(self) -> Counter[tuple[str, str, str]]:
        """Return how many alerts there are by rule, severity and state; those that are over are left out."""
        columns = table(AlertRow).c
        by = (columns.rule, columns.severity, columns.state)
        query = select(*by, func.count()).where(columns.state != "resolved").group_by(*by)
        with self._side.reading() as connection:
            return Counter({(row[0], row[1], row[2]): row[3] for row in connection.execute(query)})

    def objectives(self) -> list[Objective]:
        columns = table(ObjectiveRow).c
        query = select(columns.name, columns.model, columns.selector_class, columns.indicator, columns.target)
        with self._side.reading() as connection:
            rows = connection.execute(query.order_by(columns.name).limit(OBJECTIVES_MAX)).all()
        return [Objective(*row) for row in rows]

    def rollouts(self) -> Counter[str]:
        """Return how many rollouts there are by state, ended ones too."""
        columns = table(RolloutRow).c
        with self._side.reading() as connection:
            rows = connection.execute(select(columns.state, func.count()).group_by(columns.state))
            return Counter({row[0]: row[1] for row in rows})

    def certificates(self) -> list[tuple[str, float]]:
        """Return each accepted device's newest certificate's end, the nearest first; those without one are left out."""
        with self._side.reading() as connection:
            return [(row.device, row.ends) for row in connection.execute(_newest().order_by(text("ends")))]

    def expiring(self, now: float, days: Sequence[int]) -> dict[int, int]:
        """Return of how many accepted devices the newest certificate runs out within so many days, or has."""
        newest = _newest().subquery()
        counts = [func.coalesce(func.sum(case((newest.c.ends <= now + each * DAY_S, 1), else_=0)), 0) for each in days]
        with self._side.reading() as connection:
            found = connection.execute(select(*counts)).one()
        return {each: int(count) for each, count in zip(days, found, strict=True)}

    def _walk(self, query: Select[Any], key: Sequence[Column[Any]]) -> Iterator[RowMapping]:
        """Give all rows in the order of their key, in pieces: no transaction is open while the caller works."""
        ordered, after = query.order_by(*key).limit(PAGE), None
        while True:
            piece = ordered if after is None else ordered.where(tuple_(*key) > tuple_(*after))
            with self._side.reading() as connection:
                rows = connection.execute(piece).mappings().all()
            yield from rows
            if len(rows) < PAGE:
                return
            after = [literal(rows[-1][column.name], column.type) for column in key]


def _series(row: RowMapping) -> Series:
    group = Group(row["model"], row["version"], row["device_class"], row["region"])
    return Series(group, **{name: row[name] for name in Series.__dataclass_fields__ if name != "group"})


def _sums(row: RowMapping) -> MixedSum:
    names = ("batch", "mixer", "period_start", "period_s", "devices", "variance", "late", "periods")
    return MixedSum(
        **{name: row[name] for name in names},
        kind=Kind(row["kind"]),
        cell=Cell(**{name: row[name] for name in ("model", "version", "device_class", "region", "classes")}),
        sums=msgspec.json.decode(row["sums"], type=tuple[int, ...]),
    )


def _newest() -> Select[tuple[str, float]]:
    """Select each accepted `device` that has a certificate, and when its newest one `ends`."""
    certificates, identities = table(CertificateRow).c, table(IdentityRow).c
    return (
        select(certificates.device, func.max(certificates.expires_at).label("ends"))
        .join(table(IdentityRow), identities.device == certificates.device)
        .where(certificates.revoked_at.is_(None), identities.state == IdentityState.ACCEPTED.value)
        .group_by(certificates.device)
    )
