"""The calls of the frames protocol: how a request is understood, and how its answer becomes bytes or lands in memory.

    FrameCall    tensors from the payload   ──> ANSWER with the outputs; of a run of frames: one ANSWER for all
    SharedCall   tensors in a region        ──> outputs into the region, and an ANSWER without them

It writes to nobody: `frames` owns the connection.
"""

from typing import Protocol

from muster_agent.client.frames import (
    ANSWER_HEAD,
    ENDS,
    IN_SEQUENCE,
    IN_SHARED,
    META_BYTES,
    SEQUENCED,
    SHAPED,
    SHARED,
    STARTS,
    Frame,
    Kind,
)
from muster_agent.client.schema import pack_elements, pack_sizes
from muster_agent.core.breaker import BreakerOpen
from muster_agent.core.sequences import SequenceError
from muster_agent.engines.port import EngineError, InputRefused
from muster_agent.serving.admission import BurstExceeded, TokenRefused
from muster_agent.serving.call import Call, Raw, Shape
from muster_agent.serving.frame_handles import Attachment, HandleUnknown, SchemaMoved
from muster_agent.serving.frame_regions import MappedRegions, Region
from muster_agent.serving.rooms import RoomClosed, TooLate
from muster_agent.serving.shared_memory import RegionError
from muster_agent.serving.table import ModelUnknown
from muster_shared.errors import MusterError, WireError


class Replies(Protocol):
    """The connection, as its calls know it."""

    def reply(self, call: "FrameCall", parts: list[bytes | memoryview]) -> None: ...

    def failed(self, call: "FrameCall", error: MusterError) -> None: ...


class FrameCall(Call):
    """`count` requests of one row each, or one request."""

    __slots__ = ("attachment", "connection", "frame", "index")

    def __init__(
        self,
        connection: Replies,
        attachment: Attachment,
        frame: Frame,
        count: int,
        tensors: tuple[Raw, ...],
        shapes: tuple[Shape, ...],
        rows: int,
    ) -> None:
        """
        Args:
            frame: Whose first `count` requests this call answers.
        """
        super().__init__(tensors, shapes, rows)
        self.connection = connection
        self.attachment = attachment
        self.frame = frame
        self.count = count
        self.index = attachment.index

    def settle(self) -> None:
        """See `Call.settle`."""
        error = self.error
        if error is not None:
            self.connection.failed(self, error)
            return
        outputs = self.attachment.outputs
        parts: list[bytes | memoryview] = [b""]
        flags = 0
        if outputs.is_fixed:
            for index in range(len(outputs.specs)):
                parts.append(self.raw(index))
        else:
            flags = SHAPED
            arrays = [self.output(index) for index in range(len(outputs.specs))]
            parts.append(pack_sizes(array.shape for array in arrays))
            for index, array in enumerate(arrays):
                parts.append(pack_elements(array) if array.dtype.kind == "O" else self.raw(index))
        self._head(parts, flags)
        self.connection.reply(self, parts)

    def _head(self, parts: list[bytes | memoryview], flags: int) -> None:
        length = META_BYTES
        for part in parts:
            length += len(part)
        parts[0] = ANSWER_HEAD.pack(
            length,
            Kind.ANSWER,
            flags,
            self.attachment.handle,
            self.index,
            self.frame.sequence,
            self.number,
            self.count,
            0,
        )


class SharedCall(FrameCall):
    """One request whose rows lie in slots of a region."""

    __slots__ = ("region", "slot", "where")

    def __init__(
        self,
        connection: Replies,
        attachment: Attachment,
        frame: Frame,
        region: Region,
        where: tuple[int, int, int],
    ) -> None:
        """
        Args:
            where: Number of the region, first slot, slots; within the region.
        """
        _, slot, count = where
        super().__init__(connection, attachment, frame, 1, region.tensors(slot, count), attachment.shapes, count)
        self.region = region
        self.slot = slot
        self.where = where

    def settle(self) -> None:
        """See `Call.settle`."""
        error = self.error
        if error is None:
            end = self.slot + self.rows
            for index, slots in enumerate(self.region.outputs):
                slots[self.slot : end] = self.output(index)
            parts: list[bytes | memoryview] = [b"", SHARED.pack(*self.where, 0)]
            self._head(parts, IN_SHARED)
            self.connection.reply(self, parts)
        else:
            self.connection.failed(self, error)


def call_for(connection: Replies, attachment: Attachment, regions: MappedRegions, received: Frame) -> FrameCall:
    """Return the call that one INFER asks for. Raises MusterError when it does not fit the model."""
    flags = received.flags
    payload = received.payload
    sequence: tuple[int | str, bool, bool] | None = None
    if flags & IN_SEQUENCE:
        if len(payload) < SEQUENCED.size:
            raise InputRefused(attachment.inputs.names[0], "is too short to name its sequence")
        number, bits, _ = SEQUENCED.unpack_from(payload)
        sequence, payload = (number, bool(bits & STARTS), bool(bits & ENDS)), payload[SEQUENCED.size :]
    call: FrameCall
    if flags & IN_SHARED:
        call = _shared(connection, attachment, regions, received, payload)
    elif flags & SHAPED or not attachment.inputs.is_fixed:
        tensors, shapes = attachment.inputs.unpack(payload)
        rows, bare = 1, list(shapes)
        for index, batch in enumerate(attachment.inputs.batches):
            if batch:
                rows, bare[index] = shapes[index][0], shapes[index][1:]
        call = FrameCall(connection, attachment, received, 1, tensors, tuple(bare), rows)
    else:
        rows = attachment.inputs.rows(len(payload))
        if not rows:
            needed = sum(attachment.inputs.row_bytes)
            raise InputRefused(
                attachment.inputs.names[0], f"has {len(payload)} bytes; a row of all inputs has {needed}"
            )
        call = FrameCall(
            connection, attachment, received, 1, attachment.inputs.cut(payload, rows), attachment.shapes, rows
        )
    call.sequence = sequence
    return call


def _shared(
    connection: Replies, attachment: Attachment, regions: MappedRegions, received: Frame, payload: memoryview
) -> SharedCall:
    if len(payload) != SHARED.size:
        raise RegionError("a request in shared memory names its region, its first slot and its slots")
    number, slot, count, _ = SHARED.unpack(payload)
    region = regions.get(number)
    if region is None or region.handle != attachment.handle:
        raise RegionError(f"region {number} is not one of this model on this connection")
    if not count or slot + count > region.slots:
        raise RegionError(f"{count} slots from {slot} are not within the {region.slots} of region {number}")
    return SharedCall(connection, attachment, received, region, (number, slot, count))


def status(error: MusterError) -> int:
    """Return what `error` is to a caller, in the codes of HTTP."""
    match error:
        case InputRefused() | SequenceError() | RegionError() | WireError():
            return 429 if hasattr(error, "retry_after_s") else 400
        case TokenRefused():
            return 401
        case ModelUnknown() | HandleUnknown():
            return 404
        case SchemaMoved():
            return 409
        case BurstExceeded():
            return 413
        case EngineError():
            return 500
        case RoomClosed() | BreakerOpen():
            return 503
        case TooLate():
            return 504
        case _:
            return 429 if hasattr(error, "retry_after_s") else 500
