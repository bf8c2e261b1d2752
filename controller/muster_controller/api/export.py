"""Routes: noised sums and operational series as JSON Lines, all of a span of time, in the order of time. Reads only."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse

from muster_controller.api.authentication import require
from muster_controller.api.services import Given, Services
from muster_controller.export.lines import MEDIA_TYPE, series_line, sums_line
from muster_controller.export.naming import class_names
from muster_controller.operators.errors import Forbidden
from muster_controller.operators.roles import Permission
from muster_shared.errors import WireError
from muster_shared.metrics import DAY_S, HOUR_S

SPAN_S_MAX = 400 * DAY_S
TIME_MAX = 253_402_300_799.0  # The end of the year 9999.

router = APIRouter(prefix="/export", tags=["export"], dependencies=[require(Permission.VIEW)])

Moment = Annotated[float, Query(ge=0, le=TIME_MAX, allow_inf_nan=False, description="Unix seconds.")]
Period = Annotated[
    Literal["hour", "day"], Query(description="Of days, sums are those of their hours, with their noise.")
]
LINES: dict[int | str, dict[str, Any]] = {200: {"description": "JSON Lines.", "content": {MEDIA_TYPE: {}}}}
PERIODS = {"hour": HOUR_S, "day": DAY_S}


@router.get("/sums", response_class=StreamingResponse, responses=LINES)
def export_sums(given: Given, since: Moment, until: Moment, period: Period = "hour") -> StreamingResponse:
    """All noised sums of periods that begin in [since, until): anonymous, as mixers published them."""
    _check(given, since, until)
    named: dict[tuple[str, str], tuple[str, ...]] = {}

    def lines() -> Iterator[bytes]:
        for each in given.metrics_reading.sums(PERIODS[period], since, until):
            key = each.cell.model, each.cell.version
            if key not in named:
                named[key] = class_names(given.releases, *key)
            yield sums_line(each, named[key])

    return StreamingResponse(lines(), media_type=MEDIA_TYPE)


@router.get("/series", response_class=StreamingResponse, responses=LINES)
def export_series(given: Given, since: Moment, until: Moment, period: Period = "hour") -> StreamingResponse:
    """All operational series of periods that begin in [since, until): counts that devices told, summed up."""
    _check(given, since, until)
    found = given.metrics_reading.series(PERIODS[period], since, until)
    return StreamingResponse(map(series_line, found), media_type=MEDIA_TYPE)


def _check(given: Services, since: float, until: float) -> None:
    if given.is_partial:
        raise Forbidden("an export is of the whole fleet, and you see a part of it; ask an admin for a wider selector")
    if not 0 < until - since <= SPAN_S_MAX:
        raise WireError(f"export from a moment to a later one, {SPAN_S_MAX // DAY_S} days at most")
