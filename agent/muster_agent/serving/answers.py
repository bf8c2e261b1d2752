"""From the outcome of a call to the bytes of an HTTP answer, and from an error to its status code.

The usual answer, all outputs binary, is a template that differs only in the id and the data. It decides nothing.
"""

import structlog

from muster_agent.core.breaker import BreakerOpen
from muster_agent.core.sequences import SequenceBusy, SequenceError, SequencesFull
from muster_agent.engines.port import EngineError, InputRefused
from muster_agent.pipeline.value import MediaRefused, PipelineError, PipelineMissing, RawRefused
from muster_agent.serving import v2
from muster_agent.serving.admission import CHALLENGE, BurstExceeded, RateExceeded, TokenRefused
from muster_agent.serving.call import Call, Raw
from muster_agent.serving.feedback import FeedbackInvalid, FeedbackUnmatched
from muster_agent.serving.http import INTERNAL_ERROR, Request, Response, refusal
from muster_agent.serving.rooms import GivenUp, QueueFull, RoomClosed, TooLate
from muster_agent.serving.service import (
    DIGEST_CHARACTERS,
    AgentBusy,
    Forbidden,
    ModelUnloaded,
    NoStandby,
    NoTrial,
    Service,
)
from muster_agent.serving.shared_memory import RegionError
from muster_agent.serving.table import ModelUnknown, Place
from muster_agent.serving.trial import TrialUnfit
from muster_agent.serving.v2 import Ask, Provenance, Regions
from muster_shared.errors import MusterError

OCTETS = b"application/octet-stream"

log = structlog.get_logger(__name__)


class HttpCall(Call):
    """A call that came over HTTP."""

    __slots__ = ("_ask", "_regions", "_request", "_service", "_whose")

    def __init__(
        self,
        request: Request,
        service: Service,
        regions: Regions,
        whose: Provenance,
        ask: Ask,
        tensors: tuple[Raw, ...],
    ) -> None:
        super().__init__(tensors, ask.shapes, ask.rows, request_id=ask.id)
        self._request = request
        self.origin = request.origin
        self._service = service
        self._regions = regions
        self._whose = whose
        self._ask = ask

    def settle(self) -> None:
        """See `Call.settle`."""
        if self.error is not None:
            self._request.answer(problem(self.error))
            return
        try:
            answer = self._plain() if not self.request_id else None
            self._request.answer(answer or self._other())
        except MusterError as error:
            self._request.answer(problem(error))
        except Exception:  # A bug of ours; without an answer the caller would wait for ever.
            log.exception("answer_failed")
            self._request.answer(refusal(500, INTERNAL_ERROR))

    def _plain(self) -> bytes | None:
        """Return the whole answer when all outputs are binary, None when some are not."""
        ask = self._ask
        request_id = self._service.id_of(self)
        form = v2.template(ask, self, self._whose, request_id)
        if form is None:
            return None
        if not form.head:
            sizes = form.header_bytes + form.data_bytes, form.header_bytes
            form.head = (
                b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: %d\r\n"
                b"Inference-Header-Content-Length: %d\r\n\r\n" % sizes
            )
        known = request_id.encode()
        wanted = ask.wanted
        if len(wanted) == 1:
            data = self.raw(wanted[0].index)
            if len(data) != form.data_bytes:
                return None  # The engine gave another shape than the manifest names; the slow way says which.
            return b"".join((form.head, form.before, known, form.between, known, form.after, data))
        datas = [self.raw(output.index) for output in wanted]
        if sum(len(data) for data in datas) != form.data_bytes:
            return None
        return b"".join((form.head, form.before, known, form.between, known, form.after, *datas))

    def _other(self) -> Response:
        parts, header_bytes = v2.encode(self._ask, self, self._whose, self._service.id_of(self), self._regions)
        if header_bytes is None:
            return Response(200, parts)
        return Response(200, parts, OCTETS, ((b"Inference-Header-Content-Length", b"%d" % header_bytes),))


def provenance(place: Place) -> Provenance:
    """Return what every answer of `place` says of its origin; made once."""
    known = place.provenance
    if known is None:
        served = place.served
        known = place.provenance = Provenance(
            model=place.model,
            version=place.version,
            parameters={
                "version": place.version,
                "digest": served.manifest_sha256[:DIGEST_CHARACTERS],
                "engine": served.session.achieved.engine,
                **({"variant": served.variant} if served.variant else {}),
            },
            outputs=place.outputs,
            labels=served.manifest.labels,
        )
    return known


def problem(error: MusterError) -> Response:
    """The one table from errors to status codes."""
    match error:
        case ModelUnknown() | FeedbackUnmatched() | NoTrial() | NoStandby():
            return refusal(404, str(error))
        case TokenRefused():
            return refusal(401, str(error), CHALLENGE)
        case Forbidden():
            return refusal(403, str(error))
        case QueueFull() | RateExceeded() | SequencesFull():
            return refusal(429, str(error), (b"Retry-After", b"%d" % error.retry_after_s))
        case BreakerOpen() | ModelUnloaded():
            return refusal(503, str(error), (b"Retry-After", b"%d" % error.retry_after_s))
        case SequenceBusy():
            return refusal(429, str(error), (b"Retry-After", b"1"))
        case AgentBusy() | TooLate() | GivenUp() | RoomClosed():
            return refusal(503, str(error))
        case v2.RequestInvalid() | InputRefused() | FeedbackInvalid() | RegionError() | SequenceError():
            return refusal(400, str(error))
        case BurstExceeded() | RawRefused() | TrialUnfit():
            return refusal(400, str(error))
        case PipelineMissing():
            return refusal(501, str(error))
        case MediaRefused():
            return refusal(415, str(error))
        case EngineError() | PipelineError():
            return refusal(500, str(error))
        case _:
            log.error("request_failed", kind=type(error).__name__, reason=str(error)[:500])
            return refusal(500, "internal error; see the agent's log")
