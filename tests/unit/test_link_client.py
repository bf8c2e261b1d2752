"""What a link speaks MQTT with, against bytes that a test sends: it must say and hear exactly what paho does."""

import select
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muster_shared.link.client import CORK_BYTES, BoundedClient, Traffic
from muster_shared.link.paho import CallbackAPIVersion, MQTTProtocolVersion, Properties, ReasonCode, mqtt

WAIT_S = 10.0
CONNACK = {MQTTProtocolVersion.MQTTv5: b"\x20\x03\x00\x00\x00", MQTTProtocolVersion.MQTTv311: b"\x20\x02\x00\x00"}
V5, V311 = MQTTProtocolVersion.MQTTv5, MQTTProtocolVersion.MQTTv311


@dataclass
class Conversation:
    """A client and the other end of its connection, in one thread."""

    client: mqtt.Client
    server: socket.socket
    heard: list[tuple[str, bytes, int, bool, bool, int]] = field(default_factory=list)
    """Topic, payload, QoS, retain, duplicate, packet id."""
    confirmed: list[tuple[int, int]] = field(default_factory=list)
    """Packet id, reason code."""

    def say(self, raw: bytes) -> None:
        """Send to the client and have it read all of it."""
        self.server.sendall(raw)
        self.listen()

    def listen(self) -> None:
        sock = self.client.socket()
        assert sock is not None
        readable, _, _ = select.select([sock], [], [], WAIT_S)
        assert readable, "nothing came"
        while True:
            before = len(self.heard) + len(self.confirmed)
            self.client.loop_read()
            has_unread = isinstance(self.client, BoundedClient) and self.client.has_unread
            if not has_unread and len(self.heard) + len(self.confirmed) == before:
                return

    def received(self, count: int) -> bytes:
        """Return the next `count` bytes that the client sends."""
        raw = b""
        while len(raw) < count:
            if self.client.socket() is not None and self.client.want_write():
                self.client.loop_write()
            raw += self.server.recv(count - len(raw))
        return raw

    def on_message(self, _client: mqtt.Client, _userdata: object, message: mqtt.MQTTMessage) -> None:
        facts = (message.qos, message.retain, message.dup, message.mid)
        qos, retain, dup, packet_id = facts
        self.heard.append((message.topic, bytes(message.payload), qos, bool(retain), bool(dup), packet_id))

    def on_publish(self, _c: mqtt.Client, _u: object, packet_id: int, reason: ReasonCode, _p: Properties) -> None:
        self.confirmed.append((packet_id, reason.value))


class Listener:
    """Takes connections of clients that a test makes."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []

    def close(self) -> None:
        for each in (*self._open, self._socket):
            each.close()

    def meet(self, kind: type[mqtt.Client] = BoundedClient, version: MQTTProtocolVersion = V5) -> Conversation:
        """Return a client that is connected."""
        client = kind(CallbackAPIVersion.VERSION2, client_id="c", protocol=version, manual_ack=True)
        if isinstance(client, BoundedClient):
            client.packet_limit_bytes = 1 << 20
        client.max_inflight_messages = 0
        client.on_socket_register_write = lambda *_: None
        client.connect_async("127.0.0.1", self._socket.getsockname()[1])
        client.reconnect()
        server, _ = self._socket.accept()
        server.settimeout(WAIT_S)
        self._open.append(server)
        conversation = Conversation(client, server)
        client.on_message, client.on_publish = conversation.on_message, conversation.on_publish
        client.loop_write()
        assert server.recv(200)[0] == 0x10, "a CONNECT comes first"
        server.sendall(CONNACK[version])
        conversation.listen()
        return conversation


@pytest.fixture
def listener() -> Iterator[Listener]:
    listener = Listener()
    yield listener
    listener.close()


EXPIRY = b"\x05\x02\x00\x00\x00\x3c"  # Properties: a message that expires in a minute.


def length_of(body: bytes) -> bytes:
    """Return the remaining length as MQTT writes it: seven bits a byte, the lowest first."""
    digits, left = bytearray(), len(body)
    while left > 127:
        digits.append(left % 128 | 128)
        left //= 128
    return bytes(digits) + bytes([left])


def publish_packet(topic: bytes, payload: bytes, *, qos: int, flags: int = 0, properties: bytes = b"\0") -> bytes:
    """Return a PUBLISH of packet id 7; no `properties` at all is MQTT 3.1.1."""
    body = struct.pack("!H", len(topic)) + topic + (b"\0\x07" if qos else b"") + properties + payload
    return bytes([0x30 | qos << 1 | flags]) + length_of(body) + body


def test_confirmations_that_arrive_in_one_piece_are_each_told_with_their_reason(listener: Listener) -> None:
    talk = listener.meet()
    ids = [talk.client.publish("t", b"x", qos=1).mid for _ in range(5)]

    plain, none_subscribed = struct.pack("!BBH", 0x40, 2, ids[0]), struct.pack("!BBHB", 0x40, 3, ids[1], 16)
    no_properties, refused = struct.pack("!BBHBB", 0x40, 4, ids[2], 0, 0), struct.pack("!BBHB", 0x40, 3, ids[3], 0x97)
    with_text = struct.pack("!BBHBB", 0x40, 8, ids[4], 0, 4) + b"\x1f\x00\x01?"
    talk.say(plain + none_subscribed + no_properties + refused + with_text)

    assert talk.confirmed == list(zip(ids, (0, 16, 0, 0x97, 0), strict=True))


def test_a_confirmation_of_nothing_that_was_sent_is_ignored(listener: Listener) -> None:
    talk = listener.meet()

    talk.say(struct.pack("!BBH", 0x40, 2, 99) * 2)

    assert talk.confirmed == []
    assert talk.client.socket() is not None


def test_what_goes_through_the_socket_is_counted_over_all_connections(listener: Listener) -> None:
    talk = listener.meet()
    assert isinstance(talk.client, BoundedClient)
    traffic = talk.client.traffic = Traffic()

    packet = publish_packet(b"a", b"x" * 1000, qos=0)
    talk.say(packet)
    talk.client.publish("t", b"y" * 500, qos=0)
    sent = talk.received(500)

    assert traffic.received == len(packet)
    assert traffic.sent >= len(sent)


@pytest.mark.parametrize("version", [V5, V311])
def test_packets_may_be_cut_anywhere(listener: Listener, version: MQTTProtocolVersion) -> None:
    properties = b"\0" if version is V5 else b""
    first = publish_packet(b"a", b"one", qos=1, properties=properties)
    raw = first + struct.pack("!BBH", 0x40, 2, 1) + publish_packet(b"b", b"two", qos=0, properties=properties)

    for cut in range(1, len(raw)):
        talk = listener.meet(version=version)
        assert talk.client.publish("t", b"x", qos=1).mid == 1
        talk.say(raw[:cut])
        talk.say(raw[cut:])

        assert talk.heard == [("a", b"one", 1, False, False, 7), ("b", b"two", 0, False, False, 0)], cut
        assert talk.confirmed == [(1, 0)], cut


@settings(max_examples=60, deadline=None)
@given(
    topic=st.text(st.characters(exclude_characters="\0#+", exclude_categories=["Cs"]), min_size=1, max_size=60),
    payload=st.binary(max_size=400),
    qos=st.sampled_from([0, 1]),
    flags=st.sampled_from([0, 1, 8, 9]),
    properties=st.sampled_from([b"\0", EXPIRY, None]),
)
def test_a_message_is_heard_as_paho_hears_it(
    topic: str, payload: bytes, qos: int, flags: int, properties: bytes | None
) -> None:
    listener = Listener()
    version = V311 if properties is None else V5
    raw = publish_packet(topic.encode(), payload, qos=qos, flags=flags, properties=properties or b"")
    ours, theirs = listener.meet(version=version), listener.meet(mqtt.Client, version)

    ours.say(raw + raw)
    theirs.say(raw + raw)
    listener.close()

    assert len(ours.heard) == 2
    assert ours.heard == theirs.heard


def test_what_was_published_leaves_whole_and_in_order_before_the_goodbye(listener: Listener) -> None:
    talk = listener.meet()
    said = [f"number {number}".encode() for number in range(300)]

    for payload in said:
        talk.client.publish("t", payload, qos=0)
    expected = b"".join(publish_packet(b"t", payload, qos=0) for payload in said)
    talk.client.disconnect()
    talk.client.loop_write()

    assert talk.received(len(expected)) == expected
    assert talk.server.recv(10)[0] == 0xE0
    assert talk.client.socket() is None


def test_a_broker_that_does_not_read_is_waited_for_and_loses_nothing(listener: Listener) -> None:
    talk = listener.meet()
    assert isinstance(talk.client, BoundedClient)
    payloads = [bytes([number % 256]) * 60_000 for number in range(400)]  # Far more than sockets hold.

    for payload in payloads:
        talk.client.publish("t", payload, qos=0)
    talk.client.loop_write()
    is_full = talk.client.want_write()
    gathered = talk.client.gathered_bytes
    expected = b"".join(publish_packet(b"t", payload, qos=0) for payload in payloads)
    raw = talk.received(len(expected))

    assert is_full
    assert gathered <= CORK_BYTES + 60_100
    assert raw == expected


def test_a_lost_connection_leaves_nothing_for_the_next(listener: Listener) -> None:
    talk = listener.meet()
    assert isinstance(talk.client, BoundedClient)
    for _ in range(200):
        talk.client.publish("t", b"x" * 60_000, qos=0)
    talk.client.loop_write()
    assert talk.client.gathered_bytes

    talk.client.reconnect()

    assert talk.client.gathered_bytes == 0
    assert not talk.client.has_unread
