"""`/v1/status`: what the device reports of itself (its twin) and who it is, beside what serves; and of that, on
`/metrics`, the certificate. `/v1/metrics`: the anonymous windows that would leave next, for whoever may ask models
here. Everything else is `serving.app`'s.
"""

import asyncio
import queue
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import replace

import msgspec

from muster_agent.identity.renewing import IdentityStatus
from muster_agent.metrics.showing import Showing
from muster_agent.serving.answers import problem
from muster_agent.serving.app import App
from muster_agent.serving.extensions import ModelStatus
from muster_agent.serving.http import Request, Response, refusal
from muster_shared.errors import MusterError
from muster_shared.ids import ModelName
from muster_shared.messages import Twin

ANSWER_TIMEOUT_S = 5.0
PATH = "/v1/status"
METRICS = "/metrics"
WINDOWS = "/v1/metrics"


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
    identity: IdentityStatus | None = None
    """Who the device is for its broker; None: it has no certificate that it renews by itself."""


class StatusApp:
    """The handler that `http.serve` takes: `app`, with the device's own view added."""

    def __init__(
        self,
        app: App,
        twin: "Callable[[], Future[Twin]]",
        online: Callable[[], bool],
        version: str,
        identity: Callable[[], IdentityStatus | None] = lambda: None,
        windows: Callable[[], Showing] | None = None,
        may_see: Callable[[Request], object] = lambda request: None,
    ) -> None:
        """
        Args:
            windows: Returns what would be sent next. It may wait for the disk; any thread.
            may_see: Raises MusterError if the caller may not see that: it tells what models saw.
        """
        self._app = app
        self._identity = identity
        self._twin = twin
        self._online = online
        self._version = version
        self._windows = windows
        self._may_see = may_see

    def __call__(self, request: Request) -> Response | bytes | None:
        if request.path == METRICS:
            return self._metrics(request)
        if request.path == WINDOWS and request.method == b"GET" and self._windows is not None:
            return self._show(request, self._windows)
        if request.path != PATH or request.method != b"GET":
            return self._app(request)
        try:
            self._app.check_caller(request)
        except MusterError as error:
            return problem(error)
        request.answer_from(asyncio.ensure_future(self._status()))
        return None

    def _show(self, request: Request, windows: Callable[[], Showing]) -> Response | None:
        try:
            self._app.check_caller(request)
            self._may_see(request)
        except MusterError as error:
            return problem(error)

        async def answer() -> Response:
            return Response(200, [msgspec.json.encode(await asyncio.to_thread(windows))])

        request.answer_from(asyncio.ensure_future(answer()))
        return None

    async def _status(self) -> Response:
        try:
            twin = await asyncio.wait_for(asyncio.wrap_future(self._twin()), ANSWER_TIMEOUT_S)
        except (TimeoutError, queue.Full):
            return refusal(503, "the agent is busy; ask again")
        status = Status(
            agent=self._version,
            online=self._online(),
            device=twin,
            models=self._app.status(),
            identity=self._identity(),
        )
        return Response(200, [msgspec.json.encode(status)])

    def _metrics(self, request: Request) -> Response | bytes | None:
        page, identity = self._app(request), self._identity()
        if identity is None or not isinstance(page, Response) or page.status != 200:
            return page
        return replace(page, parts=[*page.parts, identity_page(identity).encode()])


def identity_page(identity: IdentityStatus) -> str:
    """Return the certificate's families in Prometheus' text format."""
    rows = (
        ("expires_timestamp_seconds", "When the certificate is over, Unix seconds", identity.expires_at),
        ("renewed_timestamp_seconds", "When the certificate was granted, Unix seconds", identity.renewed_at),
        ("renewal_failing", "1 while the last renewal failed or was refused", float(bool(identity.problem))),
    )
    lines = []
    for name, text, value in rows:
        name = f"muster_certificate_{name}"
        lines += [f"# HELP {name} {text}", f"# TYPE {name} gauge", f'{name}{{key="{identity.key}"}} {value:.14g}']
    return "\n".join(lines) + "\n"
