"""What each path answers: health, metadata, inference, feedback, status and metrics, as Open Inference Protocol (V2).

    GET  /v2  /v2/health/live  /v2/health/ready
    GET  /v2/models/{m}[/versions/{v}]  and  .../ready
    POST /v2/models/{m}[/versions/{v}]/infer
    POST /v1/models/{m}/feedback        {"id": request id, "label": "7" | 7 | [...] for a batch}
    GET  /v1/status  /metrics

Bodies are `v2`'s, execution is `rooms`', bytes are `http`'s. Errors are `{"error": ...}` with Triton's codes: 400 the
caller is wrong, 404 unknown, 429 the queue is full, 500 the engine failed, 503 not ready or too late.
"""

import asyncio
import itertools
import secrets
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

import msgspec
import structlog

from muster_agent.engines.port import Achieved, Array, EngineError, InputRefused
from muster_agent.serving import prometheus, v2
from muster_agent.serving.feedback import FeedbackInvalid, FeedbackRing, FeedbackUnmatched
from muster_agent.serving.http import Request, Response, refusal
from muster_agent.serving.rooms import QueueFull
from muster_agent.serving.stats import Snapshot
from muster_agent.serving.table import ModelUnknown, Place, ServingTable
from muster_shared.bundle import TensorSpec
from muster_shared.errors import MusterError
from muster_shared.ids import ModelName

log = structlog.get_logger(__name__)

DIGEST_CHARACTERS = 12
ANSWER_TIMEOUT_S = 30.0
OCTETS = b"application/octet-stream"
HEADER_LENGTH = b"inference-header-content-length"
_PLATFORMS = {"onnxruntime": "onnxruntime_onnx", "openvino": "openvino"}

_encode = msgspec.json.Encoder().encode


class ModelStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One model in `/v1/status`."""

    version: str
    release: int
    manifest_sha256: str
    slot: str
    engine: Achieved
    warm_ms_p95: float
    queued: int
    counters: Snapshot
    latency_ms_p50: float | None
    latency_ms_p95: float | None


class _Feedback(msgspec.Struct, forbid_unknown_fields=True):
    id: str
    label: str | int | list[str | int]


_feedback = msgspec.json.Decoder(_Feedback)


@dataclass(frozen=True, eq=False)
class _Answer:
    """What one inference came to."""

    response: Response
    request_id: str
    rows: int
    first: Array
    """The first output of the manifest."""
    engine_s: float


class App:
    """The handler that `http.serve` takes. Everything but the engines' work happens on the loop that calls it."""

    def __init__(
        self,
        table: ServingTable,
        *,
        agent_version: str,
        ready: Callable[[], bool] | None = None,
        timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> None:
        """
        Args:
            ready: Whether every model that this device should serve is served; None: whether any is.
            timeout_s: An inference that has not ended by then is answered 503, and counts as failed.
        """
        self._table = table
        self._agent_version = agent_version
        self._ready = ready or (lambda: bool(table.places()))
        self._timeout_s = timeout_s
        self._feedback = FeedbackRing()
        # Ids must not repeat across restarts, or late feedback would find the wrong answer.
        self._id_prefix = secrets.token_hex(6)
        self._id_numbers = itertools.count(1)

    def __call__(self, request: Request) -> "Response | asyncio.Future[Response]":
        try:
            return self._route(request)
        except MusterError as error:
            return _problem(error)

    def _route(self, request: Request) -> "Response | asyncio.Future[Response]":
        match request.path.strip("/").split("/"):
            case ["v2", "models", model, "infer"]:
                return _only(b"POST", request) or self._infer(request, model, None)
            case ["v2", "models", model, "versions", version, "infer"]:
                return _only(b"POST", request) or self._infer(request, model, version)
            case ["v1", "models", model, "feedback"]:
                return _only(b"POST", request) or self._label(request, model)
            case ["v2"]:
                return _only(b"GET", request) or self._server()
            case ["v2", "health", "live"]:
                return _only(b"GET", request) or _json({"live": True})
            case ["v2", "health", "ready"]:
                ready = self._ready()
                return _only(b"GET", request) or _json({"ready": ready}, 200 if ready else 503)
            case ["v2", "models", model]:
                return _only(b"GET", request) or self._model(model, None)
            case ["v2", "models", model, "versions", version]:
                return _only(b"GET", request) or self._model(model, version)
            case ["v2", "models", model, "ready"]:
                return _only(b"GET", request) or self._model_ready(model, None)
            case ["v2", "models", model, "versions", version, "ready"]:
                return _only(b"GET", request) or self._model_ready(model, version)
            case ["v1", "status"]:
                return _only(b"GET", request) or _json({"agent": self._agent_version, "models": self.status()})
            case ["metrics"]:
                page = prometheus.render(self._table.places()).encode()
                return _only(b"GET", request) or Response(200, [page], prometheus.CONTENT_TYPE)
            case _:
                return refusal(404, f"there is nothing at {request.path[:200]}")

    def status(self) -> Mapping[ModelName, ModelStatus]:
        """Return what serves now, and what it has done, by model."""
        return {model: _status(place) for model, place in sorted(self._table.places().items())}

    def _server(self) -> Response:
        return _json({"name": "muster-agent", "version": self._agent_version, "extensions": v2.EXTENSIONS})

    def _model(self, model: str, version: str | None) -> Response:
        served = self._table.served(model, version)
        return _json(
            {
                "name": served.manifest.model,
                "versions": [served.manifest.version],
                "platform": _PLATFORMS[served.session.achieved.engine],
                "inputs": [_tensor(spec) for spec in served.manifest.inputs],
                "outputs": [_tensor(spec) for spec in served.manifest.outputs],
            }
        )

    def _model_ready(self, model: str, version: str | None) -> Response:
        served = self._table.served(model, version)  # A release is in the table only when it is warm.
        return _json({"name": served.manifest.model, "ready": True})

    def _label(self, request: Request, model: str) -> Response:
        try:
            feedback = _feedback.decode(request.body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise v2.RequestInvalid(f"the feedback does not parse: {error}") from error
        labels = feedback.label if isinstance(feedback.label, list) else [feedback.label]
        right = self._feedback.label(model, feedback.id, labels)
        return _json({"id": feedback.id, "right": right[0] if feedback.label is not labels else right})

    def _infer(self, request: Request, model: str, version: str | None) -> "Response | asyncio.Future[Response]":
        start = time.perf_counter()
        header_bytes = _header_bytes(request)
        place = self._table.enter(model, version)
        work = partial(self._work, place, request.body, header_bytes)
        if place.room.inline(len(request.body)):
            try:
                return self._counted(place, start, work())
            except MusterError as error:
                return self._uncounted(place, error)
            except Exception:  # A bug of ours; the server logs it and answers 500.
                place.served.stats.failed()
                raise
            finally:
                self._table.leave(place)
        try:
            running = place.room.submit(work)
        except QueueFull as error:
            self._table.leave(place)
            place.served.stats.rejected()
            return refusal(429, str(error), (b"Retry-After", b"%d" % error.retry_after_s))
        return self._wait(place, start, running)

    def _wait(self, place: Place, start: float, running: "Future[_Answer]") -> "asyncio.Future[Response]":
        """Return the future response of queued work. The place is left when the work has really ended, not before."""
        loop = asyncio.get_running_loop()
        response: asyncio.Future[Response] = loop.create_future()

        def ended(_: object) -> None:
            place.room.done()
            self._table.leave(place)
            timer.cancel()
            if running.cancelled() or response.done():
                if response.cancelled():
                    place.served.stats.cancelled()
                return
            error = running.exception()
            if error is None:
                response.set_result(self._counted(place, start, running.result()))
            elif isinstance(error, MusterError):
                response.set_result(self._uncounted(place, error))
            else:
                place.served.stats.failed()
                response.set_exception(error)

        def late() -> None:
            if not response.done():
                place.served.stats.failed()
                response.set_result(refusal(503, f"no answer within {self._timeout_s:g} s; the device is overloaded"))
                running.cancel()

        timer = loop.call_later(self._timeout_s, late)
        # A caller that goes away cancels the response: work that has not begun is spared.
        response.add_done_callback(lambda done: running.cancel() if done.cancelled() else None)
        running.add_done_callback(lambda done: loop.call_soon_threadsafe(ended, done))
        return response

    def _work(self, place: Place, body: bytes, header_bytes: int | None) -> _Answer:
        """Decode, run and encode one request: on the loop or in the worker thread."""
        served = place.served
        manifest = served.manifest
        request = v2.decode(body, header_bytes, manifest.inputs, manifest.outputs)
        start = time.perf_counter()
        results = served.session.run(request.inputs)
        engine_s = time.perf_counter() - start
        request_id = request.id or f"{self._id_prefix}-{next(self._id_numbers)}"
        parts, header_length = v2.encode(
            request.outputs,
            results,
            place.datatypes,
            model=manifest.model,
            version=manifest.version,
            request_id=request_id,
            parameters={
                "version": manifest.version,
                "digest": served.manifest_sha256[:DIGEST_CHARACTERS],
                "engine": served.session.achieved.engine,
                "request_id": request_id,
            },
        )
        if header_length is None:
            response = Response(200, parts)
        else:
            response = Response(200, parts, OCTETS, ((b"Inference-Header-Content-Length", b"%d" % header_length),))
        return _Answer(response, request_id, request.rows, results[manifest.outputs[0].name], engine_s)

    def _counted(self, place: Place, start: float, answer: _Answer) -> Response:
        served = place.served
        served.stats.answered(rows=answer.rows, engine_s=answer.engine_s, duration_s=time.perf_counter() - start)
        manifest = served.manifest
        self._feedback.remember(manifest.model, answer.request_id, answer.first, manifest.labels, served.stats)
        return answer.response

    def _uncounted(self, place: Place, error: MusterError) -> Response:
        match error:
            case v2.RequestInvalid() | InputRefused():
                place.served.stats.refused()
            case _:
                place.served.stats.failed()
                log.warning("inference_failed", model=place.served.manifest.model, reason=str(error)[:500])
        return _problem(error)


def _problem(error: MusterError) -> Response:
    """The one table from errors to status codes."""
    match error:
        case ModelUnknown() | FeedbackUnmatched():
            return refusal(404, str(error))
        case v2.RequestInvalid() | InputRefused() | FeedbackInvalid():
            return refusal(400, str(error))
        case EngineError():
            return refusal(500, str(error))
        case _:
            return refusal(500, "internal error; see the agent's log")


def _only(method: bytes, request: Request) -> Response | None:
    """Return the refusal of another method, None when it is this one."""
    if request.method == method:
        return None
    return refusal(405, f"{request.path[:200]} takes {method.decode()} only", (b"Allow", method))


def _header_bytes(request: Request) -> int | None:
    if request.headers.get(b"content-encoding", b"identity") != b"identity":
        raise v2.RequestInvalid("compressed bodies are not offered: the loopback is faster than any compressor")
    text = request.headers.get(HEADER_LENGTH)
    if text is None:
        return None
    if not text.isdigit() or len(text) > 19:
        raise v2.RequestInvalid(f"Inference-Header-Content-Length {text[:32]!r} is not a length")
    return int(text)


def _status(place: Place) -> ModelStatus:
    served, counters = place.served, place.served.stats.snapshot()
    return ModelStatus(
        version=served.manifest.version,
        release=served.manifest.release,
        manifest_sha256=served.manifest_sha256,
        slot=served.slot,
        engine=served.session.achieved,
        warm_ms_p95=served.latency_ms,
        queued=place.room.queued,
        counters=counters,
        latency_ms_p50=counters.p50_ms,
        latency_ms_p95=counters.p95_ms,
    )


def _tensor(spec: TensorSpec) -> dict[str, object]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": spec.shape}


def _json(body: object, status: int = 200) -> Response:
    return Response(status, [_encode(body)])
