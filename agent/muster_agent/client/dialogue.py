"""The client's side of one connection: what to send, what is waited for, and what has come. Pure: it owns no socket.

    send side       request(...) ──> parts of a frame, and `waiting[sequence]`
    receive side    receive(data) ──> `outcomes[sequence]`  (Answer, or the error)    for inferences
                                  └─> `replies[sequence]`   (Frame, or the error)     for everything else

The blocking and the asyncio client are two shells around it.
"""

from collections.abc import Iterable, Mapping
from typing import Final, Literal, Protocol

import msgspec
import numpy as np

from muster_agent.client.errors import ClientError, InputRefused, ProtocolBroken, Refused, SchemaChanged, refused
from muster_agent.client.frames import (
    ENDS,
    HEAD,
    IN_SEQUENCE,
    IN_SHARED,
    META,
    META_BYTES,
    PAYLOAD_BYTES_MAX,
    PREFACE,
    SEQUENCE_MASK,
    SEQUENCED,
    SHAPED,
    SHARED,
    STARTS,
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
from muster_agent.client.schema import Release, Side
from muster_agent.engines import port
from muster_agent.engines.port import Array
from muster_shared.undecodable import UNDECODABLE

PriorityName = Literal["now", "soon", "later"]
PRIORITIES: Final[dict[str, int]] = {"now": 0, "soon": 1, "later": 2}
Inputs = Array | Mapping[str, Array]
RELEASES_MAX = 128

_encode = msgspec.json.Encoder().encode
_welcome = msgspec.json.Decoder(Welcome)
_release = msgspec.json.Decoder(Release)
_refusal = msgspec.json.Decoder(Refusal)


class Answer(msgspec.Struct, frozen=True, eq=False):
    """What one inference gave, and from what exactly."""

    outputs: dict[str, Array]
    """By name, read-only views; without the batch axis where the input had none."""
    release: Release
    prefix: str
    number: int
    row: int
    """Among the requests that were answered together; -1: it was alone."""

    @property
    def version(self) -> str:
        return self.release.version

    @property
    def digest(self) -> str:
        """SHA-256 of the release's manifest."""
        return self.release.digest

    @property
    def request_id(self) -> str:
        """What the agent knows this inference by, as for feedback."""
        alone = f"{self.prefix}{self.number:09x}"
        return alone if self.row < 0 else f"{alone}.{self.row}"


class Handle:
    """A model as one client knows it; it outlives connections."""

    def __init__(self, model: str, version: str | None) -> None:
        self.model = model
        self.version = version
        self.number = 0
        self.release: Release
        self.inputs: Side
        self.outputs: Side

    def take(self, number: int, release: Release) -> bool:
        """Mean `release` from now on. True when its tensors are those of the release before."""
        self.number = number
        same = hasattr(self, "release") and (release.inputs, release.outputs) == (
            self.release.inputs,
            self.release.outputs,
        )
        self.release = release
        if not same:
            self.inputs = Side(release.inputs)
            self.outputs = Side(release.outputs)
        return same


class Mapped(Protocol):
    """Shared memory as the agent knows it; its number changes with the connection."""

    region: int


class SharedSlots(msgspec.Struct):
    """Where the tensors of a request lie."""

    memory: Mapped
    slot: int
    count: int


class Request(msgspec.Struct, eq=False):
    """One inference under way; it holds what is needed to ask again."""

    handle: Handle
    payload: list[bytes]
    flags: int
    timeout_ms: int
    single: bool
    """The input had no batch axis: neither has the answer."""
    shared: SharedSlots | None = None
    retried: bool = False

    @property
    def is_repeatable(self) -> bool:
        return not self.retried and not self.flags & IN_SEQUENCE


def request(
    handle: Handle,
    given: Inputs,
    *,
    priority: PriorityName = "now",
    timeout_s: float | None = None,
    sequence: tuple[int, bool, bool] | None = None,
) -> Request:
    """Return the request for an inference.

    Raises:
        InputRefused: it does not fit the model; nothing was sent.
    """
    side = handle.inputs
    sole = side.sole
    if sole is not None and sequence is None and type(given) is np.ndarray and given.dtype == sole[0]:
        single = given.shape == sole[1]
        if single or (given.shape[1:] == sole[1] and len(given) and given.ndim == len(sole[1]) + 1):
            timeout_ms = 0 if timeout_s is None else milliseconds(timeout_s)
            return Request(handle, [given.tobytes()], PRIORITIES[priority], timeout_ms, single)
    try:
        arrays, single = side.fit(given)
        payload = side.pack(arrays)
    except port.InputRefused as error:
        raise InputRefused(str(error), 400, tensor=error.tensor) from error
    flags = PRIORITIES[priority] if side.is_fixed else PRIORITIES[priority] | SHAPED
    if sequence is not None:
        number, starts, ends = sequence
        payload.insert(0, SEQUENCED.pack(number, starts * STARTS | ends * ENDS, 0))
        flags |= IN_SEQUENCE
    return Request(handle, payload, flags, milliseconds(timeout_s), single)


def milliseconds(timeout_s: float | None) -> int:
    """Return a timeout as a frame says it: whole, at least 1; 0 is the server's."""
    return 0 if timeout_s is None else max(1, min(0xFFFFFFFF, round(timeout_s * 1000)))


class Dialogue:
    """One connection."""

    def __init__(self) -> None:
        self.waiting: dict[int, Request] = {}
        self.outcomes: dict[int, Answer | ClientError] = {}
        self.replies: dict[int, Frame | ClientError] = {}
        self.welcome: Welcome | None = None
        self._inbound = Inbound()
        self._sequence = 0
        self._expected: set[int] = set()
        self._handles: dict[int, Handle] = {}
        self._outputs: dict[int, Side] = {}  # By the number of a handle: with other tensors comes another number.
        self._releases: dict[int, Release] = {}

    @property
    def missing(self) -> int:
        """How many bytes a frame that has begun still needs."""
        return self._inbound.missing

    # What to send.

    def greet(self, token: str | None) -> tuple[int, bytes]:
        sequence = self._next()
        return sequence, PREFACE + frame(Kind.HELLO, _encode(Hello(token, "muster_agent.client")), sequence=sequence)

    def attach(self, handle: Handle) -> tuple[int, bytes]:
        sequence = self._next()
        return sequence, frame(Kind.ATTACH, _encode(Attach(handle.model, handle.version)), sequence=sequence)

    def control(self, kind: Kind, *, handle: int = 0, extra: int = 0) -> tuple[int, bytes]:
        """Return a frame without payload."""
        sequence = self._next()
        return sequence, frame(kind, handle=handle, extra=extra, sequence=sequence)

    def ask(self, asked: Request, parts: list[bytes], sequence: int = 0) -> int:
        """Append the frame of `asked` to `parts`, and return its sequence number.

        Args:
            sequence: Under which it was asked on the connection before; 0: it is new.
        Raises:
            InputRefused: it is too large for a frame.
        """
        if not sequence:
            sequence = self._sequence = self._sequence % SEQUENCE_MASK + 1
        payload = asked.payload
        shared = asked.shared
        if shared is not None:
            payload = [SHARED.pack(shared.memory.region, shared.slot, shared.count, 0)]
        length = len(payload[0]) if len(payload) == 1 else sum([len(part) for part in payload])
        if length > PAYLOAD_BYTES_MAX:
            raise InputRefused(
                f"the request has {length} bytes; the limit is {PAYLOAD_BYTES_MAX}: split the batch", 413
            )
        parts.append(HEAD.pack(length, Kind.INFER, asked.flags, asked.handle.number, asked.timeout_ms, sequence))
        parts += payload
        self.waiting[sequence] = asked
        return sequence

    def expect(self, sequence: int) -> None:
        """Wait for one more reply of this number."""
        self._expected.add(sequence)

    # What has come.

    def receive(self, data: bytes) -> None:
        """Take bytes as they came.

        Raises:
            ProtocolBroken: they are not frames of this protocol, or the agent found ours not to be.
        """
        try:
            for received in self._inbound.feed(data):
                if received.kind == Kind.ANSWER:
                    self._answered(received)
                else:
                    self._other(received)
        except (FrameInvalid, port.InputRefused, KeyError, ValueError, TypeError, *UNDECODABLE) as error:
            raise ProtocolBroken(
                f"the agent's answer is not understood ({error}); update the older of the two"
            ) from error

    def attached(self, handle: Handle, reply: Frame) -> bool:
        """Take the reply to `attach`. True when the tensors are those that the handle had before."""
        if reply.kind != Kind.ATTACHED:
            raise ProtocolBroken(f"frame {reply.kind} answers an ATTACH")
        release = _release.decode(reply.payload)
        self._learn(release)
        return self._mean(reply.handle, handle, release)

    def abandon(self, sequence: int) -> None:
        """Wait for it no more."""
        self.waiting.pop(sequence, None)
        self.outcomes.pop(sequence, None)

    def lost(self, reason: ClientError) -> list[tuple[int, Request]]:
        """The connection is gone: return what may be asked again; the rest has `reason` as its outcome."""
        again: list[tuple[int, Request]] = []
        for sequence, asked in self.waiting.items():
            if asked.is_repeatable:
                again.append((sequence, asked))
            else:
                self.outcomes[sequence] = reason
        self.waiting.clear()
        return again

    def continue_from(self, other: "Dialogue") -> None:
        """Keep counting where `other`, the connection before, has ended, and keep what it had received."""
        self._sequence = other._sequence
        self.outcomes.update(other.outcomes)

    def _next(self) -> int:
        """Return the number of a frame whose reply goes into `replies`."""
        self._sequence = self._sequence % SEQUENCE_MASK + 1
        self._expected.add(self._sequence)
        return self._sequence

    def _answered(self, received: Frame) -> None:
        if received.length < META_BYTES:
            raise FrameInvalid(f"an answer of {received.length} bytes")
        number, count, _ = META.unpack_from(received.buffer, received.offset)
        release = self._releases[received.extra]
        side = self._outputs[received.handle]
        assert self.welcome is not None, "answers come after the welcome"
        handle = self._handles[received.handle]
        if handle.release is not release and handle.number == received.handle:
            handle.release = release
        prefix = self.welcome.request_prefix
        first = received.sequence
        if received.flags & IN_SHARED:
            if self.waiting.pop(first, None) is not None:
                self.outcomes[first] = Answer({}, release, prefix, number, -1)
            return
        at, length = received.offset + META_BYTES, received.length - META_BYTES
        if received.flags & SHAPED:
            arrays: Iterable[Array] = side.unpack_arrays(received.payload[META_BYTES:])
        else:
            rows = side.rows(length)
            if not rows or (count > 1 and rows != count):
                raise FrameInvalid(f"{length} bytes of outputs for {count} requests")
            arrays = side.arrays(received.buffer, at, rows)
        waiting, outcomes, names = self.waiting, self.outcomes, side.names
        if count == 1:
            asked = waiting.pop(first, None)
            if asked is not None:
                if asked.single:
                    arrays = [array[0] if batch else array for array, batch in zip(arrays, side.batches, strict=True)]
                outcomes[first] = Answer(dict(zip(names, arrays, strict=True)), release, prefix, number, -1)
            return
        named = list(zip(names, arrays, strict=True))
        for row in range(count):
            sequence = (first + row) & SEQUENCE_MASK
            asked = waiting.pop(sequence, None)
            if asked is None:  # Nobody waits for it any more.
                continue
            if asked.single:
                outputs = {name: array[row] for name, array in named}
            else:
                outputs = {name: array[row : row + 1] for name, array in named}
            outcomes[sequence] = Answer(outputs, release, prefix, number, row)

    def _other(self, received: Frame) -> None:
        match received.kind:
            case Kind.WELCOME:
                self.welcome = _welcome.decode(received.payload)
                self._reply(received.sequence, received)
            case Kind.RELEASE:
                release = _release.decode(received.payload)
                self._learn(release)
                handle = self._handles.get(received.handle)
                if handle is not None:
                    self._mean(received.sequence or received.handle, handle, release)
            case Kind.ERROR:
                self._failed(received)
            case Kind.ATTACHED | Kind.REGION_READY | Kind.REGION_MAPPED | Kind.PONG:
                self._reply(received.sequence, received)
            case other:
                raise FrameInvalid(f"kind {other} is not for a client")

    def _failed(self, received: Frame) -> None:
        said = _refusal.decode(received.payload)
        error: Refused = refused(received.extra, said.error, retry_after_s=said.retry_after_s, tensor=said.tensor)
        if not received.sequence:
            raise ProtocolBroken(f"the agent ends the connection: {said.error}")
        if self.waiting.pop(received.sequence, None) is not None:
            self.outcomes[received.sequence] = error
        else:
            self._reply(received.sequence, error)

    def _reply(self, sequence: int, reply: Frame | ClientError) -> None:
        if sequence in self._expected:  # Else nobody waits for it any more.
            self._expected.discard(sequence)
            self.replies[sequence] = reply

    def _mean(self, number: int, handle: Handle, release: Release) -> bool:
        same = handle.take(number, release)
        self._handles[number] = handle
        self._outputs[number] = handle.outputs
        return same

    def _learn(self, release: Release) -> None:
        self._releases[release.index] = release
        if len(self._releases) > RELEASES_MAX:
            del self._releases[next(iter(self._releases))]


def moved(handle: Handle) -> SchemaChanged:
    """Return the error of a request whose release has given way to one with other tensors."""
    return SchemaChanged(
        f"{handle.model} {handle.release.version} takes or gives other tensors than the release before; look at"
        " `model.release` and ask again",
        409,
    )
