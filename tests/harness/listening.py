"""A client that hears every message of a broker, by MQTT 5, and keeps all of them."""

import ssl
import threading
from typing import NamedTuple

from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from muster_shared.ids import FleetId
from muster_shared.link import LinkConfig
from muster_shared.topics import ROOT

DEADLINE_S = 120.0
SESSION_S = 3600
"""For so long a broker keeps what it could not hand over; it may be restarted meanwhile."""


class Message(NamedTuple):
    """One message as a subscriber has it."""

    topic: str
    payload: bytes
    properties: bytes = b""
    """As JSON, all of them."""


class Listener:
    """A client that hears all topics and keeps everything; it comes again by itself when the broker was away."""

    def __init__(self, port: int, fleet: FleetId, link: LinkConfig | None = None) -> None:
        """Return once the broker has taken the subscription.

        Args:
            port: on the loopback.
            link: whose certificate is shown, and whom it trusts; None: the broker asks nobody.
        """
        self.messages: list[Message] = []
        self.is_there = threading.Event()
        self._fleet = fleet
        name = "listener" if link is None else link.client_id
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, name, protocol=MQTTProtocolVersion.MQTTv5)
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = self._on_subscribe
        self._client.on_message = self._on_message
        self._client.reconnect_delay_set(1, 1)
        if link is not None and link.cert_path is not None:
            context = ssl.create_default_context(cafile=link.ca_path)
            context.load_cert_chain(link.cert_path, link.key_path)
            self._client.tls_set_context(context)
        kept = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho's.
        kept.SessionExpiryInterval = SESSION_S
        self._client.connect_async("127.0.0.1", port, properties=kept)
        self._client.loop_start()
        assert self.is_there.wait(DEADLINE_S), "the broker lets nobody listen"

    def _on_connect(self, *_: object) -> None:
        self._client.subscribe("#", qos=1)

    def _on_subscribe(self, *_: object) -> None:
        self.is_there.set()

    def _on_message(self, _client: mqtt.Client, _data: object, message: mqtt.MQTTMessage) -> None:
        said = message.properties
        properties = b"" if said is None else repr(said.json()).encode()  # type: ignore[no-untyped-call]  # paho's.
        self.messages.append(Message(message.topic, bytes(message.payload), properties))

    def say(self, topic: str, payload: bytes) -> None:
        self._client.publish(topic, payload, qos=1)

    def on(self, topic: str) -> list[Message]:
        """Return what was heard on this topic so far."""
        return [each for each in list(self.messages) if each.topic == topic]

    def under(self, *branches: str) -> list[Message]:
        """Return what was heard under these branches of the fleet's topics so far."""
        prefixes = tuple(f"{ROOT}/{self._fleet}/{branch}/" for branch in branches)
        return [each for each in list(self.messages) if each.topic.startswith(prefixes)]

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()
