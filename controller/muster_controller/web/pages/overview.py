"""The overview: the fleet at a glance."""

from typing import Annotated

from fastapi import Query, Request
from fastapi.responses import HTMLResponse

from muster_controller.api.devices import parse_labels
from muster_controller.api.models import list_models
from muster_controller.api.rollout_views import rollout_summary
from muster_controller.api.schemas import NoteView
from muster_controller.api.services import Given, Services
from muster_controller.api.standing import Standing, select
from muster_controller.api.views import device_view, note_view
from muster_controller.web import present
from muster_controller.web.frame import pages, render
from muster_controller.web.pages.rollouts import panel_of

DEVICES_SHOWN = 100
NOTES_SHOWN = 12
PANELS_SHOWN = 4  # Rollouts under way that the overview draws; the rest are listed.

router = pages()


@router.get("/")
def overview(
    request: Request,
    given: Given,
    state: Annotated[Standing | None, Query()] = None,
    online: bool | None = None,
    device_class: Annotated[str | None, Query(alias="class")] = None,
    label: str = "",
    q: str = "",
    cursor: str | None = None,
) -> HTMLResponse:
    status, now, fleet = given.status(), given.clock(), given.committed()
    matching = select(
        fleet,
        state=state,
        online=online,
        of_class=device_class or None,
        labels=parse_labels(label.split()),
        text=q.strip() or None,
    )
    found = list(matching)
    page = [device for device in found if cursor is None or device.id > cursor][:DEVICES_SHOWN]
    running = sorted(fleet.running.values(), key=lambda rollout: rollout.created_at, reverse=True)
    latest = [] if running else given.reader.rollouts(1)
    filters = {
        "state": "" if state is None else state.value,
        "online": "" if online is None else str(online).lower(),
        "class": device_class or "",
        "label": label,
        "q": q,
    }
    return render(
        request,
        "overview.html",
        status_view=status,
        now=now,
        tiles=present.tiles(status),
        bars=present.model_bars(list_models(given).models),
        panels=[panel_of(given, rollout, now) for rollout in running[:PANELS_SHOWN]],
        latest=[rollout_summary(rollout) for rollout in latest],
        has_releases=bool(given.releases.releases()),
        notes=_notes(given, NOTES_SHOWN),
        devices=[device_view(device, fleet.desired.get(device.id)) for device in page],
        found=len(found),
        next_cursor=page[-1].id if page and found[-1].id != page[-1].id else None,
        filters=filters,
        is_filtered=any(filters.values()),
        standings=list(Standing),
        classes=list(status.classes),
    )


def _notes(given: Services, limit: int) -> list[NoteView]:
    found = given.reader.notes(limit=limit)
    return [note_view(entry) for entry in found if given.sees_subject(entry.note.subject)]
