"""Routes: health, status, history and the stream of changes."""

from collections.abc import AsyncIterator
from typing import Annotated

import msgspec
from fastapi import APIRouter, Header, Query
from sse_starlette import EventSourceResponse, ServerSentEvent

from muster_controller.api.hub import Change
from muster_controller.api.schemas import EventPage, Health, NotePage, Status
from muster_controller.api.services import Given
from muster_controller.api.views import event_view, note_view
from muster_shared.ids import DeviceId, RolloutId

router = APIRouter(tags=["fleet"])

Limit = Annotated[int, Query(ge=1, le=1000, description="At most so many.")]
Before = Annotated[int | None, Query(description="`next` of the page before.")]


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
    views = [event_view(entry) for entry in found]
    return EventPage(events=views, next=views[-1].cursor if len(views) == limit else None)


@router.get("/notes")
def notes(given: Given, subject: str | None = None, limit: Limit = 100, cursor: Before = None) -> NotePage:
    """The fleet's history for people, newest first."""
    views = [note_view(entry) for entry in given.reader.notes(subject=subject, before=cursor, limit=limit)]
    return NotePage(notes=views, next=views[-1].cursor if len(views) == limit else None)


@router.get(
    "/stream",
    response_class=EventSourceResponse,
    responses={200: {"description": "Server-sent events.", "content": {"text/event-stream": {}}}},
)
async def stream(
    given: Given, last_event_id: Annotated[str | None, Header(description="Continue after this id.")] = None
) -> EventSourceResponse:
    """Tell what changes: `device`, `rollout`, `model` and `note` name one thing to look at again; `reset` says to look
    at everything; `heartbeat` comes every ten seconds. Ids continue across reconnects."""

    async def told() -> AsyncIterator[ServerSentEvent]:
        async for each in given.hub.watch(last_event_id):
            if isinstance(each.what, Change):
                data = msgspec.json.encode({"id": each.what.key}).decode()
                yield ServerSentEvent(data, event=each.what.kind, id=each.id)
            else:
                yield ServerSentEvent("{}", event=each.what, id=each.id)

    return EventSourceResponse(told(), ping=0, send_timeout=30, headers={"Cache-Control": "no-store"})
