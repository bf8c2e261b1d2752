"""Routes: health, status, history and the stream of changes."""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import JSONResponse
from sse_starlette import EventSourceResponse, ServerSentEvent

from muster_controller.api.authentication import require
from muster_controller.api.hub import Change
from muster_controller.api.schemas import EventPage, Health, NotePage, Status
from muster_controller.api.services import Given, Services
from muster_controller.api.views import event_view, note_view
from muster_controller.operators.roles import Permission
from muster_shared.ids import DeviceId, RolloutId

router = APIRouter(tags=["fleet"], dependencies=[require(Permission.VIEW)])
outside = APIRouter(include_in_schema=False)
"""What nobody has to be known for."""

Limit = Annotated[int, Query(ge=1, le=1000, description="At most so many.")]
Before = Annotated[int | None, Query(description="`next` of the page before.")]
EVENTS = {"text/event-stream": {"schema": {"type": "string"}}}


@router.get("/health")
def health(given: Given) -> Health:
    """Say that the controller answers, and what it is connected to."""
    return Health(
        status="ok",
        version=given.version,
        fleet=given.fleet_id,
        broker_connected=given.broker_connected(),
        leading=given.fleet.standing.leads,
        initialised=given.releases.repository.is_ready,
    )


@router.get("/status")
def status(given: Given) -> Status:
    """The fleet at a glance."""
    return given.status()


@router.get("/events")
def events(
    given: Given,
    device: str | None = None,
    rollout: str | None = None,
    limit: Limit = 100,
    cursor: Before = None,
) -> EventPage:
    """What devices reported, newest first."""
    found = given.reader.events(
        device=None if device is None else DeviceId(device),
        rollout=None if rollout is None else RolloutId(rollout),
        before=cursor,
        limit=limit,
    )
    views = [event_view(entry) for entry in found if given.sees(entry.event.device)]
    return EventPage(events=views, next=found[-1].ordinal if len(found) == limit else None)


@router.get("/notes")
def notes(given: Given, subject: str | None = None, limit: Limit = 100, cursor: Before = None) -> NotePage:
    """The fleet's history for people, newest first."""
    found = given.reader.notes(subject=subject, before=cursor, limit=limit)
    views = [note_view(entry) for entry in found if given.sees_subject(entry.note.subject)]
    return NotePage(notes=views, next=found[-1].ordinal if len(found) == limit else None)


@router.get(
    "/stream",
    response_class=EventSourceResponse,
    responses={200: {"description": "Server-sent events.", "content": EVENTS}},
)
async def stream(
    request: Request,
    given: Given,
    last_event_id: Annotated[str | None, Header(description="Continue after this id.")] = None,
) -> EventSourceResponse:
    """Tell what changes: `device`, `rollout`, `model`, `alert` and `note` name one thing to look at again; `reset` says
    to look at everything; `heartbeat` comes every ten seconds. Ids continue across reconnects."""

    bare = replace(given, committed=given.whole) if given.whole is not None else given

    def fresh() -> Services:
        return bare.seen_by(given.viewer) if given.viewer is not None else bare

    async def told() -> AsyncIterator[ServerSentEvent]:
        async for each in given.hub.watch(last_event_id):
            if each.what == "heartbeat" and await given.edge.principal(request.scope) is None:
                return  # Logged out, revoked or run out.
            if isinstance(each.what, Change):
                if each.what.kind == "device" and not fresh().sees(each.what.key):
                    continue
                data = msgspec.json.encode({"id": each.what.key}).decode()
                yield ServerSentEvent(data, event=each.what.kind, id=each.id)
            else:
                yield ServerSentEvent("{}", event=each.what, id=each.id)

    return EventSourceResponse(told(), ping=0, send_timeout=30, headers={"Cache-Control": "no-store"})


@router.get("/openapi.json", include_in_schema=False)
def openapi(request: Request) -> JSONResponse:
    """This API's document."""
    document: dict[str, Any] = request.app.openapi()
    return JSONResponse(document)


@outside.get("/healthz")
async def healthz() -> dict[str, str]:
    """Say that the controller answers, and nothing else: for supervisors, which are nobody."""
    return {"status": "ok"}
