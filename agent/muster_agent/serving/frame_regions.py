"""The shared memory of one frames connection: how a descriptor comes, and where the tensors in its slots lie.

    REGION ──> expect: reading pauses ──> REGION_READY ──> one byte with the descriptor ──> REGION_MAPPED

The descriptor travels beside the bytes, where an event loop's transport would lose it; so one byte is read here, by a
second socket on the same connection, while the transport does not read. It maps and never copies; `frame_calls` does.
"""

import asyncio
import os
import socket
from typing import NamedTuple, Protocol

from muster_agent.client.frames import Frame, Kind, frame
from muster_agent.client.layout import Layout
from muster_agent.serving.call import Raw
from muster_agent.serving.frame_handles import Attachment
from muster_agent.serving.shared_memory import RegionError, map_sealed
from muster_shared.errors import MusterError

REGIONS_MAX = 16
DESCRIPTOR_S = 5.0


class Region:
    """Memory that a client shares with the agent, cut as `Layout` says."""

    def __init__(self, attachment: Attachment, layout: Layout, memory: memoryview) -> None:
        self.handle = attachment.handle
        self.slots = layout.slots
        self._memory = memory
        self._inputs = tuple(zip(layout.input_offsets, attachment.inputs.row_bytes, strict=True))
        # An integer may be an index into something: it must not change between a check and its use.
        self._copied = tuple(dtype.kind != "f" for dtype in attachment.inputs.dtypes)
        self.outputs = layout.outputs(memory)
        """Arrays [slots, ...], views."""

    def tensors(self, slot: int, count: int) -> tuple[Raw, ...]:
        """Return the inputs in `count` slots from `slot`, which are within the region: views, or copies of integers."""
        tensors: list[Raw] = []
        for (offset, row_bytes), copied in zip(self._inputs, self._copied, strict=True):
            start = offset + slot * row_bytes
            view = self._memory[start : start + count * row_bytes]
            tensors.append(view.tobytes() if copied else view)
        return tuple(tensors)


class Host(Protocol):
    """The connection, as its regions know it."""

    def duplicate(self) -> socket.socket:
        """Return another socket on this connection; the transport does not read while `MappedRegions.waits`."""
        ...

    def told(self, raw: bytes) -> None:
        """Send `raw`, and go on reading."""
        ...

    def refused(self, received: Frame, error: MusterError) -> None:
        """Answer a frame with its error, and go on reading."""
        ...

    def cut(self) -> None:
        """Close now."""
        ...


class _Wish(NamedTuple):
    received: Frame
    attachment: Attachment
    layout: Layout
    own: socket.socket
    timer: asyncio.TimerHandle


class MappedRegions:
    """The regions of one connection."""

    def __init__(self, host: Host, loop: asyncio.AbstractEventLoop) -> None:
        self._host = host
        self._loop = loop
        self._regions: dict[int, Region] = {}
        self._numbers = 0
        self._wish: _Wish | None = None
        self.waits = False
        """Whether the next byte carries a descriptor."""

    def get(self, number: int) -> Region | None:
        return self._regions.get(number)

    def drop(self, number: int) -> None:
        """Forget a region; its memory goes when no call uses it any more."""
        self._regions.pop(number, None)

    def close(self) -> None:
        """Forget all; the connection is gone."""
        if self._wish is not None:
            self._end(self._wish)
        self._regions.clear()

    def expect(self, received: Frame, attachment: Attachment) -> None:
        """Ask the client for the descriptor of the region that it announces in `received`.

        Raises:
            RegionError: there are too many.
            RegionInvalid: the model's tensors have free sizes, or the slots are too many.
        """
        if len(self._regions) >= REGIONS_MAX:
            raise RegionError(f"{REGIONS_MAX} regions are mapped on this connection; drop some")
        layout = Layout(attachment.inputs, attachment.outputs, received.extra)
        self.waits = True
        own = self._host.duplicate()
        self._wish = _Wish(received, attachment, layout, own, self._loop.call_later(DESCRIPTOR_S, self._host.cut))
        self._loop.add_reader(own.fileno(), self._take)
        self._host.told(frame(Kind.REGION_READY, handle=received.handle, sequence=received.sequence))

    def _take(self) -> None:
        wish = self._wish
        assert wish is not None, "a reader without a wish"
        try:
            data, descriptors, _, _ = socket.recv_fds(wish.own, 1, 1, socket.MSG_CMSG_CLOEXEC)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data, descriptors = b"", []
        self._end(wish)
        try:
            if not data:
                self._host.cut()
                return
            if not descriptors:
                raise RegionError("no descriptor came with the byte that was to carry it")
            memory = map_sealed(descriptors[0], wish.layout.size)
        except RegionError as error:
            self._host.refused(wish.received, error)
            return
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        self._numbers += 1
        self._regions[self._numbers] = Region(wish.attachment, wish.layout, memory)
        asked = wish.received
        mapped = frame(Kind.REGION_MAPPED, handle=asked.handle, extra=self._numbers, sequence=asked.sequence)
        self._host.told(mapped)

    def _end(self, wish: _Wish) -> None:
        self._wish = None
        self.waits = False
        wish.timer.cancel()
        self._loop.remove_reader(wish.own.fileno())
        wish.own.close()
