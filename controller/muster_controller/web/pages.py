"""Routes of the page. Reads only: its buttons send orders to the API."""

from collections.abc import Callable, Coroutine
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse
from fastapi.routing import APIRoute
from fastapi.staticfiles import StaticFiles
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from muster_controller.api.authentication import require
from muster_controller.api.devices import parse_labels
from muster_controller.api.models import list_models
from muster_controller.api.problems import classify
from muster_controller.api.rollout_views import member_views, point_view, presences, rollout_summary, waiting_views
from muster_controller.api.schemas import NoteView
from muster_controller.api.services import Given, Services
from muster_controller.api.standing import Standing, select
from muster_controller.api.views import (
    device_detail,
    device_view,
    event_view,
    note_view,
    release_view,
)
from muster_controller.core.rollout.events import Order
from muster_controller.core.rollout.explain import who_waits
from muster_controller.core.rollout.state import Rollout
from muster_controller.operators.roles import GRANTS, Permission, Principal, inside
from muster_controller.web import forms, present
from muster_shared.errors import MusterError
from muster_shared.ids import DeviceId, RolloutId

HERE = Path(__file__).parent
DEVICES_SHOWN = 100
NOTES_SHOWN = 12
EVENTS_SHOWN = 30
MEMBERS_SHOWN = 1000
WAITING_SHOWN = 200
PANELS_SHOWN = 4  # Rollouts under way that the overview draws; the rest are listed.


def add_pages(app: FastAPI, services: Services, *others: APIRouter) -> None:
    """Add the page and what it loads to `app`, and routers of further pages."""
    app.state.templates = _environment(services)
    for each in (router, *others):
        app.include_router(each, include_in_schema=False)
    app.mount("/static", StaticFiles(directory=HERE / "static"), name="static")


class Page(APIRoute):
    """Shows our errors as pages, not as JSON."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def shown(request: Request) -> Response:
            try:
                return await handler(request)
            except MusterError as error:
                return render(request, "problem.html", status=classify(error)[0], problem=str(error))
            except RequestValidationError:
                return render(
                    request, "problem.html", status=422, problem="This does not fit: something is missing, or too long."
                )

        return shown


router = APIRouter(route_class=Page, default_response_class=HTMLResponse, dependencies=[require(Permission.VIEW)])


def render(request: Request, template: str, *, status: int = 200, **values: object) -> HTMLResponse:
    environment: Environment = request.app.state.templates
    who = forms.principal(request)
    body = environment.get_template(template).render(
        path=request.url.path,
        who=who,
        may=set() if who is None else {each.value for each in GRANTS[who.role]},
        csrf=forms.token(request),
        **values,
    )
    answer = HTMLResponse(body, status, headers={"Cache-Control": "no-store"})
    forms.keep(request, answer)
    return answer


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
        panels=[_panel(given, rollout, now) for rollout in running[:PANELS_SHOWN]],
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


@router.get("/devices/{device_id}")
def device_page(request: Request, given: Given, device_id: str) -> HTMLResponse:
    device = given.device(DeviceId(device_id))
    events = given.reader.events(device=device.id, limit=EVENTS_SHOWN)
    return render(
        request,
        "device.html",
        device=device_detail(device, given.committed().desired.get(device.id)),
        events=[event_view(entry) for entry in events],
        now=given.clock(),
    )


@router.get("/rollouts")
def rollouts_page(request: Request, given: Given) -> HTMLResponse:
    found = given.reader.rollouts(100)
    return render(request, "rollouts.html", rollouts=[rollout_summary(rollout) for rollout in found], now=given.clock())


@router.get("/rollouts/{rollout_id}")
def rollout_page(request: Request, given: Given, rollout_id: str) -> HTMLResponse:
    rollout, now = given.rollout(RolloutId(rollout_id)), given.clock()
    presence = presences(given.committed().devices, rollout)
    waiting = [each for each in who_waits(rollout, presence, now) if each.why not in present.UNDER_WAY]
    return render(
        request,
        "rollout.html",
        panel=_panel(given, rollout, now),
        members=list(
            islice(
                (each for each in member_views(rollout) if each.arm != "waiting" and given.sees(each.device)),
                MEMBERS_SHOWN,
            )
        ),
        waiting=waiting_views(rollout, presence, [each for each in waiting if given.sees(each.device)][:WAITING_SHOWN]),
        waiting_counts=present.waiting_counts(waiting),
        notes=[note_view(entry) for entry in given.reader.notes(subject=rollout.id, limit=50)],
        now=now,
    )


@router.get("/models")
def models_page(request: Request, given: Given) -> HTMLResponse:
    releases = given.releases.releases()
    return render(
        request,
        "models.html",
        models=list_models(given).models,
        releases=[
            (release_view(release), given.releases.manifest(release.bundle_sha256)) for release in reversed(releases)
        ],
        bars={bar.model: bar for bar in present.model_bars(list_models(given).models)},
        expiries=given.expiries(),
        initialised=given.releases.repository.is_ready,
        now=given.clock(),
    )


def _notes(given: Services, limit: int) -> list[NoteView]:
    found = given.reader.notes(limit=limit)
    return [note_view(entry) for entry in found if given.sees_subject(entry.note.subject)]


def _panel(given: Services, rollout: Rollout, now: float) -> present.RolloutPanel:
    panel = present.rollout_panel(rollout, [point_view(point) for point in given.reader.points(rollout.id)], now)
    return replace(
        panel, actions=tuple(each for each in panel.actions if _may_order(given.viewer, rollout, each.order))
    )


def _may_order(who: Principal | None, rollout: Rollout, order: Order) -> bool:
    """Return whether the API would take this order from `who`: no other button is shown."""
    if who is None or (who.selector and not inside(rollout.policy.selector, who.selector)):
        return False
    wanted = {Permission.OPERATE, Permission.APPROVE} if order is Order.APPROVE else {Permission.OPERATE}
    return wanted <= GRANTS[who.role]


def _environment(services: Services) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        ago=present.ago,
        bytes=present.size,
        clock=present.clock_time,
        day=present.day_time,
        evidence=present.number,
        host_rows=present.host_rows,
        percent=present.percent,
        stamp=present.stamp,
        words=present.words,
    )
    environment.globals.update(
        fleet=services.fleet_id,
        version=services.version,
        open_lab=services.open_lab,
        query=present.query,
        tones=present.TONES,
    )
    return environment
