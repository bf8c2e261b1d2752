"""The courier: answers what devices want with chunks that serve everyone who waits.

Wants for one file that arrive within a moment are merged, so a wave of a thousand devices costs one publish a chunk;
devices ask for at most a window at a time, so what is queued here is bounded by the number of files, not of devices.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from muster_controller.ports import Registry, Wire
from muster_shared.bundle import CHUNK_BYTES_MAX, CHUNK_BYTES_MIN
from muster_shared.errors import WireError
from muster_shared.ids import Sha256
from muster_shared.messages import Want, unpack_bits
from muster_shared.topics import ChunkTopic

MERGE_S = 0.05
FILES_MAX = 1024
BURST_CHUNKS = 64  # A tick publishes at most this much, so that assignments are not stuck behind 4 MB of model.


@dataclass
class Delivery:
    chunk_bytes: int
    due_at: float
    missing: set[int] = field(default_factory=set)


class Courier:
    """Single-threaded, like the fleet that owns it."""

    def __init__(self, registry: Registry, wire: Wire, clock: Callable[[], float]) -> None:
        self.bytes_sent = 0
        self.chunks_sent = 0
        self._registry = registry
        self._wire = wire
        self._clock = clock
        self._deliveries: dict[Sha256, Delivery] = {}

    def wanted(self, sha256: Sha256, want: Want) -> None:
        """Take one device's bitmap. Raises WireError when it does not fit what is stored."""
        length = self._registry.blob_length(sha256)
        if length is None:
            raise WireError(f"{want.device} wants {sha256[:12]}…, which no release names")
        if want.length != length or not CHUNK_BYTES_MIN <= want.chunk_bytes <= CHUNK_BYTES_MAX:
            raise WireError(f"{want.device} wants {sha256[:12]}… as {want.length} bytes in {want.chunk_bytes}: not so")
        delivery = self._deliveries.get(sha256)
        if delivery is None:
            if len(self._deliveries) >= FILES_MAX:
                return  # The device asks again.
            delivery = self._deliveries[sha256] = Delivery(want.chunk_bytes, self._clock() + MERGE_S)
        if delivery.chunk_bytes == want.chunk_bytes:
            delivery.missing.update(unpack_bits(want.missing, -(-length // want.chunk_bytes)))

    def tick(self) -> None:
        """Publish what is due, in order, up to a burst."""
        room = BURST_CHUNKS
        now = self._clock()
        for sha256 in sorted(self._deliveries):
            delivery = self._deliveries[sha256]
            if now < delivery.due_at:
                continue
            for index in sorted(delivery.missing)[:room]:
                chunk = self._registry.read_blob(sha256, index * delivery.chunk_bytes, delivery.chunk_bytes)
                self._wire.publish(ChunkTopic(sha256, index), chunk, qos=0)
                delivery.missing.discard(index)
                self.chunks_sent += 1
                self.bytes_sent += len(chunk)
                room -= 1
            if not delivery.missing:
                del self._deliveries[sha256]
            if room <= 0:
                return

    def wake_at(self) -> float | None:
        return min((delivery.due_at for delivery in self._deliveries.values()), default=None)
