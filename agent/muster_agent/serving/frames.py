"""Frames over the Unix socket: the server's side of `docs/protocol/frames.md`, as an asyncio protocol.

    data ──> Inbound ──> runs of equal frames ──> FrameCall ──> Service.submit ──> settle ──> out ──> one write a turn
                              └── too many unanswered, or answers that nobody reads: reading pauses

It decides nothing about models. A frame that does not parse ends its connection; whatever else is wrong is answered.
"""

import asyncio
import os
import socket
import struct
from contextlib import suppress
from pathlib import Path
from typing import Protocol, cast

import msgspec
import structlog

from muster_agent import __version__
from muster_agent.client.frames import (
    PAYLOAD_BYTES_MAX,
    PREFACE,
    PRIORITY_MASK,
    SEQUENCE_MASK,
    Attach,
    Frame,
    FrameInvalid,
    Hello,
    Inbound,
    Kind,
    Refusal,
    Welcome,
    frame,
)
from muster_agent.engines.port import EngineError
from muster_agent.serving.call import Priority
from muster_agent.serving.frame_calls import FrameCall, call_for, status
from muster_agent.serving.frame_handles import Attachment, Handles, HandleUnknown, SchemaMoved
from muster_agent.serving.frame_regions import MappedRegions
from muster_agent.serving.listening import Listening
from muster_agent.serving.service import Caller, Service
from muster_agent.serving.table import Place
from muster_shared.errors import MusterError
from muster_shared.undecodable import UNDECODABLE, reason

CONNECTIONS_MAX = 256
IN_FLIGHT_MAX = 1024
READ_S = 30.0
"""A frame must be here whole within this, and answers must be taken."""
_CREDENTIALS = struct.Struct("3i")

log = structlog.get_logger(__name__)
_encode = msgspec.json.Encoder().encode
_hello = msgspec.json.Decoder(Hello)
_attach = msgspec.json.Decoder(Attach)


class Admission(Protocol):
    """Who may ask."""

    def caller(self, token: bytes | None, peer: str) -> Caller:
        """Return who asks. Raises MusterError when it may not."""
        ...


class FrameConnection(asyncio.Protocol):
    """One client. Everything happens on the loop."""

    def __init__(self, server: "FrameServer") -> None:
        self._server = server
        self._service = server.service
        self._loop = server.loop
        self._inbound = Inbound(runs=True)
        self._preface = b""
        self._caller: Caller | None = None
        self._handles = Handles(self._say)
        self._regions = MappedRegions(self, self._loop)
        self._calls: set[FrameCall] = set()
        self._in_flight = 0
        self._out: list[bytes | memoryview] = []
        self._in_turn = False
        self._flushing = False
        self._origin = 0
        self._writable = True
        self._reading = True
        self._closing = False
        self._since = 0.0
        self._timer: asyncio.TimerHandle | None = None

    # Of the transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but the class.
        self._since = self._loop.time()
        self._timer = self._loop.call_later(READ_S, self._check)
        if not self._server.joined(self):
            self._refuse(0, 503, Refusal(f"{CONNECTIONS_MAX} clients are connected; close some", 1.0))
            self._close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        if self._timer is not None:
            self._timer.cancel()
        self._regions.close()
        for call in self._calls:
            call.cancel()
        self._server.left(self)

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        if len(self._preface) < len(PREFACE):
            needed = len(PREFACE) - len(self._preface)
            self._preface, data = self._preface + data[:needed], data[needed:]
            if not PREFACE.startswith(self._preface):
                self._close()
                return
        self._in_turn = True
        try:
            frames = self._inbound.feed(data)
            self._origin = id(self) if len(frames) == 1 else 0  # More than one are better run together.
            for received in frames:
                self._receive(received)
            if self._inbound.is_between and self._caller is not None:
                self._since = 0.0
            elif frames or not self._since:
                self._since = self._loop.time()
        except FrameInvalid as error:
            self._refuse(0, 400, Refusal(str(error)))
            self._close()
        except Exception:  # A bug of ours must not take the other clients down.
            log.exception("frame_failed")
            self._refuse(0, 500, Refusal("internal error; see the agent's log"))
            self._close()
        self._in_turn = False
        if self._out:
            self._flush()
        self._pace()

    def pause_writing(self) -> None:
        self._writable = False
        self._since = self._loop.time()
        self._pace()

    def resume_writing(self) -> None:
        self._writable = True
        self._pace()

    # Of the calls.

    def reply(self, call: FrameCall, parts: list[bytes | memoryview]) -> None:
        """Send the answer of a call that has ended."""
        self._calls.discard(call)
        self._in_flight -= call.count
        self._send(parts)

    def failed(self, call: FrameCall, error: MusterError) -> None:
        """Send the error of a call that has ended; what came together is tried one by one, each for its own error."""
        self._calls.discard(call)
        if call.count > 1 and isinstance(error, EngineError) and not self._closing:
            self._loop.call_soon(self._singly, call)
            return
        self._in_flight -= call.count
        self._problem(call.frame, call.count, error)

    def _singly(self, call: FrameCall) -> None:
        self._in_flight -= call.count
        if self._closing:
            assert call.error is not None, "it has failed"
            self._problem(call.frame, call.count, call.error)
        else:
            self._each(call.attachment, call.frame, call.count)
            self._pace()

    # Of the regions.

    def duplicate(self) -> socket.socket:
        """Return another socket on this connection, while the transport does not read."""
        self._pace()
        return socket.socket(fileno=os.dup(self._transport.get_extra_info("socket").fileno()))

    def told(self, raw: bytes) -> None:
        """Send `raw`, and go on reading."""
        self._say(raw)
        self._pace()

    def refused(self, received: Frame, error: MusterError) -> None:
        """Answer a frame with its error, and go on reading."""
        self._problem(received, 1, error)
        self._pace()

    # Our own.

    def stop(self) -> None:
        """Read no more, and close when all that arrived is answered."""
        self._closing = True
        if not self._calls:
            self._close()

    def cut(self) -> None:
        """Close now, whatever is due."""
        self._transport.abort()

    def _receive(self, received: Frame) -> None:
        kind = received.kind
        if kind == Kind.INFER and self._caller is not None:
            self._infer(received)
            return
        if self._regions.waits:
            raise FrameInvalid("a frame came where a descriptor was to come")
        try:
            self._control(received)
        except (FrameInvalid, *UNDECODABLE) as error:
            raise FrameInvalid(f"frame {kind} is not understood: {reason(error)}") from error
        except MusterError as error:
            self._problem(received, 1, error)
            if self._caller is None:
                self._close()

    def _control(self, received: Frame) -> None:
        if self._caller is None:
            if received.kind != Kind.HELLO:
                raise FrameInvalid("the first frame must be HELLO")
            hello = _hello.decode(received.payload)
            token = None if hello.token is None else hello.token.encode()
            self._caller = self._server.admission.caller(token, self._peer())
            welcome = Welcome(__version__, self._server.request_prefix, PAYLOAD_BYTES_MAX, IN_FLIGHT_MAX)
            self._say(frame(Kind.WELCOME, _encode(welcome), sequence=received.sequence))
            return
        match received.kind:
            case Kind.ATTACH:
                asked = _attach.decode(received.payload)
                place = self._service.enter(asked.model, asked.version)
                try:
                    self._handles.attach(asked, place, received.sequence)
                finally:
                    place.leave()
            case Kind.DETACH:
                self._handles.detach(received.handle)
            case Kind.REGION:
                self._regions.expect(received, self._handles.known(received.handle))
            case Kind.REGION_DROP:
                self._regions.drop(received.extra)
            case Kind.PING:
                self._say(frame(Kind.PONG, sequence=received.sequence))
            case other:
                raise FrameInvalid(f"kind {other} is not for the agent")

    # Inferences.

    def _infer(self, received: Frame) -> None:
        attachment = self._handles.get(received.handle)
        if attachment is None:
            self._problem(received, received.count, HandleUnknown(received.handle))
        elif received.count == 1:
            self._one(attachment, received)
        elif (
            attachment.run_rows > 1
            and not received.flags & ~PRIORITY_MASK
            and attachment.inputs.rows(received.length) == 1
        ):
            start = 0
            while start < received.count:
                count = min(attachment.run_rows, received.count - start)
                part = received.part(start, count)
                if count == 1:
                    self._one(attachment, part)
                else:
                    self._many(attachment, part)
                start += count
        else:
            self._each(attachment, received, received.count)

    def _each(self, attachment: Attachment, received: Frame, count: int) -> None:
        for index in range(count):
            self._one(attachment, received.part(index, 1))

    def _many(self, attachment: Attachment, received: Frame) -> None:
        """Submit a run of requests with one row each as one call; if that is refused, each by itself."""
        count = received.count
        payloads = received.payloads()
        sizes = attachment.inputs.row_bytes
        if len(sizes) == 1:
            tensors: tuple[bytes, ...] = (payloads.tobytes(),)
        else:
            ends = [sum(sizes[: index + 1]) for index in range(len(sizes))]
            tensors = tuple(payloads[:, end - size : end].tobytes() for end, size in zip(ends, sizes, strict=True))
        try:
            place = self._enter(attachment)
            call = FrameCall(self, attachment, received, count, tensors, attachment.shapes, count)
            self._submit(place, call)
        except SchemaMoved as error:
            self._problem(received, count, error)
        except MusterError:
            self._each(attachment, received, count)

    def _one(self, attachment: Attachment, received: Frame) -> None:
        try:
            place = self._enter(attachment)
            try:
                call = call_for(self, attachment, self._regions, received)
            except BaseException:
                place.leave()
                raise
            self._submit(place, call)
        except MusterError as error:
            self._problem(received, 1, error)

    def _enter(self, attachment: Attachment) -> Place:
        place = self._service.enter(attachment.model, attachment.version)
        if place.served is not attachment.served:
            try:
                self._handles.meet(attachment, place)
            except BaseException:
                place.leave()
                raise
        return place

    def _submit(self, place: Place, call: FrameCall) -> None:
        received = call.frame
        call.priority = min(received.flags & PRIORITY_MASK, Priority.LATER)
        call.deadline_ns = received.extra * 1_000_000
        assert self._caller is not None, "HELLO came first"
        call.origin = self._origin
        self._in_flight += call.count
        self._calls.add(call)
        try:
            self._service.submit(place, call, self._caller)
        except BaseException:
            self._in_flight -= call.count
            self._calls.discard(call)
            raise

    # Writing.

    def _say(self, raw: bytes) -> None:
        self._send([raw])

    def _send(self, parts: list[bytes | memoryview]) -> None:
        self._out += parts
        if not self._in_turn and not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        out, self._out = self._out, []
        if out and not self._transport.is_closing():
            self._transport.write(out[0] if len(out) == 1 else b"".join(out))
        if not self._closing:
            self._pace()
        elif not self._calls:
            self._close()

    def _problem(self, received: Frame, count: int, error: MusterError) -> None:
        retry_after_s = float(getattr(error, "retry_after_s", 0.0))
        refusal = Refusal(str(error), retry_after_s, getattr(error, "tensor", ""))
        code = status(error)
        for index in range(count):
            self._refuse((received.sequence + index) & SEQUENCE_MASK, code, refusal)

    def _refuse(self, sequence: int, code: int, refusal: Refusal) -> None:
        self._say(frame(Kind.ERROR, _encode(refusal), extra=code, sequence=sequence))

    def _close(self) -> None:
        self._closing = True
        if self._out and not self._transport.is_closing():
            self._transport.write(b"".join(self._out))
            self._out.clear()
        self._transport.close()

    def _pace(self) -> None:
        """Read only as fast as answers go out."""
        if self._closing:
            return
        wanted = self._writable and self._in_flight < IN_FLIGHT_MAX and not self._regions.waits
        if wanted != self._reading:
            self._reading = wanted
            if wanted:
                self._since = 0.0 if self._inbound.is_between else self._loop.time()
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    def _check(self) -> None:
        """End a client that sends half a frame, or takes no answers. Lazy: one timer a connection."""
        # A backlog of our own making is not the client's fault.
        waits = self._caller is None or not self._writable or (self._reading and not self._inbound.is_between)
        if waits and self._since and self._since + READ_S <= self._loop.time():
            log.info("frames_client_cut", reason="it did not greet, finish a frame or take its answers in time")
            self._transport.abort()
            return
        self._timer = self._loop.call_later(READ_S / 2, self._check)

    def _peer(self) -> str:
        own = self._transport.get_extra_info("socket")
        with suppress(OSError, AttributeError):
            raw = own.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            return f"uid {_CREDENTIALS.unpack(raw)[1]}"
        return "unknown"


class FrameServer(Listening[FrameConnection]):
    """Keeps the connections; hands of `http` come in through `FrameConnection(server)`."""

    def __init__(self, service: Service, admission: Admission, loop: asyncio.AbstractEventLoop | None = None) -> None:
        """
        Args:
            loop: The serving loop; None: the one that runs.
        """
        super().__init__(loop or asyncio.get_running_loop(), CONNECTIONS_MAX)
        self.service = service
        self.admission = admission
        # The ids of the service end on a number of nine digits, which answers carry.
        self.request_prefix = f"{service.id_prefix}-"

    async def listen_unix(self, path: Path) -> None:
        """Listen at `path` for frames alone; a stale socket there is replaced."""
        await self._listen_unix(path, lambda: FrameConnection(self))
