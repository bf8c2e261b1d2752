"""The link without a broker: URLs, bounds, back-off, and scripted servers that misbehave."""

import random
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from muster_shared.link import (
    AckToken,
    BrokerAddress,
    BrokerUrlInvalid,
    Connected,
    Disconnected,
    Link,
    LinkConfig,
    LinkItem,
    LinkStopped,
    MqttVersion,
    OutboundQueueFull,
    PayloadTooLarge,
    Received,
    backoff_s,
    parse_broker_url,
)

WAIT_S = 10.0
CONNACK_V5 = b"\x20\x03\x00\x00\x00"
CONNACK_V311 = b"\x20\x02\x00\x00"
UNACCEPTABLE_VERSION = b"\x20\x02\x00\x01"

Script = Callable[[socket.socket, bytes], None]
"""What a scripted server does with one connection, given the CONNECT packet's body."""


def wait_until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline, f"not within {WAIT_S} s: {what}"
        time.sleep(0.002)


def version_of(connect: bytes) -> int:
    return connect[6]


def publish_packet(topic: bytes, payload: bytes, packet_id: int) -> bytes:
    body = struct.pack("!H", len(topic)) + topic + struct.pack("!H", packet_id) + payload
    assert len(body) < 128
    return bytes([0x32, len(body)]) + body


class ScriptedServer:
    """A TCP server that reads a CONNECT and then follows a script; connections come one after the other."""

    def __init__(self, script: Script, tls: ssl.SSLContext | None = None) -> None:
        self.versions: list[int] = []
        self._script = script
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(0.05)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        self.port: int = self._listener.getsockname()[1]

    def end(self) -> None:
        self._ending.set()
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        while not self._ending.is_set():
            try:
                sock, _ = self._listener.accept()
            except TimeoutError:
                continue
            with sock:
                sock.settimeout(WAIT_S)
                try:
                    if self._tls is None:
                        self._converse(sock)
                    else:
                        with self._tls.wrap_socket(sock, server_side=True) as wrapped:
                            self._converse(wrapped)
                except OSError:
                    continue  # The link hung up, which some scripts provoke.

    def _converse(self, sock: socket.socket) -> None:
        head = sock.recv(2)
        if len(head) == 2:
            body = sock.recv(head[1])
            self.versions.append(version_of(body))
            self._script(sock, body)


Serve = Callable[..., ScriptedServer]
Open = Callable[..., tuple[Link, list[LinkItem]]]


@pytest.fixture
def serve() -> Iterator[Serve]:
    servers: list[ScriptedServer] = []

    def make(script: Script, tls: ssl.SSLContext | None = None) -> ScriptedServer:
        servers.append(ScriptedServer(script, tls))
        return servers[-1]

    yield make
    for server in servers:
        server.end()


@pytest.fixture
def open_link(serve: Serve) -> Iterator[Open]:
    # It asks for `serve` so that links stop before their servers do.
    links: list[Link] = []

    def make(
        address: BrokerAddress, on_item: Callable[[LinkItem], None] | None = None, **options: object
    ) -> tuple[Link, list[LinkItem]]:
        items: list[LinkItem] = []
        config = LinkConfig(
            broker=address,
            client_id="one",
            reconnect_min_s=0.005,
            reconnect_max_s=0.02,
            **options,  # type: ignore[arg-type]  # Tests name fields of LinkConfig.
        )
        link = Link(config, on_item or items.append, rng=random.Random(1))
        links.append(link)
        return link, items

    yield make
    for link in links:
        assert link.stop(timeout_s=1.0)


def at(port: int, *, tls: bool = False) -> BrokerAddress:
    return BrokerAddress("127.0.0.1", port, tls)


def read_to_the_end(sock: socket.socket) -> bytes:
    said = b""
    while more := sock.recv(4096):
        said += more
    return said


NOWHERE = BrokerAddress("127.0.0.1", 1)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("mqtt://broker", BrokerAddress("broker", 1883)),
        ("mqtts://broker/", BrokerAddress("broker", 8883, tls=True)),
        ("mqtt://[::1]:2883", BrokerAddress("::1", 2883)),
        (
            "mqtts://fleet%40a:p%2Fw%3A@broker:1",
            BrokerAddress("broker", 1, tls=True, username="fleet@a", password="p/w:"),
        ),
        ("mqtt://only-user@broker", BrokerAddress("broker", 1883, username="only-user")),
    ],
)
def test_a_broker_url_says_where_to_connect(url: str, address: BrokerAddress) -> None:
    assert parse_broker_url(url) == address


@pytest.mark.parametrize(
    "url",
    [
        "",
        "broker:1883",
        "http://broker",
        "mqtt://",
        "mqtt://user:secret@",
        "mqtt://user:secret@broker:x",
        "mqtt://user:secret@broker:0",
        "mqtt://user:secret@broker:70000",
        "mqtt://user:secret@broker/path",
        "mqtt://:secret@broker",
        "mqtt://user:secret@broker?tls=1",
    ],
)
def test_a_broken_broker_url_is_refused_without_repeating_the_password(url: str) -> None:
    with pytest.raises(BrokerUrlInvalid) as refusal:
        parse_broker_url(url)

    assert "secret" not in str(refusal.value)


def test_an_address_does_not_show_its_password() -> None:
    assert "secret" not in repr(parse_broker_url("mqtt://user:secret@broker"))


def test_the_back_off_is_full_jitter_under_a_doubling_cap() -> None:
    rng = random.Random(3)

    waits = {retry: [backoff_s(retry, 1.0, 60.0, rng) for _ in range(500)] for retry in (0, 3, 6, 10_000)}

    for retry, cap_s in ((0, 1.0), (3, 8.0), (6, 60.0), (10_000, 60.0)):
        assert 0.0 <= min(waits[retry]) < 0.05 * cap_s
        assert 0.95 * cap_s < max(waits[retry]) <= cap_s


def test_publishes_wait_for_a_connection_up_to_the_bound_and_are_refused_beyond(open_link: Open) -> None:
    link, _ = open_link(NOWHERE, max_queued_out=3)

    mids = [link.publish("a/b", b"", qos=1) for _ in range(3)]
    with pytest.raises(OutboundQueueFull) as refusal:
        link.publish("a/b", b"", qos=0)

    assert len(set(mids)) == 3
    assert refusal.value.limit == 3
    assert link.counters.refused == 1


def test_a_payload_over_the_cap_is_refused_at_once(open_link: Open) -> None:
    link, _ = open_link(NOWHERE, max_payload_bytes=10)

    with pytest.raises(PayloadTooLarge) as refusal:
        link.publish("a/b", b"x" * 11, qos=0)

    assert (refusal.value.size_bytes, refusal.value.limit_bytes) == (11, 10)


@pytest.mark.parametrize("topic", ["", "a/+", "a/#", "a\0"])
def test_a_topic_with_wildcards_is_our_own_bug(open_link: Open, topic: str) -> None:
    link, _ = open_link(NOWHERE)

    with pytest.raises(AssertionError):
        link.publish(topic, b"", qos=0)


@pytest.mark.parametrize("topic_filter", ["", "a#", "#/a", "a/b+", "a/#/b"])
def test_a_malformed_filter_is_our_own_bug(open_link: Open, topic_filter: str) -> None:
    link, _ = open_link(NOWHERE)

    with pytest.raises(AssertionError):
        link.subscribe([topic_filter])


def test_a_stopped_link_takes_nothing_more_and_may_be_stopped_again(open_link: Open) -> None:
    link, _ = open_link(NOWHERE)
    link.start()

    assert link.stop(timeout_s=1.0)

    with pytest.raises(LinkStopped):
        link.publish("a", b"", qos=0)
    link.ack(AckToken(1, 1, 1))
    link.subscribe(["a"])


def test_an_absent_broker_is_reported_once_and_tried_until_it_is_there(open_link: Open, serve: Serve) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port: int = reserved.getsockname()[1]
        link, items = open_link(at(port))
        link.start()
        wait_until(lambda: items == [Disconnected("Connection refused")], "the first refusal")
        # Each retry draws from the same generator; a dozen of them fit into this wait.
        time.sleep(0.1)
        assert len(items) == 1

        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.listen()
        sock, _ = reserved.accept()
    with sock:
        sock.sendall(CONNACK_V5)
        wait_until(lambda: link.is_connected, "connected")

    assert Connected(MqttVersion.V5, session_present=False) in items


def test_a_broker_without_mqtt_5_is_asked_once_and_then_spoken_to_in_3_1_1(open_link: Open, serve: Serve) -> None:
    def script(sock: socket.socket, connect: bytes) -> None:
        if version_of(connect) == 5:
            sock.sendall(UNACCEPTABLE_VERSION)
        elif len(server.versions) < 4:
            sock.sendall(CONNACK_V311)  # And hang up: the link shall come back with what it has learned.
        else:
            sock.sendall(CONNACK_V311)
            read_to_the_end(sock)

    server = serve(script)
    link, items = open_link(at(server.port))
    link.start()

    wait_until(lambda: len(server.versions) == 4 and link.is_connected, "connected")

    assert server.versions == [5, 4, 4, 4]
    assert items[0] == Connected(MqttVersion.V311, session_present=False)


def test_a_broker_that_hangs_up_on_mqtt_5_is_spoken_to_in_3_1_1(open_link: Open, serve: Serve) -> None:
    def script(sock: socket.socket, connect: bytes) -> None:
        if version_of(connect) == 4:
            sock.sendall(CONNACK_V311)
            read_to_the_end(sock)

    server = serve(script)
    link, items = open_link(at(server.port))
    link.start()

    wait_until(lambda: link.is_connected, "connected")

    assert server.versions == [5, 5, 4]
    assert items[-1] == Connected(MqttVersion.V311, session_present=False)


def test_a_refused_link_says_why_and_keeps_trying(open_link: Open, serve: Serve) -> None:
    server = serve(lambda sock, _: sock.sendall(b"\x20\x03\x00\x87\x00"))
    link, items = open_link(at(server.port))
    link.start()

    wait_until(lambda: len(server.versions) >= 3, "retries")

    assert items == [Disconnected("the broker refused us: Not authorized")]
    assert set(server.versions) == {5}


def test_a_packet_that_announces_no_end_is_not_read(open_link: Open, serve: Serve) -> None:
    def script(sock: socket.socket, _: bytes) -> None:
        sock.sendall(CONNACK_V5 + b"\x30\xff\xff\xff\x7f" + b"x" * 100)  # 256 MiB less one byte.
        read_to_the_end(sock)

    server = serve(script)
    link, items = open_link(at(server.port))
    link.start()

    wait_until(lambda: any(isinstance(item, Disconnected) for item in items), "the link hung up")


def test_garbage_costs_the_connection_but_not_the_link(open_link: Open, serve: Serve) -> None:
    garbage = [b"\x20\x03\x00\x00", b"\xf0\x00", b"\x30\x01\x00", b"\x90\x01\x00", b"\x40\x02\x00\x09", b"\x00" * 64]

    def script(sock: socket.socket, _: bytes) -> None:
        if len(server.versions) <= len(garbage):
            sock.sendall(CONNACK_V5 + garbage[len(server.versions) - 1])
            return
        sock.sendall(CONNACK_V5)
        read_to_the_end(sock)

    server = serve(script)
    link, _ = open_link(at(server.port))
    link.start()

    wait_until(lambda: len(server.versions) > len(garbage) and link.is_connected, "connected after the garbage")


def test_a_topic_that_is_not_utf_8_is_counted_and_acknowledged_away(open_link: Open, serve: Serve) -> None:
    acks: list[bytes] = []

    def script(sock: socket.socket, connect: bytes) -> None:
        if version_of(connect) == 5:
            sock.sendall(UNACCEPTABLE_VERSION)
            return
        sock.sendall(CONNACK_V311 + publish_packet(b"\xff\xfe", b"", 7) + publish_packet(b"good", b"1", 8))
        acks.append(sock.recv(4))
        read_to_the_end(sock)

    server = serve(script)
    link, items = open_link(at(server.port))
    link.start()

    wait_until(lambda: any(isinstance(item, Received) for item in items), "the good message")
    wait_until(lambda: acks == [b"\x40\x02\x00\x07"], "the acknowledgement")
    assert (link.counters.received, link.counters.malformed_dropped) == (1, 1)


def test_a_consumer_that_fails_costs_the_connection_so_that_the_message_comes_again(
    open_link: Open, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[LinkItem] = []

    def consume(item: LinkItem) -> None:
        seen.append(item)
        if len([one for one in seen if isinstance(one, Received)]) == 1 and isinstance(item, Received):
            raise RuntimeError("the inbox is full")

    def script(sock: socket.socket, connect: bytes) -> None:
        if version_of(connect) == 5:
            sock.sendall(UNACCEPTABLE_VERSION)
            return
        sock.sendall(CONNACK_V311 + publish_packet(b"t", b"1", 7))
        read_to_the_end(sock)

    server = serve(script)
    link, _ = open_link(at(server.port), consume)
    link.start()

    wait_until(lambda: len([one for one in seen if isinstance(one, Received)]) == 2, "the message again")
    assert Disconnected("the consumer failed: RuntimeError: the inbox is full") in seen
    assert "link_consumer_failed" in caplog.text


def test_a_tls_link_checks_the_broker_and_shows_its_certificate(open_link: Open, serve: Serve, tmp_path: Path) -> None:
    ca, cert, key = _certificate_files(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    context.load_verify_locations(ca)
    context.verify_mode = ssl.CERT_REQUIRED
    shown: list[object] = []

    def script(sock: socket.socket, _: bytes) -> None:
        assert isinstance(sock, ssl.SSLSocket)
        shown.append(sock.getpeercert())
        sock.sendall(CONNACK_V5)
        read_to_the_end(sock)

    server = serve(script, context)
    stranger, refusals = open_link(at(server.port, tls=True))
    stranger.start()
    wait_until(lambda: len(refusals) > 0, "the stranger trusts nobody")
    stranger.stop(timeout_s=1.0)
    link, _ = open_link(at(server.port, tls=True), ca_path=ca, cert_path=cert, key_path=key)
    link.start()

    wait_until(lambda: link.is_connected, "connected")

    assert "CERTIFICATE_VERIFY_FAILED" in str(refusals[0])
    assert shown[0]


def test_a_broker_that_wants_a_certificate_is_told_in_the_words_of_tls(
    open_link: Open, serve: Serve, tmp_path: Path
) -> None:
    ca, cert, key = _certificate_files(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3  # It refuses after the handshake, as far as a client can see.
    context.load_cert_chain(cert, key)
    context.load_verify_locations(ca)
    context.verify_mode = ssl.CERT_REQUIRED
    server = serve(lambda sock, _: read_to_the_end(sock), context)
    link, items = open_link(at(server.port, tls=True), ca_path=ca)

    link.start()

    wanted = Disconnected("connection lost: TLSV13_ALERT_CERTIFICATE_REQUIRED")
    wait_until(lambda: wanted in items, f"{wanted} said")
    assert not link.is_connected


def _certificate_files(folder: Path) -> tuple[Path, Path, Path]:
    """One self-signed certificate for 127.0.0.1 that is its own authority, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    cert_path, key_path = folder / "cert.pem", folder / "key.pem"
    cert_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return cert_path, cert_path, key_path


def test_a_burst_that_came_at_once_is_heard_to_its_end_though_nothing_follows(serve: Serve, open_link: Open) -> None:
    burst = b"".join(publish_packet(b"t", b"%d" % number, number + 1) for number in range(1000))

    def speak(sock: socket.socket, _connect: bytes) -> None:
        sock.sendall(CONNACK_V311 + burst)
        sock.recv(1)  # Until the link hangs up.

    server = serve(speak)
    link, items = open_link(at(server.port))
    link.start()

    wait_until(lambda: sum(isinstance(item, Received) for item in items) == 1000, "all of the burst")
    assert [item.payload for item in items if isinstance(item, Received)] == [b"%d" % number for number in range(1000)]
