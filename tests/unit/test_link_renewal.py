"""The link when its certificate, its CA or its broker change while it runs."""

import random
import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.device_port import Authority
from harness.endpoint import until
from muster_shared.link import BrokerAddress, Connected, Disconnected, Link, LinkConfig, LinkItem

WAIT_S = 10.0
CONNACK = b"\x20\x03\x00\x00\x00"
DISCONNECT = 0xE0


class Broker:
    """As much of a broker as says yes, keeps what it reads, and goes on; one connection after the other."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.packets: list[list[bytes]] = []
        """Of each connection, in order, without the CONNECT."""
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(0.05)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        self.address = BrokerAddress("127.0.0.1", self._listener.getsockname()[1], tls=True)

    def end(self) -> None:
        self._ending.set()
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        while not self._ending.is_set():
            try:
                plain, _ = self._listener.accept()
            except TimeoutError:
                continue
            plain.settimeout(WAIT_S)
            try:
                with plain, self._context.wrap_socket(plain, server_side=True) as peer:
                    self._converse(peer)
            except OSError:
                continue  # A link that does not trust us, or that was stopped.

    def _converse(self, peer: ssl.SSLSocket) -> None:
        _read(peer)
        packets: list[bytes] = []
        self.packets.append(packets)
        peer.sendall(CONNACK)
        while not self._ending.is_set():
            packet = _read(peer)
            packets.append(packet)
            if packet[0] == DISCONNECT:
                return


def _read(peer: ssl.SSLSocket) -> bytes:
    head = _exactly(peer, 2)
    assert head[1] < 128
    return head[:1] + _exactly(peer, head[1])


def _exactly(peer: ssl.SSLSocket, count: int) -> bytes:
    got = b""
    while len(got) < count:
        part = peer.recv(count - len(got))
        if not part:
            raise ConnectionError
        got += part
    return got


class Scene:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca = folder / "ca.pem"
        self.items: list[LinkItem] = []
        self.brokers: list[Broker] = []
        self.link: Link | None = None

    def broker(self, authority: Authority) -> Broker:
        self.brokers.append(Broker(authority.server(self.folder)))
        return self.brokers[-1]

    def open(self, broker: Broker) -> Link:
        config = LinkConfig(
            broker.address, client_id="one", reconnect_min_s=0.005, reconnect_max_s=0.02, ca_path=self.ca
        )
        self.link = Link(config, self.items.append, rng=random.Random(1))
        self.link.start()
        return self.link

    def connects(self) -> int:
        return sum(isinstance(item, Connected) for item in self.items)

    def losses(self) -> list[str]:
        return [item.reason for item in self.items if isinstance(item, Disconnected)]


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path)
    yield scene
    if scene.link is not None:
        scene.link.stop(1.0)
    for broker in scene.brokers:
        broker.end()


def test_a_link_leaves_with_a_goodbye_after_what_waited_and_comes_again(scene: Scene) -> None:
    authority = Authority()
    scene.ca.write_text(authority.pem)
    broker = scene.broker(authority)
    link = scene.open(broker)
    until(lambda: scene.connects() == 1)

    link.publish("a/b", b"before", qos=0)
    link.reconnect()
    until(lambda: scene.connects() == 2)
    link.publish("a/b", b"after", qos=0)
    until(lambda: len(broker.packets) == 2 and len(broker.packets[1]) == 1)

    topic = struct.pack("!H", 3) + b"a/b"
    published, left = broker.packets[0]
    assert topic in published
    assert published.endswith(b"before")
    assert left[0] == DISCONNECT
    assert broker.packets[1][0].endswith(b"after")
    assert scene.losses() == ["left to come again"]


def test_a_link_goes_to_another_broker_with_another_ca_when_it_is_told(scene: Scene) -> None:
    first, second = Authority("first"), Authority("second")
    scene.ca.write_text(first.pem)
    link = scene.open(scene.broker(first))
    until(lambda: scene.connects() == 1)
    other = scene.broker(second)

    scene.ca.write_text(second.pem)
    link.reconnect(other.address)
    until(lambda: scene.connects() == 2)

    assert len(other.packets) == 1


def test_a_link_that_does_not_trust_its_broker_does_once_the_ca_is_renewed(scene: Scene) -> None:
    old, new = Authority("old"), Authority("new")
    scene.ca.write_text(old.pem)
    scene.open(scene.broker(new))
    until(lambda: bool(scene.losses()))

    scene.ca.write_text(old.pem + new.pem)
    until(lambda: scene.connects() == 1)

    assert "certificate" in scene.losses()[0]


def test_a_ca_that_was_taken_away_is_not_trusted_any_more(scene: Scene) -> None:
    authority = Authority()
    scene.ca.write_text(authority.pem)
    link = scene.open(scene.broker(authority))
    until(lambda: scene.connects() == 1)

    scene.ca.write_text(Authority("next").pem)
    link.reconnect()
    until(lambda: any("certificate" in reason for reason in scene.losses()))

    assert scene.connects() == 1


def test_a_link_that_is_told_to_come_again_before_it_came_does_so(scene: Scene) -> None:
    authority = Authority()
    scene.ca.write_text(Authority("wrong").pem)
    link = scene.open(scene.broker(authority))
    until(lambda: bool(scene.losses()))
    scene.ca.write_text(authority.pem)

    link.reconnect()
    until(lambda: scene.connects() == 1)

    assert link.is_connected


def test_a_link_that_was_stopped_stays_stopped(scene: Scene) -> None:
    authority = Authority()
    scene.ca.write_text(authority.pem)
    link = scene.open(scene.broker(authority))
    until(lambda: scene.connects() == 1)
    assert link.stop(2.0)

    link.reconnect()

    assert scene.losses() == ["stopped"]
    assert not link.is_connected
