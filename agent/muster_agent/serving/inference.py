"""Inference over HTTP for one head: whatever the head decides is decided once, for all requests that begin with it.

    InferRoute     V2 tensors in and out
    PredictRoute   a file in, what it shows out: prepared and read by the release's own signed pipeline

They decode and encode; `service` decides who is served. When the queue is full, a configured upstream may take over.
"""

import asyncio
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from muster_agent.serving import v2
from muster_agent.serving.admission import Admission, bearer
from muster_agent.serving.answers import HttpCall, problem, provenance
from muster_agent.serving.call import Priority
from muster_agent.serving.http import Request, Response
from muster_agent.serving.predict import encode_answer
from muster_agent.serving.rooms import QueueFull
from muster_agent.serving.service import AwaitedCall, Caller, Service
from muster_agent.serving.shared_memory import Regions
from muster_agent.serving.spill import Spill, SpillFailed
from muster_agent.serving.table import Place
from muster_shared.errors import MusterError

HEADER_LENGTH = b"inference-header-content-length"
UNDERSTOOD_MAX = 256  # Request headers remembered for each release,
UNDERSTOOD_BYTES_MAX = 4096  # of at most so many bytes.
UNPACKED_BYTES_MAX = 64 * 1024 * 1024
PREDICTIONS_MAX = 64  # Files that are being prepared or read at the same time, or wait for it.
KEY_CHARACTERS_MAX = 256
TRACEPARENT_CHARACTERS = 55
_WINDOW_BITS = {b"gzip": 16 + zlib.MAX_WBITS, b"deflate": zlib.MAX_WBITS}


class Asked:
    """Who asks for what, as the head of a request says."""

    __slots__ = ("caller", "key", "model", "priority", "traceparent", "version", "window_bits")

    def __init__(self, request: Request, admission: Admission, model: str, version: str | None) -> None:
        """Raises RequestInvalid, TokenRefused."""
        headers = request.headers
        encoding = headers.get(b"content-encoding", b"identity").lower()
        if encoding != b"identity" and encoding not in _WINDOW_BITS:
            raise v2.RequestInvalid(f"content-encoding {encoding[:32]!r} is not gzip, deflate or identity")
        priority = headers.get(b"muster-priority", b"").decode("latin-1").upper()
        if priority and priority not in Priority.__members__:
            raise v2.RequestInvalid(f"Muster-Priority {priority[:32]!r} is not now, soon or later")
        self.model = model
        self.version = version
        self.caller: Caller = admission.caller(bearer(headers.get(b"authorization")), request.peer)
        self.priority: Priority | None = Priority[priority] if priority else None
        self.key = headers.get(b"muster-request-key", b"").decode("latin-1")[:KEY_CHARACTERS_MAX]
        self.traceparent = headers.get(b"traceparent", b"").decode("latin-1")[:TRACEPARENT_CHARACTERS]
        self.window_bits = _WINDOW_BITS.get(encoding)

    def body(self, request: Request) -> bytes:
        """Return the body, unpacked. Raises RequestInvalid."""
        return request.body if self.window_bits is None else _unpacked(request.body, self.window_bits)


class InferRoute:
    """Inference on tensors."""

    __slots__ = ("_asked", "_header_bytes", "_regions", "_service", "_spill")

    def __init__(self, service: Service, regions: Regions, asked: Asked, request: Request, spill: Spill | None) -> None:
        """Raises RequestInvalid."""
        self._service = service
        self._regions = regions
        self._asked = asked
        self._spill = spill
        self._header_bytes = _length(request.headers.get(HEADER_LENGTH))

    def __call__(self, request: Request) -> Response | bytes | None:
        asked = self._asked
        body = asked.body(request)
        place = self._service.enter(asked.model, asked.version, asked.key)
        try:
            ask, offset = self._understand(place, body)
            call = HttpCall(
                request, self._service, self._regions, provenance(place), ask,
                v2.tensors(ask, body, offset, place.inputs, self._regions),
            )  # fmt: skip
        except BaseException:
            place.served.stats.refused()
            place.leave()
            raise
        wished = asked.priority if ask.priority is None else ask.priority
        call.priority = place.priority if wished is None else wished
        call.deadline_ns = ask.timeout_us * 1000
        call.sequence = ask.sequence
        call.traceparent = asked.traceparent
        try:
            self._service.submit(place, call, asked.caller)
        except QueueFull as full:
            if self._spill is None or place.sequences is not None:
                raise
            request.answer_from(asyncio.ensure_future(self._spilled(self._spill, request, body, full)))
            return None
        if not call.settled:
            request.on_gone(call.cancel)
        return None

    async def _spilled(self, spill: Spill, request: Request, body: bytes, full: QueueFull) -> Response:
        """Return what the upstream answers, else what would have been answered without it."""
        try:
            answer = await spill.forward(self._asked.model, self._asked.version, body, request.headers)
        except SpillFailed:
            return problem(full)
        return Response(answer.status, [answer.body], answer.content_type, answer.headers)

    def _understand(self, place: Place, body: bytes) -> tuple[v2.Ask, int]:
        """Return what the body asks, and where its binary tensors begin."""
        size = self._header_bytes
        if size is None:
            return v2.understand(body, place.inputs, place.outputs), len(body)
        if size == 0:
            return v2.understand_raw(len(body), place.inputs, place.outputs), 0
        if size > len(body):
            raise v2.RequestInvalid(f"the JSON header should have {size} bytes, but the body has {len(body)}")
        header = body[:size]
        ask = place.understood.get(header)
        if ask is None:
            ask = v2.understand(header, place.inputs, place.outputs)
            if ask.reusable and size <= UNDERSTOOD_BYTES_MAX and not ask.id:
                if len(place.understood) >= UNDERSTOOD_MAX:
                    place.understood.clear()
                place.understood[header] = ask
        return ask, size


class PredictRoute:
    """Predictions on files."""

    __slots__ = ("_asked", "_content_type", "_pool", "_service", "_under_way")

    def __init__(
        self, service: Service, asked: Asked, request: Request, pool: ThreadPoolExecutor, under_way: set[object]
    ) -> None:
        """
        Args:
            under_way: Predictions of all heads.
        """
        self._service = service
        self._asked = asked
        self._pool = pool
        self._under_way = under_way
        self._content_type = request.headers.get(b"content-type", b"").decode("latin-1") or None

    def __call__(self, request: Request) -> None:
        if len(self._under_way) >= PREDICTIONS_MAX:
            raise QueueFull(len(self._under_way), 1)
        task = asyncio.ensure_future(self._answer(self._asked.body(request)))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        request.answer_from(task)

    async def _answer(self, raw: bytes) -> Response:
        try:
            return Response(200, [await self._predict(raw)])
        except MusterError as error:
            return problem(error)

    async def _predict(self, raw: bytes) -> bytes:
        asked, service = self._asked, self._service
        loop = asyncio.get_running_loop()
        place = service.enter(asked.model, asked.version, asked.key)
        try:
            of_release = place.served.predictor
            if of_release is None:
                raise v2.RequestInvalid(
                    f"{place.model} {place.version} has no pipeline: send tensors to /v2/models/{place.model}/infer"
                )
            predictor = await loop.run_in_executor(self._pool, of_release.get)
            prepared = await loop.run_in_executor(self._pool, predictor.prepare, raw, self._content_type)
            call = AwaitedCall(*predictor.call_arguments(prepared))
        except BaseException:
            place.served.stats.refused()
            place.leave()
            raise
        call.priority = place.priority if asked.priority is None else asked.priority
        call.traceparent = asked.traceparent
        service.submit(place, call, asked.caller)
        try:
            await call.outcome
        except asyncio.CancelledError:
            call.cancel()
            raise
        outputs = [call.output(index) for index in range(len(place.outputs))]
        found = await loop.run_in_executor(self._pool, predictor.predictions, outputs, prepared.context)
        request_id = service.id_of(call)
        whose = provenance(place)
        parameters: Mapping[str, object] = {**whose.parameters, "request_id": request_id}
        return encode_answer(place.model, place.version, request_id, found, parameters)


def _length(text: bytes | None) -> int | None:
    if text is None:
        return None
    if not text.isdigit() or len(text) > 19:
        raise v2.RequestInvalid(f"Inference-Header-Content-Length {text[:32]!r} is not a length")
    return int(text)


def _unpacked(body: bytes, window_bits: int) -> bytes:
    stream = zlib.decompressobj(window_bits)
    try:
        unpacked = stream.decompress(body, UNPACKED_BYTES_MAX)
    except zlib.error as error:
        raise v2.RequestInvalid(f"the body does not unpack: {error}") from error
    if stream.unused_data:
        raise v2.RequestInvalid("the body has more after its compressed data")
    if not stream.eof:
        raise v2.RequestInvalid(f"the body is cut short, or unpacks to more than {UNPACKED_BYTES_MAX} bytes")
    return unpacked
