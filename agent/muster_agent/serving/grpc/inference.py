"""Inference over gRPC, one call or a stream of them: from the bytes of a request to those of its answer.

    begin(raw, asker) ──> Begun ──> answer()        `begin` submits, so calls of a stream run together
          └── raises: refused                       and are answered in their order

It knows no server: `server` brings the bytes and takes them. Who is served is `service`'s to decide.
"""

import asyncio
from typing import NamedTuple
from weakref import WeakKeyDictionary

from muster_agent.serving import v2
from muster_agent.serving.admission import Admission, bearer
from muster_agent.serving.answers import provenance
from muster_agent.serving.call import Priority
from muster_agent.serving.grpc import codec
from muster_agent.serving.grpc.codec import Known
from muster_agent.serving.grpc.messages import Message
from muster_agent.serving.service import AwaitedCall, Caller, Service
from muster_agent.serving.shared_memory import Regions
from muster_agent.serving.table import Place
from muster_agent.serving.v2 import Provenance, RequestInvalid


class Asker(NamedTuple):
    """Who asks, and for how long: what the headers of an rpc say."""

    caller: Caller
    priority: Priority | None
    """Of requests that name none."""
    key: str
    """What a canary's share sticks to, for requests that name none."""


class Inference:
    """Lives on the serving loop."""

    def __init__(self, service: Service, admission: Admission, regions: Regions) -> None:
        self._service = service
        self._admission = admission
        self._regions = regions
        self._known: WeakKeyDictionary[Place, dict[bytes, Known]] = WeakKeyDictionary()

    def asker(self, authorization: bytes | None, priority: str, key: str, peer: str) -> Asker:
        """Return who asks.

        Args:
            authorization, priority, key: The headers `authorization`, `muster-priority` and `muster-request-key`.
            peer: The caller's address without its port, or `unix`.
        Raises:
            TokenRefused, RequestInvalid.
        """
        wished = priority.upper()
        if wished and wished not in Priority.__members__:
            raise RequestInvalid(f"muster-priority {priority[:32]!r} is not now, soon or later")
        caller = self._admission.caller(bearer(authorization), peer)
        return Asker(caller, Priority[wished] if wished else None, key[: v2.ID_CHARACTERS_MAX])

    def begin(self, request: Message, asker: Asker, remaining_s: float | None) -> "Begun":
        """Submit the ModelInferRequest, from which the data are taken out.

        Args:
            remaining_s: Until the caller's deadline; None: it has none.
        Raises:
            MusterError: it was refused, and nothing was queued.
        """
        request_id = request.id
        key = codec.parameters(request.parameters).get("request_key", asker.key) if request.parameters else asker.key
        place = self._service.enter(request.model_name, request.model_version or None, str(key))
        try:
            known = self._known.get(place)
            if known is None:
                known = self._known[place] = {}
            what, blobs = codec.read(request, place.inputs, place.outputs, known)
            ask = what.ask
            tensors = codec.tensors(ask, blobs, place.inputs, self._regions)
            call = AwaitedCall(tensors, ask.shapes, ask.rows, request_id=request_id)
            whose = provenance(place)
        except BaseException:
            place.served.stats.refused()
            place.leave()
            raise
        wished = asker.priority if ask.priority is None else ask.priority
        call.priority = place.priority if wished is None else wished
        call.sequence = ask.sequence
        call.deadline_ns = ask.timeout_us * 1000
        if remaining_s is not None:
            remaining_ns = max(1, int(remaining_s * 1e9))
            call.deadline_ns = min(call.deadline_ns or remaining_ns, remaining_ns)
        self._service.submit(place, call, asker.caller)
        return Begun(self._service, self._regions, call, what, whose)


class Begun:
    """A call that is under way."""

    __slots__ = ("_call", "_regions", "_service", "_what", "_whose")

    def __init__(self, service: Service, regions: Regions, call: AwaitedCall, what: Known, whose: Provenance) -> None:
        self._service = service
        self._regions = regions
        self._call = call
        self._what = what
        self._whose = whose

    @property
    def request_id(self) -> str:
        return self._service.id_of(self._call)

    async def answer(self, *, streamed: bool = False) -> bytes:
        """Return the ModelInferResponse, or the ModelStreamInferResponse, as bytes. Cancelling it cancels the call.

        Raises:
            MusterError: the call failed.
        """
        call = self._call
        try:
            await call.outcome
        except asyncio.CancelledError:
            call.cancel()
            raise
        return codec.answer(self._what, call, self._whose, self.request_id, self._regions, streamed=streamed)

    def cancel(self) -> None:
        """The caller is gone."""
        self._call.cancel()
        self._call.outcome.cancel()
