"""From an error to the status of a gRPC answer: the one table, as `serving.answers.problem` is HTTP's."""

from typing import NamedTuple

import grpc
import structlog

from muster_agent.core.breaker import BreakerOpen
from muster_agent.core.sequences import SequenceBusy, SequenceError, SequencesFull
from muster_agent.engines.port import EngineError, InputRefused
from muster_agent.serving.admission import BurstExceeded, RateExceeded, TokenRefused
from muster_agent.serving.rooms import GivenUp, QueueFull, RoomClosed, TooLate
from muster_agent.serving.service import Forbidden
from muster_agent.serving.shared_memory import RegionError, RegionExists, RegionUnknown
from muster_agent.serving.table import ModelUnknown
from muster_agent.serving.v2 import RequestInvalid
from muster_shared.errors import MusterError

DETAIL_CHARACTERS_MAX = 1000  # They travel in a header, whose size clients limit.

log = structlog.get_logger(__name__)


class Unsupported(MusterError):
    """A part of the protocol that this agent has not."""


class Status(NamedTuple):
    """What a refused procedure answers."""

    code: grpc.StatusCode
    detail: str
    retry_after_s: int | None = None
    """Sent as the trailing metadatum `retry-after`."""


def status(error: MusterError) -> Status:
    """Return what tells the caller of `error`."""
    code, retry_after_s = _judged(error)
    if code is grpc.StatusCode.INTERNAL and not isinstance(error, EngineError):
        log.error("request_failed", kind=type(error).__name__, reason=str(error)[:500])
        return Status(code, "internal error; see the agent's log")
    return Status(code, str(error)[:DETAIL_CHARACTERS_MAX], retry_after_s)


def _judged(error: MusterError) -> tuple[grpc.StatusCode, int | None]:
    codes = grpc.StatusCode
    match error:
        case ModelUnknown() | RegionUnknown():
            return codes.NOT_FOUND, None
        case RegionExists():
            return codes.ALREADY_EXISTS, None
        case TokenRefused():
            return codes.UNAUTHENTICATED, None
        case Forbidden():
            return codes.PERMISSION_DENIED, None
        case QueueFull() | RateExceeded() | SequencesFull():
            return codes.RESOURCE_EXHAUSTED, error.retry_after_s
        case SequenceBusy():
            return codes.RESOURCE_EXHAUSTED, 1
        case BreakerOpen():
            return codes.UNAVAILABLE, error.retry_after_s
        case RoomClosed():
            return codes.UNAVAILABLE, None
        case TooLate():
            return codes.DEADLINE_EXCEEDED, None
        case GivenUp():
            return codes.CANCELLED, None
        case Unsupported():
            return codes.UNIMPLEMENTED, None
        case RequestInvalid() | InputRefused() | RegionError() | SequenceError() | BurstExceeded():
            return codes.INVALID_ARGUMENT, None
        case _:
            return codes.INTERNAL, None
