"""Samples of the fleet as rows: how it stood, thinned out as they age (`core.samples` says how)."""

from dataclasses import dataclass
from typing import Final

import msgspec
from sqlalchemy import delete, func, insert, select

from muster_controller.core.samples import KEPT_S, FleetSample, periods_due
from muster_controller.db.side import SideDatabase
from muster_controller.db.tables import FleetSampleRow, table

_SAMPLE = table(FleetSampleRow)
_decoder: Final = msgspec.json.Decoder(FleetSample)


@dataclass(frozen=True)
class Sampled:
    at: float
    sample: FleetSample


class SampleStore:
    """From any thread. Everything raises LedgerUnavailable where the database is away."""

    def __init__(self, side: SideDatabase) -> None:
        self._side = side

    def add(self, at: float, sample: FleetSample) -> list[int]:
        """Keep a look of `at` for each period that it is the first of, and drop what is too old; return the periods."""
        body = msgspec.json.encode(sample)
        with self._side.transaction() as connection:
            rows = connection.execute(select(_SAMPLE.c.period_s, func.max(_SAMPLE.c.at)).group_by(_SAMPLE.c.period_s))
            due = periods_due(at, {period: newest for period, newest in rows})
            for period in due:
                old = (_SAMPLE.c.period_s == period) & (_SAMPLE.c.at < at - KEPT_S[period])
                connection.execute(delete(_SAMPLE).where(old))
                connection.execute(insert(_SAMPLE).values(at=at, period_s=period, body=body))
        return due

    def samples(self, since: float, until: float, period_s: int) -> list[Sampled]:
        """Return the looks of a period in `since <= at < until`, in order of time."""
        chosen = (_SAMPLE.c.period_s == period_s) & (_SAMPLE.c.at >= since) & (_SAMPLE.c.at < until)
        with self._side.reading() as connection:
            rows = connection.execute(select(_SAMPLE.c.at, _SAMPLE.c.body).where(chosen).order_by(_SAMPLE.c.at)).all()
        return [Sampled(at, _decoder.decode(body)) for at, body in rows]
