"""`ports.Wire` on the MQTT link: what the fleet says, held back until it is committed, and bounded.

What is dropped here is said again: chunks when a device wants them again, everything retained at the next `connected`,
event acknowledgements when the device sends the event again.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import structlog

from muster_shared import topics
from muster_shared.ids import FleetId
from muster_shared.link import LinkStopped, Mid, OutboundQueueFull, PayloadTooLarge, Qos
from muster_shared.topics import ChunkTopic, Topic

CHUNK_BYTES_ROOM = 8 * 1024 * 1024  # While this much waits for the broker, the courier rests.
CHUNK_BYTES_MAX = 32 * 1024 * 1024  # Chunks beyond this are dropped.

log = structlog.get_logger()


class Sender(Protocol):
    """The part of `Link` that is needed here."""

    @property
    def is_connected(self) -> bool: ...

    def publish(self, topic: str, payload: bytes, *, qos: Qos, retain: bool = False) -> Mid: ...


@dataclass
class WireCounters:
    published: int = 0
    dropped: int = 0


class LinkWire:
    """Used by the fleet thread; `delivered` and `lost` by the link's."""

    def __init__(self, fleet: FleetId) -> None:
        self.counters = WireCounters()
        self.overflowed = False
        """Something retained was dropped: all of it must be said again."""
        self._fleet = fleet
        self._link: Sender | None = None
        self._held: list[tuple[Topic, bytes, int, bool]] | None = None
        self._lock = threading.Lock()
        self._chunks: dict[Mid, int] = {}
        self._chunk_bytes = 0

    def attach(self, link: Sender) -> None:
        """Say where messages go; before that they are dropped."""
        self._link = link

    @property
    def has_room(self) -> bool:
        """Whether the courier may publish more chunks now."""
        return self._chunk_bytes < CHUNK_BYTES_ROOM

    @contextmanager
    def held(self) -> Iterator[None]:
        """Send what is published inside when the block ends well, and none of it when it does not."""
        assert self._held is None, "one batch at a time"
        self._held = []
        try:
            yield
        except BaseException:
            self._held = None
            raise
        queued, self._held = self._held, None
        for topic, payload, qos, retain in queued:
            self._send(topic, payload, qos, retain)

    def publish(self, topic: Topic, payload: bytes, *, qos: int, retain: bool = False) -> None:
        if self._held is not None:
            self._held.append((topic, payload, qos, retain))
        else:
            self._send(topic, payload, qos, retain)

    def delivered(self, mid: Mid) -> None:
        with self._lock:
            self._chunk_bytes -= self._chunks.pop(mid, 0)

    def lost(self) -> None:
        """The connection is gone, and with it the chunks that were under way."""
        with self._lock:
            self._chunks.clear()
            self._chunk_bytes = 0

    def _send(self, topic: Topic, payload: bytes, qos: int, retain: bool) -> None:
        link = self._link
        is_chunk = isinstance(topic, ChunkTopic)
        if link is None or not link.is_connected or (is_chunk and self._chunk_bytes >= CHUNK_BYTES_MAX):
            self.counters.dropped += 1  # While away nothing piles up: `connected` says everything again.
            return
        try:
            if is_chunk:
                with self._lock:  # Or the answer could overtake the note of the question.
                    mid = link.publish(topics.build(self._fleet, topic), payload, qos=1 if qos else 0, retain=retain)
                    self._chunks[mid] = len(payload)
                    self._chunk_bytes += len(payload)
            else:
                link.publish(topics.build(self._fleet, topic), payload, qos=1 if qos else 0, retain=retain)
            self.counters.published += 1
        except (OutboundQueueFull, LinkStopped):
            self.counters.dropped += 1
            self.overflowed = self.overflowed or not is_chunk
        except PayloadTooLarge as error:
            self.counters.dropped += 1
            log.warning("publish_refused", topic=str(topic), error=str(error))
