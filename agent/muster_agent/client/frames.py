"""The frames protocol on bytes, for both of its sides: what is sent, and what has come. See `docs/protocol/frames.md`.

    connection = b"MUSTER/1" frame*          frame = head (16 bytes, little-endian) payload

    head = length of the payload u32 | kind u8 | flags u8 | handle u16 | extra u32 | sequence u32

Pure: no sockets, no models, no clock. Equal frames in a row are found at once (`Frame.count`), so that a burst costs
a receiver hardly more than one frame.
"""

import struct
from enum import IntEnum
from functools import lru_cache
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from muster_shared.errors import WireError

PREFACE: Final = b"MUSTER/1"
"""A connection that begins with it speaks frames; no HTTP method does."""
PAYLOAD_BYTES_MAX: Final = 16 * 1024 * 1024
HEAD: Final = struct.Struct("<IBBHII")
"""Length of the payload, kind, flags, handle, extra, sequence. 16 bytes, so that tensors stay aligned."""
HEAD_BYTES: Final = HEAD.size
META: Final = struct.Struct("<QII")
"""Begins the payload of an ANSWER: number of the call, how many requests it answers, 0. The tensors stay aligned."""
META_BYTES: Final = META.size
ANSWER_HEAD: Final = struct.Struct("<IBBHIIQII")
"""Head and meta in one."""
SEQUENCED: Final = struct.Struct("<QII")
"""Of an INFER for a stateful model: id of the sequence, STARTS | ENDS, 0."""
SHARED: Final = struct.Struct("<IIII")
"""Of an INFER or ANSWER whose tensors lie in shared memory: region, first slot, slots, 0."""
SEQUENCE_MASK: Final = 0xFFFFFFFF

PRIORITY_MASK: Final = 0b11
SHAPED: Final = 1 << 2
"""The sizes of all axes of all tensors precede the tensors."""
IN_SEQUENCE: Final = 1 << 3
IN_SHARED: Final = 1 << 4
STARTS, ENDS = 1, 2

_RUN_MIN: Final = 3  # Looking for a run costs as much as reading two frames.
_RUN_MAX: Final = 256  # Frames that never form a run must not make each look cost more than this.
_STEPS = np.arange(_RUN_MAX, dtype=np.uint64) << np.uint64(32)


class Kind(IntEnum):
    """What a frame is; the names in brackets are what answers it."""

    HELLO = 1  # [WELCOME] JSON `Hello`
    WELCOME = 2  # JSON `Welcome`
    ATTACH = 3  # [ATTACHED] JSON `Attach`
    ATTACHED = 4  # handle; extra: index of the release; JSON `Release`
    DETACH = 5  # handle; not answered
    INFER = 6  # [ANSWER] handle; flags; extra: timeout in ms, 0 for the server's
    ANSWER = 7  # handle; flags; extra: index of the release; META, then the outputs
    ERROR = 8  # extra: status as in HTTP; JSON `Refusal`
    RELEASE = 9  # handle; extra: index; sequence: the handle from now on, 0 for this one; JSON `Release`
    REGION = 10  # [REGION_READY, then the descriptor travels, then REGION_MAPPED] handle; extra: slots
    REGION_READY = 11  # The next byte from the client carries the descriptor.
    REGION_MAPPED = 12  # extra: number of the region
    REGION_DROP = 13  # extra: number of the region; not answered
    PING = 14  # [PONG]
    PONG = 15


class Hello(msgspec.Struct, frozen=True):
    token: str | None = None
    client: str = ""


class Welcome(msgspec.Struct, frozen=True):
    agent: str
    request_prefix: str
    """A request id is this and the number of the call, nine digits in hex; `.row` when it answered several requests."""
    payload_bytes_max: int
    in_flight_max: int
    """Requests that may wait for answers on this connection; the server reads no more until some are answered."""


class Attach(msgspec.Struct, frozen=True):
    model: str
    version: str | None = None


class Refusal(msgspec.Struct, frozen=True, omit_defaults=True):
    error: str
    retry_after_s: float = 0.0
    tensor: str = ""


class FrameInvalid(WireError):
    """Bytes that are no frames; the connection is of no further use."""


class Frame(msgspec.Struct, gc=False):
    """One frame, or `count` frames in a row that differ only in their payload and in `sequence`, which rises by one."""

    kind: int
    flags: int
    handle: int
    extra: int
    sequence: int
    """Of the first."""
    count: int
    length: int
    """Of one payload."""
    buffer: bytes
    offset: int
    """Of the first payload."""

    @property
    def payload(self) -> memoryview:
        """The (first) payload, a view."""
        return memoryview(self.buffer)[self.offset : self.offset + self.length]

    def payloads(self) -> npt.NDArray[np.uint8]:
        """Return all payloads, uint8 [count, length], a view."""
        return np.ndarray(
            (self.count, self.length),
            np.uint8,
            self.buffer,
            self.offset,
            (self.length + HEAD_BYTES, 1),
        )

    def part(self, start: int, count: int) -> "Frame":
        """Return `count` frames of the run, from `start`."""
        if count == self.count:
            return self
        return Frame(
            self.kind,
            self.flags,
            self.handle,
            self.extra,
            (self.sequence + start) & SEQUENCE_MASK,
            count,
            self.length,
            self.buffer,
            self.offset + start * (self.length + HEAD_BYTES),
        )


class Inbound:
    """Bytes as they come, in any pieces, to frames."""

    def __init__(self, payload_bytes_max: int = PAYLOAD_BYTES_MAX, *, runs: bool = False) -> None:
        """
        Args:
            runs: Whether INFERs that follow each other may come as one `Frame` with a `count`.
        """
        self._payload_bytes_max = payload_bytes_max
        self._runs = runs
        self._pieces: list[bytes] = []
        self._held = 0
        self._needed = HEAD_BYTES

    @property
    def is_between(self) -> bool:
        """Whether no frame has begun."""
        return not self._held

    @property
    def missing(self) -> int:
        """How many more bytes the frame that has begun needs at least; 0 when none has."""
        return self._needed - self._held if self._held else 0

    def feed(self, data: bytes) -> list[Frame]:
        """Return the frames that are whole now, in order.

        Raises:
            FrameInvalid: a frame claims more than the limit.
        """
        if self._held:
            self._pieces.append(data)
            self._held += len(data)
            if self._held < self._needed:
                return []
            data = b"".join(self._pieces)
            self._pieces.clear()
            self._held = 0
        frames: list[Frame] = []
        position, end = 0, len(data)
        self._needed = HEAD_BYTES
        while end - position >= HEAD_BYTES:
            length, kind, flags, handle, extra, sequence = HEAD.unpack_from(data, position)
            if length > self._payload_bytes_max:
                raise FrameInvalid(
                    f"a frame has {length} bytes; the limit is {self._payload_bytes_max}: send a smaller batch"
                )
            stride = HEAD_BYTES + length
            if end - position < stride:
                self._needed = stride
                break
            count = 1
            if self._runs and kind == Kind.INFER and end - position >= _RUN_MIN * stride:
                count = _run(data, position, min(_RUN_MAX, (end - position) // stride), length)
            frames.append(Frame(kind, flags, handle, extra, sequence, count, length, data, position + HEAD_BYTES))
            position += count * stride
        if position < end:
            rest = data[position:] if position else data
            self._pieces.append(rest)
            self._held = len(rest)
        return frames


@lru_cache(256)
def _record(length: int) -> np.dtype[np.void]:
    """Return the layout of one frame with a payload of `length` bytes."""
    return np.dtype(
        {
            "names": ["head", "extra_and_sequence"],
            "formats": ["<u8", "<u8"],
            "offsets": [0, 8],
            "itemsize": HEAD_BYTES + length,
        }
    )


def _run(data: bytes, position: int, most: int, length: int) -> int:
    """Return how many of the `most` frames at `position` are alike but for payload and rising sequence, >= 1."""
    records = np.ndarray(most, _record(length), data, position)
    heads, tails = records["head"], records["extra_and_sequence"]
    alike = heads == heads[0]
    alike &= tails == tails[0] + _STEPS[:most]
    # The first is like itself, so that the first smallest is at 0 only when all are alike.
    return int(alike.argmin()) or most


def frame(
    kind: Kind, payload: bytes = b"", *, flags: int = 0, handle: int = 0, extra: int = 0, sequence: int = 0
) -> bytes:
    """Return one frame as bytes."""
    return HEAD.pack(len(payload), kind, flags, handle, extra, sequence) + payload
