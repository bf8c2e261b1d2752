"""`/v1/status`: what the device reports of itself (its twin) beside what serves. Everything else is `serving.app`'s."""

import asyncio
import queue
from collections.abc import Callable, Mapping
from concurrent.futures import Future

import msgspec

from muster_agent.serving.app import App
from muster_agent.serving.extensions import ModelStatus
from muster_agent.serving.http import Request, Response, refusal
from muster_shared.ids import ModelName
from muster_shared.messages import Twin

ANSWER_TIMEOUT_S = 5.0
PATH = "/v1/status"


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """The answer."""

    agent: str
    """Its version."""
    online: bool
    """Whether the broker is there."""
    device: Twin
    """What the controller is told, as of now."""
    models: Mapping[ModelName, ModelStatus]
    """What serves, with counts."""


class StatusApp:
    """The handler that `http.serve` takes: `app`, with the device's own view added."""

    def __init__(self, app: App, twin: "Callable[[], Future[Twin]]", online: Callable[[], bool], version: str) -> None:
        self._app = app
        self._twin = twin
        self._online = online
        self._version = version

    def __call__(self, request: Request) -> Response | bytes | None:
        if request.path != PATH or request.method != b"GET":
            return self._app(request)
        request.answer_from(asyncio.ensure_future(self._status()))
        return None

    async def _status(self) -> Response:
        try:
            twin = await asyncio.wait_for(asyncio.wrap_future(self._twin()), ANSWER_TIMEOUT_S)
        except (TimeoutError, queue.Full):
            return refusal(503, "the agent is busy; ask again")
        status = Status(agent=self._version, online=self._online(), device=twin, models=self._app.status())
        return Response(200, [msgspec.json.encode(status)])
