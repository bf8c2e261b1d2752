"""The MQTT link: one connection to one broker that comes back by itself (`session`), and what it says (`values`).

It knows bytes and connections, never topics or meaning: those are the owner's.
"""

from muster_shared.link.address import BrokerAddress, BrokerUrlInvalid, LinkError, parse_broker_url
from muster_shared.link.session import FILTERS_A_SUBSCRIBE, Link, backoff_s
from muster_shared.link.values import (
    AckToken,
    Connected,
    Delivered,
    Disconnected,
    LinkConfig,
    LinkCounters,
    LinkItem,
    LinkStopped,
    MessageProperties,
    Mid,
    MqttVersion,
    OutboundQueueFull,
    PayloadTooLarge,
    PublishRefused,
    Qos,
    Received,
    Subscribed,
    Will,
)

__all__ = [
    "FILTERS_A_SUBSCRIBE",
    "AckToken",
    "BrokerAddress",
    "BrokerUrlInvalid",
    "Connected",
    "Delivered",
    "Disconnected",
    "Link",
    "LinkConfig",
    "LinkCounters",
    "LinkError",
    "LinkItem",
    "LinkStopped",
    "MessageProperties",
    "Mid",
    "MqttVersion",
    "OutboundQueueFull",
    "PayloadTooLarge",
    "PublishRefused",
    "Qos",
    "Received",
    "Subscribed",
    "Will",
    "backoff_s",
    "parse_broker_url",
]
