"""The overview: the fleet at a glance, what is under way, and what changed lately."""

from typing import Annotated

from fastapi import Query, Request
from fastapi.responses import HTMLResponse

from muster_controller.api.models import list_models
from muster_controller.api.objectives import list_objectives
from muster_controller.api.rollout_views import rollout_summary
from muster_controller.api.schemas import NoteView
from muster_controller.api.services import Given, Services
from muster_controller.api.views import note_view
from muster_controller.core.alerts.machine import State
from muster_controller.core.samples import FleetSample, period_for, sample
from muster_controller.web import history, present
from muster_controller.web.frame import pages, render
from muster_controller.web.pages.rollouts import panel_of
from muster_shared.metrics import DAY_S

NOTES_SHOWN = 14
PANELS_SHOWN = 4  # Rollouts under way that the overview draws; the rest are listed.
ALERTS_SHOWN = 5
OBJECTIVES_SHOWN = 6
MODELS_DRAWN = 4
SPANS = ((1, "a day"), (7, "a week"), (60, "two months"), (730, "two years"))

router = pages()


@router.get("/")
def overview(request: Request, given: Given, days: Annotated[int, Query(ge=1, le=1830)] = 1) -> HTMLResponse:
    status, now = given.status(), given.clock()
    running = sorted(given.committed().running.values(), key=lambda rollout: rollout.created_at, reverse=True)
    latest = [] if running else given.reader.rollouts(1)
    looks = _looks(given, now, days)
    bars = present.model_bars(list_models(given).models)
    firing = given.alerts.alerts.alerts(states=(State.FIRING,), limit=100)
    return render(
        request,
        "overview.html",
        status_view=status,
        now=now,
        tiles=present.tiles(status),
        bars=bars,
        panels=[panel_of(given, rollout, now) for rollout in running[:PANELS_SHOWN]],
        others=status.rollouts[PANELS_SHOWN:],
        latest=[rollout_summary(rollout) for rollout in latest],
        has_releases=bool(given.releases.releases()),
        notes=_notes(given, now - DAY_S),
        firing=sorted(firing, key=lambda alert: (-alert.severity.rank, alert.began_at))[:ALERTS_SHOWN],
        firing_count=len(firing),
        objectives=list_objectives(given, OBJECTIVES_SHOWN, None).objectives,
        plots=[
            history.standing_plot(looks),
            *(history.version_plot(bar.model, looks) for bar in bars[:MODELS_DRAWN]),
        ],
        days=days,
        spans=SPANS,
    )


def _looks(given: Services, now: float, days: int) -> list[tuple[float, FleetSample]]:
    """Return how the whole fleet stood, and how it stands now; nothing for whoever sees a part of it."""
    if given.is_partial:
        return []
    found = given.fleet_samples.samples(now - days * DAY_S, now, period_for(days * DAY_S))
    status = given.status()
    standings = {name.value: count for name, count in status.standings.items()}
    versions = [(each.model, each.version, each.devices) for each in status.versions]
    return [
        *((each.at, each.sample) for each in found),
        (now, sample(status.devices, status.online, standings, versions)),
    ]


def _notes(given: Services, since: float) -> list[NoteView]:
    found = given.reader.notes(since=since, limit=NOTES_SHOWN)
    return [note_view(entry) for entry in found if given.sees_subject(entry.note.subject)]
