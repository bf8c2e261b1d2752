"""The conductor's wire over the MQTT link: topics are built here, and what the link does not take is dropped.

A drop is safe: events wait in the outbox, wants are asked again, the next twin says all of the last. It does not
receive; `inbox` does.
"""

import structlog

from muster_shared.ids import FleetId, Sha256
from muster_shared.link import Link, LinkError, LinkStopped, Qos
from muster_shared.topics import Topic, build, chunk_filter

log = structlog.get_logger()


class MqttWire:
    """`ports.Wire` on a link that is started and stopped by someone else."""

    def __init__(self, link: Link, fleet: FleetId) -> None:
        self.dropped = 0
        self._link = link
        self._fleet = fleet
        self._dropping = False

    def publish(self, topic: Topic, payload: bytes, *, qos: int, retain: bool = False) -> None:
        level: Qos = 1 if qos else 0
        try:
            self._link.publish(build(self._fleet, topic), payload, qos=level, retain=retain)
        except LinkStopped:
            return
        except LinkError as error:
            self.dropped += 1
            if not self._dropping:
                self._dropping = True
                log.warning("publish_dropped", topic=str(topic), error=str(error))
            return
        self._dropping = False

    def listen(self, sha256: Sha256) -> None:
        self._link.subscribe([chunk_filter(self._fleet, sha256)], qos=0)

    def unlisten(self, sha256: Sha256) -> None:
        self._link.unsubscribe([chunk_filter(self._fleet, sha256)])
