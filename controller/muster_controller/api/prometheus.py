"""The route that Prometheus scrapes: `GET /metrics`, text 0.0.4 or, when it is asked for, OpenMetrics.

Whoever scrapes is a principal like any other: a viewer's API token, sent as a bearer (`authorization.credentials_file`
in Prometheus). One that may see some devices alone gets sums over those, and nothing of the rest.
"""

import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, FastAPI, Header, Request
from fastapi.responses import Response

from muster_controller.api.authentication import require
from muster_controller.api.services import Given, Services
from muster_controller.api.standing import Standing
from muster_controller.core.metrics.series import BIN_S, Series
from muster_controller.core.rollout.draft import terms, weigh
from muster_controller.core.rollout.state import Rollout
from muster_controller.core.rollout.tally import Tally, tally_of
from muster_controller.export.content import busiest, newest
from muster_controller.export.counting import Counting, Counts, Key
from muster_controller.export.families import OPEN_METRICS, TEXT, Family, text, wants_open_metrics
from muster_controller.export.gathering import COUNTED, DAYS_AHEAD, HOSTS_COUNTED, Content, Facts, RolloutNow, gather
from muster_controller.export.naming import class_names
from muster_controller.export.process import process_families, started_at
from muster_controller.operators.roles import Permission
from muster_shared.metrics import HOUR_S, Kind

PATH = "/metrics"
CONTENT_S = 4 * HOUR_S  # Mixers close an hour 75 minutes after its end; what is older is not "now" any more.
SLOW_EVERY_S = 60.0
CONTENT_KINDS = (Kind.CLASSES, Kind.INPUTS, Kind.DRIFT, Kind.FEEDBACK)
_BEGAN = started_at()
_NAMES = tuple(dict.fromkeys(name for name, *_ in (*COUNTED, *HOSTS_COUNTED)))

router = APIRouter(include_in_schema=False, dependencies=[require(Permission.VIEW)])


class Exposition:
    """Everything that the page says, gathered anew at each scrape. Safe from any thread."""

    def __init__(self) -> None:
        self._counting = Counting()
        self._content: tuple[float, list[Content]] | None = None
        self._certificates: tuple[float, Mapping[int, int]] | None = None
        self._lock = threading.Lock()

    def families(self, given: Services) -> list[Family]:
        """Return all families as `given` may see them. Raises LedgerUnavailable."""
        return gather(self._whole(given))

    def _whole(self, given: Services) -> Facts:
        now = given.clock()
        facts = _seen(given, now)
        if given.is_partial:
            return facts
        reading = given.metrics_reading
        with self._lock:  # Two scrapers at once must not count the same row twice.
            since = self._counting.begin_at(now)
            rows = list(reading.series(BIN_S, since - since % BIN_S, now + BIN_S))
            self._counting.take(_counts(rows), now)
            totals = {key: dict(counts) for key, counts in self._counting.totals.items()}
        return replace(
            facts,
            rollouts=reading.rollouts(),
            totals=totals,
            busy=busiest(row for row in rows if row.at >= now - 3 * BIN_S),
            content=self._newest(given, now),
            mixers=reading.mixers(),
            alerts=reading.alerts(),
            objectives=reading.objectives(),
            certificates=self._expiring(given, now),
        )

    def _expiring(self, given: Services, now: float) -> Mapping[int, int]:
        """Return how many certificates run out soon: they do so by the day, and are counted anew after SLOW_EVERY_S."""
        with self._lock:
            if self._certificates is None or not 0 <= now - self._certificates[0] < SLOW_EVERY_S:
                self._certificates = (now, given.metrics_reading.expiring(now, DAYS_AHEAD))
            return self._certificates[1]

    def _newest(self, given: Services, now: float) -> list[Content]:
        """Return the newest content of each cell: it changes by the hour, and is read again after SLOW_EVERY_S."""
        with self._lock:
            if self._content is None or not 0 <= now - self._content[0] < SLOW_EVERY_S:
                sums = given.metrics_reading.sums(HOUR_S, now - CONTENT_S, now, CONTENT_KINDS)
                found = newest(sums, lambda model, version: class_names(given.releases, model, version))
                self._content = (now, found)
            return self._content[1]


@router.get(PATH)
def metrics(request: Request, given: Given, accept: Annotated[str, Header()] = "") -> Response:
    """All metric families of this controller."""
    open_metrics = wants_open_metrics(accept)
    page = text(exposition_of(request.app).families(given), open_metrics=open_metrics)
    return Response(page, media_type=OPEN_METRICS if open_metrics else TEXT)


def exposition_of(app: FastAPI) -> Exposition:
    """Return what `create_app` made for this app: its counters are those of all who ask."""
    found = app.state.exposition
    assert isinstance(found, Exposition)
    return found


def _seen(given: Services, now: float) -> Facts:
    """Return what is in memory: of the devices that the asker may see."""
    fleet = given.committed()
    classes = fleet.view.classes()
    releases: Counter[tuple[str, str]] = Counter()
    for share in fleet.view.sums().versions:
        releases[share.model, share.version] += share.devices
    return Facts(
        now=now,
        version=given.version,
        fleet=given.fleet_id,
        is_leading=given.fleet.standing.leads,
        is_broker_connected=given.broker_connected(),
        counters=given.counters(),
        devices={  # A state that nobody is in is 0, not unknown.
            (each.device_class, state.value): each.standings.get(state, 0) for each in classes for state in Standing
        },
        online={each.device_class: each.online for each in classes},
        releases=releases,
        rollouts={},
        running=[_running(each, fleet.tallies.get(each.id)) for each in fleet.running.values()],
        trust=[(each.role, each.expires_at) for each in given.expiries()],
        process=process_families(_BEGAN),
        is_partial=given.is_partial,
    )


def _running(rollout: Rollout, tally: Tally | None) -> RolloutNow:
    tally = tally_of(rollout) if tally is None else tally
    return RolloutNow(
        id=rollout.id,
        model=rollout.model,
        version=rollout.release.version,
        state=rollout.state.value,
        created_at=rollout.created_at,
        evidence=weigh(rollout).e,
        abort_at=1.0 / terms(rollout).alpha,
        devices=tally.outcomes,
    )


def _counts(rows: Iterable[Series]) -> list[tuple[Key, float, Counts]]:
    """Return what was counted by release, device class and period: regions are summed up."""
    found: dict[tuple[Key, float], dict[str, float]] = {}
    for row in rows:
        group = row.group
        counts = found.setdefault(((group.model, group.version, group.device_class), row.at), {})
        for name in _NAMES:
            count = getattr(row, name)
            if count is not None:  # Energy, where there is no sensor.
                counts[name] = counts.get(name, 0.0) + count
    return [(key, at, counts) for (key, at), counts in found.items()]
