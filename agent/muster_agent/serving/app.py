"""What each path answers over HTTP: the Open Inference Protocol (V2) with Triton's extensions, and ours under `/v1`.

    POST /v2/models/{m}[/versions/{v}]/infer                      GET .../{m}[/versions/{v}][/ready|/config|/stats]
    GET  /v2  /v2/health/live|ready  /v2/models/stats             POST /v2/repository/index|models/{m}/load|unload
    /v2/systemsharedmemory...                                     POST /v1/models/{m}/predict|feedback|trial
    GET  /v1/status  /metrics

Bodies are `v2`'s, execution is `service`'s, bytes are `http`'s. Errors are `{"error": ...}` with Triton's codes: 400
the caller is wrong, 401 and 403 who it is, 404 unknown, 429 too much, 500 the engine failed, 503 not ready or too late.
"""

import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Literal, Protocol

import msgspec

from muster_agent.core.split import Mode
from muster_agent.serving import extensions, prometheus, v2
from muster_agent.serving.admission import Admission, bearer
from muster_agent.serving.answers import problem
from muster_agent.serving.extensions import ModelStatus
from muster_agent.serving.http import Request, Response, refusal
from muster_agent.serving.inference import Asked, InferRoute, PredictRoute
from muster_agent.serving.service import Forbidden, NoTrial, Service
from muster_agent.serving.shared_memory import Regions
from muster_agent.serving.spill import Spill
from muster_agent.serving.trial import TrialSnapshot
from muster_shared.errors import MusterError
from muster_shared.ids import ModelName
from muster_shared.undecodable import UNDECODABLE, reason

_encode = msgspec.json.Encoder().encode


class Repository(Protocol):
    """Loading and unloading on request. Models come from signed releases only; nothing else can be loaded."""

    def index(self) -> list[dict[str, str]]:
        """Return name, version, state and reason of every release on this device."""
        ...

    def load(self, model: str, done: Callable[[MusterError | None], None]) -> None: ...

    def unload(self, model: str, done: Callable[[MusterError | None], None]) -> None: ...


class Trials(Protocol):
    """The release that is not serving, tried beside the one that is. `done` is called on the loop, once."""

    def begin(self, model: str, mode: Mode, share: float, done: Callable[[MusterError | None], None]) -> None: ...

    def end(self, model: str, done: Callable[[MusterError | None], None]) -> None: ...


class _Wish(msgspec.Struct, forbid_unknown_fields=True):
    mode: Literal["shadow", "canary"]
    share: Annotated[float, msgspec.Meta(ge=0, le=1)] = 1.0


_wish = msgspec.json.Decoder(_Wish)


class _Feedback(msgspec.Struct, forbid_unknown_fields=True):
    id: str
    label: str | int | list[str | int]


_feedback = msgspec.json.Decoder(_Feedback)
Route = Callable[[Request], Response | bytes | None]


class App:
    """The handler that `http.serve` takes. Everything but the engines' work happens on the loop that calls it."""

    def __init__(
        self,
        service: Service,
        *,
        agent_version: str,
        admission: Admission,
        regions: Regions,
        ready: Callable[[], bool] | None = None,
        repository: Repository | None = None,
        trials: Trials | None = None,
        spill: Spill | None = None,
        is_local: bool = True,
    ) -> None:
        """
        Args:
            ready: Whether every model that this device should serve is served; None: whether any is.
            repository: None: nothing can be loaded or unloaded by callers.
            trials: None: there is no second release to try.
            spill: Takes what exceeds the queues; None: nothing does.
            is_local: Whether only this host may ask; else requests may name the agent as they like.
        """
        table = service.table
        self._service = service
        self._table = table
        self._agent_version = agent_version
        self._admission = admission
        self._regions = regions
        self._ready = ready or (lambda: bool(table.places()))
        self._repository = repository
        self._trials = trials
        self._spill = spill
        self._is_local = is_local
        self._pool = ThreadPoolExecutor(max_workers=2, thread_name_prefix="predict")
        self._predicting: set[object] = set()

    def __call__(self, request: Request) -> Response | bytes | None:
        try:
            route = request.head.memo
            if route is None:
                route = request.head.memo = self._route(request)
            return route(request)  # type: ignore[operator, no-any-return]  # Only routes are put there.
        except MusterError as error:
            return problem(error)

    @property
    def service(self) -> Service:
        return self._service

    def status(self) -> Mapping[ModelName, ModelStatus]:
        """Return what serves now, and what it has done, by model."""
        return {model: extensions.status(place) for model, place in sorted(self._table.places().items())}

    # -- routes: what a head asks, found once for all requests that begin with it -------------------------------------

    def check_caller(self, request: Request) -> None:
        """Raise Forbidden where a web page asks: for whoever answers paths of its own beside these."""
        if b"origin" in request.headers:  # Else any web page could ask this device's models, or feed them labels.
            raise Forbidden("requests of web pages are refused; ask through a program on this device")
        if self._is_local and request.peer != "unix" and not _names_this_host(request.headers.get(b"host", b"")):
            # A name that somebody made point here is how a web page would read what has no Origin.
            raise Forbidden("this agent answers to localhost and to addresses, not to other names")

    def _route(self, request: Request) -> Route:
        self.check_caller(request)
        method, path = request.method, request.path
        if method != b"GET":  # Whoever may not ask a model may not unload, judge or try one either.
            self._admission.caller(bearer(request.headers.get(b"authorization")), request.peer)
        match path.strip("/").split("/"):
            case ["v2", "models", model, "infer"]:
                return _only(b"POST", request, self._infer_route(request, model, None))
            case ["v2", "models", model, "versions", version, "infer"]:
                return _only(b"POST", request, self._infer_route(request, model, version))
            case ["v1", "models", model, "predict"]:
                return _only(b"POST", request, self._predict_route(request, model, None))
            case ["v1", "models", model, "versions", version, "predict"]:
                return _only(b"POST", request, self._predict_route(request, model, version))
            case ["v1", "models", model, "trial"]:
                return self._trial_route(path, model, method)
            case ["v1", "models", model, "feedback"]:
                return _only(b"POST", request, lambda request: self._label(request, model))
            case ["v2"]:
                return _only(b"GET", request, lambda _: _json(extensions.server(self._agent_version)))
            case ["v2", "health", "live"]:
                return _only(b"GET", request, lambda _: _json({"live": True}))
            case ["v2", "health", "ready"]:
                return _only(b"GET", request, lambda _: self._is_ready())
            case ["v2", "models", "stats"]:
                return _only(b"GET", request, lambda _: _json(extensions.statistics(self._table.places().values())))
            case ["v2", "models", model, *rest]:
                return _only(b"GET", request, self._model_route(path, model, rest))
            case ["v2", "repository", *rest]:
                return _only(b"POST", request, self._repository_route(path, rest))
            case ["v2", "systemsharedmemory" | "cudasharedmemory" as kind, *rest]:
                return extensions.shared_memory_route(self._regions, kind, rest, method) or _nothing(path)
            case ["v1", "status"]:
                return _only(b"GET", request, lambda _: _json({"agent": self._agent_version, "models": self.status()}))
            case ["metrics"]:
                return _only(b"GET", request, self._metrics)
            case _:
                return _nothing(path)

    def _infer_route(self, request: Request, model: str, version: str | None) -> Route:
        asked = Asked(request, self._admission, model, version)
        return InferRoute(self._service, self._regions, asked, request, self._spill)

    def _predict_route(self, request: Request, model: str, version: str | None) -> Route:
        asked = Asked(request, self._admission, model, version)
        return PredictRoute(self._service, asked, request, self._pool, self._predicting)

    def _trial_route(self, path: str, model: str, method: bytes) -> Route:
        """Read, begin or end the trial of a candidate beside the release that serves."""
        if method == b"GET":
            return lambda _: _json(self._trial(model))
        trials = self._trials
        if trials is None:
            raise v2.RequestInvalid("this agent has no second release to try")
        match method:
            case b"DELETE":
                return lambda request: trials.end(model, lambda error: _done(request, error))
            case b"POST":

                def begin(request: Request) -> None:
                    try:
                        wish = _wish.decode(request.body)
                    except UNDECODABLE as error:
                        raise v2.RequestInvalid(f"the trial does not parse: {reason(error)}") from error
                    trials.begin(model, Mode(wish.mode), wish.share, lambda error: _done(request, error))

                return begin
        return lambda _: refusal(405, f"{path[:200]} takes GET, POST and DELETE", (b"Allow", b"GET, POST, DELETE"))

    def _trial(self, model: str) -> TrialSnapshot:
        beside = self._table.trials.get(model)
        if beside is None:
            raise NoTrial(model)
        return beside.trial.snapshot()

    def _model_route(self, path: str, model: str, rest: list[str]) -> Route:
        version: str | None = None
        if rest[:1] == ["versions"] and len(rest) > 1:
            version, rest = rest[1], rest[2:]
        match rest:
            case []:
                return lambda _: _json(extensions.metadata(self._table.place(model, version)))
            case ["ready"]:
                # A release is in the table only when it is warm.
                return lambda _: _json({"name": self._table.served(model, version).manifest.model, "ready": True})
            case ["config"]:
                return lambda _: _json(extensions.config(self._table.served(model, version)))
            case ["stats"]:
                return lambda _: _json(extensions.statistics([self._table.place(model, version)]))
            case _:
                return _nothing(path)

    def _repository_route(self, path: str, rest: list[str]) -> Route:
        repository = self._repository
        match rest:
            case ["index"]:
                return lambda _: _json(extensions.index(self._table) if repository is None else repository.index())
            case ["models", model, "load" | "unload" as act]:
                if repository is None:
                    raise v2.RequestInvalid("this agent loads and unloads nothing on request")
                change = repository.load if act == "load" else repository.unload

                return lambda request: change(model, lambda error: _done(request, error))
            case _:
                return _nothing(path)

    # -- answers ------------------------------------------------------------------------------------------------------

    def _is_ready(self) -> Response:
        ready = self._ready()
        return _json({"ready": ready}, 200 if ready else 503)

    def _metrics(self, request: Request) -> Response:
        open_metrics = prometheus.wants_open_metrics(request.headers.get(b"accept", b""))
        page = prometheus.render(
            self._table.places(),
            self._table.trials,
            self._spill,
            open_metrics=open_metrics,
            exemplars=self._service.exemplars(),
        )
        return Response(200, [page.encode()], prometheus.OPEN_METRICS if open_metrics else prometheus.CONTENT_TYPE)

    def _label(self, request: Request, model: str) -> Response:
        try:
            feedback = _feedback.decode(request.body)
        except UNDECODABLE as error:
            raise v2.RequestInvalid(f"the feedback does not parse: {reason(error)}") from error
        labels = feedback.label if isinstance(feedback.label, list) else [feedback.label]
        right = self._service.label(model, feedback.id, labels)
        return _json({"id": feedback.id, "right": right[0] if feedback.label is not labels else right})


def _done(request: Request, error: MusterError | None) -> None:
    request.answer(Response(200, [b"{}"]) if error is None else problem(error))


def _names_this_host(host: bytes) -> bool:
    """Whether a Host header is empty, an address or localhost: nothing that a name server could be made to say."""
    name = host.rpartition(b":")[0] if re.search(rb":\d+$", host) else host
    return re.fullmatch(rb"(localhost|[\d.]+|\[[\da-fA-F:.]+\])?", name.lower()) is not None


def _nothing(path: str) -> Route:
    return lambda _: refusal(404, f"there is nothing at {path[:200]}")


def _only(method: bytes, request: Request, route: Route) -> Route:
    """Return `route`, or the refusal of another method."""
    if request.method == method:
        return route
    return lambda request: refusal(405, f"{request.path[:200]} takes {method.decode()} only", (b"Allow", method))


def _json(body: object, status: int = 200) -> Response:
    return Response(status, [_encode(body)])
