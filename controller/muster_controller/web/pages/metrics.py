"""Pages of what models see and say, of alerts, of privacy and of the weekly review. Reads only.

Anonymous figures are of the whole fleet and know no device, so whoever may see one part of it may see them.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Annotated

from fastapi import Query, Request
from fastapi.responses import HTMLResponse

from muster_controller.api.services import Given, Services
from muster_controller.core.review.facts import Review
from muster_controller.core.review.week import Week
from muster_controller.core.review.words import markdown as review_markdown
from muster_controller.db.metrics_store import Known, MetricsStore
from muster_controller.errors import NotFound
from muster_controller.web import prose
from muster_controller.web.frame import pages, render
from muster_controller.web.metric_compare import Compared, compared
from muster_controller.web.metric_present import model_panel
from muster_shared.ids import ModelName
from muster_shared.metrics import DAY_S, HOUR_S, K_MIN, eps

SPANS = (("1", "a day"), ("7", "a week"), ("30", "a month"))
DAYS_MAX = 30
HOURLY_DAYS = 7  # A longer time is drawn by days.
ENDED_SHOWN = 20
ALERTS_SHOWN = 200
ENDED_S = 7 * DAY_S
MIXERS_SHOWN = 8
WEEKS_SHOWN = 26

router = pages()


@dataclass(frozen=True)
class _Chosen:
    version: str
    device_class: str
    region: str
    days: int


@dataclass(frozen=True)
class _Gauge:
    name: str
    day: str
    share: float
    eps: float
    eps_max: float


@router.get("/models/{model}/metrics")
def metrics_page(
    request: Request,
    given: Given,
    model: str,
    version: str = "",
    device_class: Annotated[str, Query(alias="class")] = "",
    region: str = "",
    days: Annotated[int, Query(ge=1, le=DAYS_MAX)] = 7,
) -> HTMLResponse:
    store, now = given.metrics, given.clock()
    known = store.known(model)
    if not known and not any(release.model == model for release in given.releases.releases()):
        raise NotFound("model", model, "the models page lists what there is")
    begin, end = (now - days * DAY_S) // HOUR_S * HOUR_S, now
    part = partial(
        store.mixed,
        model=model,
        since=begin,
        until=end,
        version=version or None,
        device_class=device_class or None,
        region=region or None,
    )
    found = part()
    hourly = part(period_s=HOUR_S) if days <= HOURLY_DAYS else found
    versions = _versions(given, model, known)
    labels = _labels(given, model, version or (versions[-1] if versions else ""))
    return render(
        request,
        "metrics.html",
        now=now,
        model=model,
        chosen=_Chosen(version, device_class, region, days),
        versions=[(each, each) for each in reversed(versions)],
        device_classes=[(each, each) for each in sorted({entry.cell.device_class for entry in known})],
        regions=[(each, each) for each in sorted({entry.cell.region for entry in known} - {""})],
        spans=SPANS,
        panel=model_panel(found, hourly, labels, begin, end) if found else None,
        comparison=_comparison(given, model, versions, version, begin, end),
        budgets=_gauges(store),
        k_min=K_MIN,
    )


@router.get("/privacy")
def privacy_page(request: Request, given: Given) -> HTMLResponse:
    return render(request, "privacy.html", blocks=prose.blocks(given.statement()))


@router.get("/reviews")
def reviews_page(request: Request, given: Given) -> HTMLResponse:
    return _review(request, given, given.reviews.so_far(), "")


@router.get("/reviews/{week}")
def review_page(request: Request, given: Given, week: str) -> HTMLResponse:
    return _review(request, given, given.reviews.review(Week.parse(week)), week)


def _review(request: Request, given: Services, found: Review, chosen: str) -> HTMLResponse:
    text = review_markdown(found)
    weeks = [week for week, _ in given.reviews.weeks()][:WEEKS_SHOWN]
    return render(
        request,
        "reviews.html",
        title=prose.title(text, "Weekly review"),
        blocks=prose.blocks(text),
        weeks=weeks,
        chosen=chosen,
    )


def _versions(given: Services, model: str, known: list[Known]) -> list[str]:
    """Return the versions that something is known of, oldest release first."""
    seen = {entry.cell.version for entry in known}
    ranked = [release.version for release in given.releases.releases() if release.model == model]
    return [each for each in ranked if each in seen] + sorted(seen - set(ranked))


def _labels(given: Services, model: str, version: str) -> tuple[str, ...]:
    release = given.releases.release(ModelName(model), version)
    manifest = None if release is None else given.releases.manifest(release.bundle_sha256)
    return () if manifest is None else manifest.labels


def _comparison(
    given: Services, model: str, versions: list[str], version: str, begin: float, end: float
) -> Compared | None:
    """Return the newest version, or the one chosen, against the one before it; None where there is none."""
    after = version or (versions[-1] if versions else "")
    place = versions.index(after) if after in versions else 0
    return None if place == 0 else compare(given, model, versions[place - 1], after, begin, end)


def compare(given: Services, model: str, before: str, after: str, begin: float, end: float) -> Compared:
    """Return what two releases see and say of a time, side by side."""
    old, new = (given.metrics.mixed(model=model, version=each, since=begin, until=end) for each in (before, after))
    return compared(before, after, old, new, (_labels(given, model, before), _labels(given, model, after)))


def _gauges(store: MetricsStore) -> list[_Gauge]:
    found = []
    for mixer in store.mixers()[:MIXERS_SHOWN]:
        if mixer.state is None or not mixer.state.budgets:
            continue
        newest = mixer.state.budgets[0]
        day = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=newest.day)
        share = newest.rho_spent / newest.rho_budget if newest.rho_budget else 1.0
        delta = mixer.state.delta
        found.append(
            _Gauge(mixer.id, f"{day:%Y-%m-%d}", share, eps(newest.rho_spent, delta), eps(newest.rho_budget, delta))
        )
    return found
