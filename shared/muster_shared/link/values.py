"""What a link is told and what it tells: configuration, items, counters, errors. No socket, no thread."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Literal, NewType

from muster_shared.link.address import BrokerAddress, LinkError

Mid = NewType("Mid", int)
"""Names one publish for the life of a link. Not MQTT's packet id, which wraps."""

Qos = Literal[0, 1]
"""At most once, at least once. QoS 2 is not used: not every broker has it, and handlers are idempotent anyway."""


class OutboundQueueFull(LinkError):
    """So many messages wait for the broker already that one more is refused. The caller keeps it, or drops it."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"{limit} messages wait for the broker already; send again once some are delivered")
        self.limit = limit


class PayloadTooLarge(LinkError):
    """A payload over the cap. It would be resent, and cut the connection, for ever."""

    def __init__(self, topic: str, size_bytes: int, limit_bytes: int) -> None:
        super().__init__(
            f"{size_bytes} bytes for {topic} exceed the cap of {limit_bytes}; split the message into chunks"
        )
        self.topic = topic
        self.size_bytes = size_bytes
        self.limit_bytes = limit_bytes


class LinkStopped(LinkError):
    """The link was stopped; it sends nothing any more."""

    def __init__(self) -> None:
        super().__init__("this link was stopped; make a new one")


class MqttVersion(StrEnum):
    """What a connection speaks."""

    V5 = "5"
    V311 = "3.1.1"


@dataclass(frozen=True)
class Will:
    """What the broker publishes for us when the connection dies without a goodbye; `delay_s` needs MQTT 5."""

    topic: str
    payload: bytes
    qos: Qos = 1
    retain: bool = True
    delay_s: int = 0


@dataclass(frozen=True)
class MessageProperties:
    """Mirrored as MQTT 5 properties where the broker speaks 5; the payload's envelope carries the same facts."""

    expiry_s: int | None = None
    correlation: bytes | None = None
    response_topic: str | None = None


@dataclass(frozen=True)
class LinkConfig:
    """How one link behaves.

    Attributes:
        session_expiry_s: how long the broker keeps our session while we are away; 0 means none. On 3.1.1 anything
            above 0 means "until the broker forgets".
        clean_start: the first connection of this link drops what the broker still has for us. 3.1.1 cannot say
            that of a session that is kept, and resumes it.
        max_inflight: publishes handed over but not yet confirmed, each way.
        max_queued_out: publishes that may wait, those in flight included, connected or not.
        max_payload_bytes: larger ones are refused when sent, counted and dropped when received.
        reconnect_min_s, reconnect_max_s: the n-th retry waits a random time up to `min * 2**n`, at most `max`.
        ca_path, cert_path, key_path: PEM files. They are read again at every attempt, so that what was renewed is used.
    """

    broker: BrokerAddress
    client_id: str
    keepalive_s: int = 30
    clean_start: bool = False
    session_expiry_s: int = 0
    will: Will | None = None
    max_inflight: int = 100
    max_queued_out: int = 1_000
    max_payload_bytes: int = 128 * 1024
    reconnect_min_s: float = 1.0
    reconnect_max_s: float = 60.0
    ca_path: Path | None = None
    cert_path: Path | None = None
    key_path: Path | None = None

    @property
    def packet_limit_bytes(self) -> int:
        """A packet that announces more is not read: the connection is cut. Well above the payload cap, so that a
        message that is merely too large is acknowledged away instead of coming back on every connection."""
        return 4 * self.max_payload_bytes + 1024 * 1024


@dataclass(frozen=True)
class AckToken:
    """What acknowledges one received message; worth nothing once its connection is gone."""

    connection: int
    packet_id: int
    qos: Qos


@dataclass(frozen=True)
class Connected:
    """The broker let us in. Subscriptions follow by themselves, session or not."""

    protocol: MqttVersion
    session_present: bool


@dataclass(frozen=True)
class Disconnected:
    """The connection was lost, or cannot be made; said once, and again only when the reason changes."""

    reason: str


@dataclass(frozen=True)
class Subscribed:
    """The broker answered one SUBSCRIBE; a refused filter is not asked for again before the next connection."""

    granted: tuple[str, ...]
    refused: tuple[str, ...]


@dataclass(frozen=True)
class Received:
    """One message. With QoS 1 the broker keeps it until `Link.ack(token)`, and may repeat it until then."""

    topic: str
    payload: bytes
    qos: Qos
    retain: bool
    token: AckToken


@dataclass(frozen=True)
class Delivered:
    """QoS 1: the broker has it (in memory, perhaps). QoS 0: it left for the socket."""

    mid: Mid


@dataclass(frozen=True)
class PublishRefused:
    """The broker will not take this message; it is not sent again. 3.1.1 brokers cannot say so, and do not."""

    mid: Mid
    reason: str


LinkItem = Connected | Disconnected | Subscribed | Received | Delivered | PublishRefused


@dataclass(frozen=True)
class LinkCounters:
    """Totals since the link was made.

    Attributes:
        received: messages handed to the consumer.
        oversize_dropped: messages over the payload cap.
        malformed_dropped: messages whose topic is not UTF-8.
        refused: publishes that the full queue or the broker refused.
        reconnects: connections after the first.
        sent_bytes, received_bytes: of MQTT, before TLS wraps it.
    """

    received: int
    oversize_dropped: int
    malformed_dropped: int
    refused: int
    reconnects: int
    sent_bytes: int = 0
    received_bytes: int = 0
