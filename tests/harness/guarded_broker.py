"""A secured broker on 127.0.0.1, its certificates, and clients that may ask it for anything.

`Peer` is paho alone: `Link` would not send what a thief sends, and it comes back by itself.
"""

import socket
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from harness.certificates import Leaf, SmallCa
from muster_controller.broker.embedded import BrokerKind, EmbeddedBroker, start_broker
from muster_controller.broker.permissions import Access, Role, covers, filters
from muster_controller.broker.security import BrokerSecurity
from muster_controller.client_names import mixer_name
from muster_shared.ids import DeviceId, FleetId

FLEET = FleetId("f")
WAIT_S = 30.0
SHA256 = "ab" * 32
CONTROLLER_ID = f"muster-controller-{FLEET}"  # NATS takes no dots in client ids.


class NotReached(AssertionError):
    """Something did not come to be in time."""


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


class Peer:
    """One connection of paho's, made once and never again, and all that came over it."""

    def __init__(
        self,
        port: int,
        client_id: str,
        *,
        ca: Path | None,
        leaf: Leaf | None,
        version: MQTTProtocolVersion = MQTTProtocolVersion.MQTTv311,
        keeps_session: bool = False,
        will: str | None = None,
    ) -> None:
        is_v5 = version is MQTTProtocolVersion.MQTTv5
        self._changed = threading.Condition()
        self._client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            clean_session=None if is_v5 else not keeps_session,
            protocol=version,
            reconnect_on_failure=False,
        )
        if ca is not None:
            self._client.tls_set(
                str(ca),
                certfile=str(leaf.certificate) if leaf else None,
                keyfile=str(leaf.key) if leaf else None,
            )
        if will is not None:
            self._client.will_set(will, b"forged", qos=1, retain=True)
        self.received: list[tuple[str, bytes]] = []
        self.refusal: str | None = None
        self.was_cut = False
        self.is_in = False
        self._acknowledged: set[int] = set()
        self._granted: dict[int, bool] = {}
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = self._on_disconnect
        self._client.on_message = self._on_message
        self._client.on_publish = self._on_publish
        self._client.on_subscribe = self._on_subscribe
        properties: Properties | None = None
        if is_v5:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho says no types here.
            properties.SessionExpiryInterval = 300 if keeps_session else 0
        try:
            self._client.connect(
                "localhost", port, clean_start=not keeps_session if is_v5 else 3, properties=properties
            )
        except OSError as error:
            self.refusal = str(error)
            return
        self._client.loop_start()
        self.wait(lambda: self.is_in or self.refusal is not None or self.was_cut, "an answer to CONNECT")

    @property
    def payloads(self) -> list[bytes]:
        return [payload for _, payload in self.received]

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> None:
        """Publish, and wait until the broker has dealt with it: QoS 1 is acknowledged, also where it is refused."""
        info = self._client.publish(topic, payload, qos=qos, retain=retain)
        self.wait(lambda: info.mid in self._acknowledged or self.was_cut, f"{topic} acknowledged")

    def subscribe(self, *asked: str, qos: int = 1) -> list[bool]:
        """Subscribe to one filter after the other; whether each was granted. Mosquitto says yes to all."""
        granted = []
        for one in asked:
            _, mid = self._client.subscribe(one, qos)
            assert mid is not None
            self.wait(lambda mid=mid: mid in self._granted or self.was_cut, f"SUBACK for {one}")  # type: ignore[misc]
            granted.append(self._granted.get(mid, False))
        return granted

    def unsubscribe(self, asked: Iterable[str]) -> None:
        self._client.unsubscribe(list(asked))

    def wait(self, holds: Callable[[], bool], what: str) -> None:
        with self._changed:
            if not self._changed.wait_for(holds, WAIT_S):
                raise NotReached(f"not within {WAIT_S} s: {what}; received {self.received[-10:]}")

    def sever(self) -> None:
        """Close the socket without a goodbye, so that the will is published."""
        sock = self._client.socket()
        assert sock is not None
        sock.close()
        self._client.loop_stop()

    def leave(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    # What paho calls, on its thread.

    def _on_connect(
        self, _client: mqtt.Client, _data: object, _flags: object, reason: ReasonCode, _properties: object
    ) -> None:
        with self._changed:
            if reason.is_failure:
                self.refusal = str(reason)
            else:
                self.is_in = True
            self._changed.notify_all()

    def _on_disconnect(self, *_: object) -> None:
        with self._changed:
            self.was_cut = True
            self._changed.notify_all()

    def _on_message(self, _client: mqtt.Client, _data: object, message: mqtt.MQTTMessage) -> None:
        with self._changed:
            self.received.append((message.topic, bytes(message.payload)))
            self._changed.notify_all()

    def _on_publish(self, _client: mqtt.Client, _data: object, mid: int, _reason: object, _properties: object) -> None:
        with self._changed:
            self._acknowledged.add(mid)
            self._changed.notify_all()

    def _on_subscribe(
        self, _client: mqtt.Client, _data: object, mid: int, reasons: list[ReasonCode], _properties: object
    ) -> None:
        with self._changed:
            self._granted[mid] = not any(reason.is_failure for reason in reasons)
            self._changed.notify_all()


@dataclass
class Guarded:
    """A secured broker with its CA; `devices` and `revoked` are what the next `refresh` makes true."""

    folder: Path
    ca: SmallCa
    kind: BrokerKind
    version: MQTTProtocolVersion = MQTTProtocolVersion.MQTTv311
    devices: set[DeviceId] = field(default_factory=set)
    revoked: set[DeviceId] = field(default_factory=set)
    mixers: set[str] = field(default_factory=set)
    peers: list[Peer] = field(default_factory=list)
    marks: int = 0

    @classmethod
    def make(cls, folder: Path, kind: BrokerKind, version: MQTTProtocolVersion, devices: Iterable[str]) -> Self:
        ca = SmallCa.make(folder / "ca", FLEET)
        return cls(folder, ca, kind, version, {DeviceId(one) for one in devices})

    def start(self) -> EmbeddedBroker:
        server = self.ca.leaf("broker", server_names=("localhost", "127.0.0.1"))
        controller = self.ca.controller
        security = BrokerSecurity(
            fleet=FLEET,
            ca=self.ca.roots,
            certificate=server.certificate,
            key=server.key,
            client_certificate=controller.certificate,
            client_key=controller.key,
            devices=lambda: self.devices,
            revoked=lambda: self.revoked,
            crl=self.ca.crl,
            mixers=lambda: self.mixers,
        )
        self.broker = start_broker(self.kind, self.folder / "broker", free_port(), security=security)
        self.broker.wait_ready(WAIT_S)
        return self.broker

    def join(
        self,
        name: str,
        *,
        leaf: Leaf | None = None,
        client_id: str | None = None,
        keeps_session: bool = False,
        will: str | None = None,
    ) -> Peer:
        """Return a peer with a certificate of that name, let in or not."""
        peer = Peer(
            self.broker.port,
            client_id if client_id is not None else f"muster-{FLEET}-{name}",
            ca=self.ca.root_file,
            leaf=leaf or self.ca.leaf(name),
            version=self.version,
            keeps_session=keeps_session,
            will=will,
        )
        self.peers.append(peer)
        return peer

    def controller(self) -> Peer:
        """Return the controller, subscribed to all that it may."""
        peer = self.join(self.ca.controller_name, client_id=CONTROLLER_ID)
        assert all(peer.subscribe(*filters(Role.CONTROLLER, Access.SUBSCRIBE, FLEET)))
        return peer

    def device(self, name: str, *, keeps_session: bool = False) -> Peer:
        """Return a device, subscribed to all that it may."""
        peer = self.join(name, keeps_session=keeps_session)
        assert all(peer.subscribe(*filters(Role.DEVICE, Access.SUBSCRIBE, FLEET, name)))
        return peer

    def mixer(self, mixer: str) -> Peer:
        """Return a mixer, subscribed to all that it may."""
        peer = self.join(mixer_name(FLEET, mixer), client_id=f"muster-mixer-{FLEET}-{mixer}")
        assert all(peer.subscribe(*filters(Role.MIXER, Access.SUBSCRIBE, FLEET, mixer)))
        return peer

    def fence(self, controller: Peer, device: Peer, name: str) -> None:
        """Return once everything that was sent before has reached both, if it reaches them at all.

        One message goes through every subscription of both: brokers keep the order within one, not among several.
        """
        self.marks += 1
        mark = f"fence {self.marks}".encode()
        down = [one.replace("+", SHA256) for one in filters(Role.DEVICE, Access.SUBSCRIBE, FLEET, name)]
        up = [one.replace("+", SHA256) for one in filters(Role.DEVICE, Access.PUBLISH, FLEET, name)]
        for topic in down:
            controller.publish(topic.replace(f"chunk/{SHA256}", "chunk/0"), mark)
        for topic in up:
            device.publish(topic, mark)
        hears = filters(Role.CONTROLLER, Access.SUBSCRIBE, FLEET)
        heard = sum(any(covers(one, topic) for one in hears) for topic in up)
        device.wait(lambda: device.payloads.count(mark) >= len(down), "the fence at the device")
        controller.wait(lambda: controller.payloads.count(mark) >= heard, "the fence at the controller")

    def leave(self) -> None:
        for peer in self.peers:
            peer.leave()
        self.peers.clear()


def until(holds: Callable[[], bool], what: str) -> None:
    """Return once it holds. Raises NotReached."""
    deadline = time.monotonic() + WAIT_S
    while not holds():
        if time.monotonic() > deadline:
            raise NotReached(f"not within {WAIT_S} s: {what}")
        time.sleep(0.01)
