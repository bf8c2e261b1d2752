"""What the fleet needs of a broker and of the link to it, held against every broker that can be embedded.

Real processes and sockets on 127.0.0.1; every wait has a deadline and ends as soon as it can.
"""

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from muster_controller.broker.embedded import (
    BrokerKind,
    BrokerUnavailable,
    EmbeddedBroker,
    answers,
    find_broker,
    start_broker,
)
from muster_controller.broker.security import Admission
from muster_shared.link import (
    Connected,
    Delivered,
    Disconnected,
    Link,
    LinkConfig,
    LinkItem,
    MessageProperties,
    MqttVersion,
    Received,
    Subscribed,
    Will,
    parse_broker_url,
)

pytestmark = [pytest.mark.broker, pytest.mark.timeout(60)]

WAIT_S = 30.0
KINDS = [BrokerKind.MOSQUITTO, BrokerKind.NATS]


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def wait_until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline, f"not within {WAIT_S} s: {what}"
        time.sleep(0.005)


def require(kind: BrokerKind) -> None:
    try:
        find_broker(kind)
    except BrokerUnavailable as error:
        pytest.skip(str(error))


class Peer:
    """A link and all that it said."""

    def __init__(self, link: Link, items: list[LinkItem]) -> None:
        self.link = link
        self.items = items

    @property
    def received(self) -> list[Received]:
        return [item for item in self.items if isinstance(item, Received)]

    @property
    def payloads(self) -> list[bytes]:
        return [item.payload for item in self.received]

    @property
    def connections(self) -> list[Connected]:
        return [item for item in self.items if isinstance(item, Connected)]

    @property
    def subscriptions(self) -> int:
        return sum(isinstance(item, Subscribed) for item in self.items)

    def subscribe(self, *filters: str, qos: int = 1) -> None:
        self.link.subscribe(filters, qos=1 if qos else 0)
        wait_until(lambda: set(filters) <= self._granted(), f"{filters} granted")

    def deliver(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        mid = self.link.publish(topic, payload, qos=1, retain=retain)
        wait_until(lambda: Delivered(mid) in self.items, f"{topic} delivered")

    def _granted(self) -> set[str]:
        return {one for item in self.items if isinstance(item, Subscribed) for one in item.granted}


class Peers:
    """Makes links to one broker, and stops them."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.made: list[Peer] = []

    def join(
        self,
        client_id: str,
        *,
        session_expiry_s: int = 0,
        will: Will | None = None,
        max_payload_bytes: int = 128 * 1024,
        acknowledges: bool = True,
        connects: bool = True,
    ) -> Peer:
        items: list[LinkItem] = []

        def keep(item: LinkItem) -> None:
            items.append(item)
            if acknowledges and isinstance(item, Received):
                link.ack(item.token)

        config = LinkConfig(
            broker=parse_broker_url(self.url),
            client_id=client_id,
            session_expiry_s=session_expiry_s,
            will=will,
            max_payload_bytes=max_payload_bytes,
            reconnect_min_s=0.02,
            reconnect_max_s=0.1,
        )
        link = Link(config, keep, rng=random.Random(1))
        peer = Peer(link, items)
        self.made.append(peer)
        link.start()
        if connects:
            wait_until(lambda: link.is_connected, f"{client_id} connected")
        return peer

    def leave(self) -> None:
        stopped = [peer.link.stop(timeout_s=2.0) for peer in self.made]

        assert all(stopped), "a link did not stop"


@pytest.fixture(scope="module", params=KINDS, ids=str)
def broker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedBroker]:
    kind: BrokerKind = request.param
    require(kind)
    with start_broker(kind, tmp_path_factory.mktemp(str(kind)), free_port()) as broker:
        broker.wait_ready(WAIT_S)
        yield broker


@pytest.fixture
def peers(broker: EmbeddedBroker) -> Iterator[Peers]:
    peers = Peers(broker.url)
    yield peers
    peers.leave()


def test_a_late_subscriber_gets_the_retained_message(peers: Peers) -> None:
    peers.join("early").deliver("muster/v1/f/device/d1/twin", b"reported", retain=True)

    late = peers.join("late")
    late.subscribe("muster/v1/f/device/d1/twin")

    wait_until(lambda: late.payloads == [b"reported"], "retained message")
    assert late.received[0].retain


def test_an_empty_payload_clears_the_retained_message(peers: Peers) -> None:
    sender = peers.join("sender")
    sender.deliver("muster/v1/f/device/d2/assignment", b"old", retain=True)
    sender.deliver("muster/v1/f/device/d2/assignment", b"", retain=True)

    late = peers.join("late")
    late.subscribe("muster/v1/f/device/d2/assignment", "muster/v1/f/marker")
    sender.deliver("muster/v1/f/marker", b"after")

    wait_until(lambda: b"after" in late.payloads, "marker")
    assert late.payloads == [b"after"]


def test_a_message_of_each_qos_arrives_unchanged(peers: Peers) -> None:
    receiver = peers.join("receiver")
    receiver.subscribe("muster/v1/f/a", "muster/v1/f/b")
    sender = peers.join("sender")

    properties = MessageProperties(expiry_s=60, correlation=b"\x00\x01", response_topic="muster/v1/f/reply")
    sender.link.publish("muster/v1/f/a", bytes(range(256)), qos=0)
    sender.link.publish("muster/v1/f/b", b"{}", qos=1, properties=properties)

    wait_until(lambda: len(receiver.received) == 2, "both messages")
    facts = [(item.topic, item.payload, item.qos, item.retain) for item in receiver.received]
    assert sorted(facts) == [
        ("muster/v1/f/a", bytes(range(256)), 0, False),
        ("muster/v1/f/b", b"{}", 1, False),
    ]


def test_the_will_is_published_when_the_socket_of_its_owner_dies(peers: Peers, broker: EmbeddedBroker) -> None:
    watcher = peers.join("watcher")
    watcher.subscribe("muster/v1/f/device/+/presence")
    owner = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="owner")
    owner.will_set("muster/v1/f/device/d1/presence", b"offline", qos=1)
    owner.connect("127.0.0.1", broker.port)
    deadline = time.monotonic() + WAIT_S
    while not owner.is_connected() and time.monotonic() < deadline:
        owner.loop(0.05)

    sock = owner.socket()
    assert sock is not None
    sock.close()

    wait_until(lambda: watcher.payloads == [b"offline"], "the will")


def test_a_link_that_says_goodbye_leaves_no_will(peers: Peers) -> None:
    watcher = peers.join("watcher")
    watcher.subscribe("muster/v1/f/device/+/presence")
    leaver = peers.join("leaver", will=Will("muster/v1/f/device/d2/presence", b"offline", retain=False))

    leaver.link.publish("muster/v1/f/device/d2/presence", b"goodbye", qos=1)
    assert leaver.link.stop(timeout_s=2.0)
    peers.join("marker").deliver("muster/v1/f/device/d3/presence", b"after")

    wait_until(lambda: b"after" in watcher.payloads, "marker")
    assert watcher.payloads == [b"goodbye", b"after"]
    assert leaver.items[-1] == Disconnected("stopped")


def test_an_unacknowledged_message_comes_again_to_a_kept_session(peers: Peers) -> None:
    first = peers.join("keeper", session_expiry_s=300, acknowledges=False)
    first.subscribe("muster/v1/f/keep")
    peers.join("sender").deliver("muster/v1/f/keep", b"once more")
    wait_until(lambda: first.payloads == [b"once more"], "first delivery")
    assert first.link.stop(timeout_s=2.0)

    second = peers.join("keeper", session_expiry_s=300)

    wait_until(lambda: b"once more" in second.payloads, "redelivery")
    assert second.connections[0].session_present


def test_a_message_sent_while_a_kept_session_is_away_waits_for_it(peers: Peers) -> None:
    away = peers.join("away", session_expiry_s=300)
    away.subscribe("muster/v1/f/wait")
    assert away.link.stop(timeout_s=2.0)
    peers.join("sender").deliver("muster/v1/f/wait", b"while away")

    back = peers.join("away", session_expiry_s=300)

    wait_until(lambda: back.payloads == [b"while away"], "the waiting message")


def test_an_acknowledgement_of_an_earlier_connection_is_harmless(peers: Peers, broker: EmbeddedBroker) -> None:
    peer = peers.join("acker", session_expiry_s=300, acknowledges=False)
    peer.subscribe("muster/v1/f/ack")
    sender = peers.join("sender")
    sender.deliver("muster/v1/f/ack", b"1")
    wait_until(lambda: peer.payloads == [b"1"], "first delivery")
    stale = peer.received[0].token

    broker.restart()
    wait_until(lambda: peer.subscriptions == 2, "reconnected and subscribed again")
    for _ in range(3):
        peer.link.ack(stale)
    sender.deliver("muster/v1/f/ack", b"2")

    wait_until(lambda: b"2" in peer.payloads, "later message")
    assert peer.link.is_connected
    assert len(peer.connections) == 2


def test_a_link_comes_back_after_a_restart_and_subscribes_again(peers: Peers, broker: EmbeddedBroker) -> None:
    receiver = peers.join("receiver")
    receiver.subscribe(*[f"muster/v1/f/restart/{n}" for n in range(20)])
    sender = peers.join("sender")
    pid = broker.pid

    broker.restart()
    wait_until(lambda: receiver.subscriptions == 6, "20 filters, 8 at a time, subscribed again")
    sender.deliver("muster/v1/f/restart/19", b"again")

    wait_until(lambda: receiver.payloads == [b"again"], "message after the restart")
    assert broker.pid != pid
    assert receiver.link.counters.reconnects == 1
    assert any(isinstance(item, Disconnected) for item in receiver.items)


def test_a_killed_broker_is_started_again_and_links_recover(peers: Peers, broker: EmbeddedBroker) -> None:
    receiver = peers.join("receiver")
    receiver.subscribe("muster/v1/f/kill")
    sender = peers.join("sender")
    pid = broker.pid

    broker.kill()
    wait_until(lambda: not sender.link.is_connected, "loss noticed")
    mid = sender.link.publish("muster/v1/f/kill", b"queued meanwhile", qos=1)
    wait_until(lambda: receiver.subscriptions == 2, "receiver reconnected and subscribed again")
    wait_until(lambda: Delivered(mid) in sender.items, "queued message delivered")
    sender.deliver("muster/v1/f/kill", b"later")

    wait_until(lambda: b"later" in receiver.payloads, "message after the crash")
    assert broker.pid != pid


def test_a_payload_over_the_cap_is_counted_and_dropped_and_does_not_come_again(peers: Peers) -> None:
    receiver = peers.join("receiver", max_payload_bytes=1_000, session_expiry_s=300)
    receiver.subscribe("muster/v1/f/big")
    sender = peers.join("sender")

    sender.deliver("muster/v1/f/big", b"x" * 1_001)
    sender.deliver("muster/v1/f/big", b"y" * 1_000)

    wait_until(lambda: len(receiver.received) == 1, "the message within the cap")
    assert receiver.payloads == [b"y" * 1_000]
    assert receiver.link.counters.oversize_dropped == 1
    assert receiver.link.stop(timeout_s=2.0)
    again = peers.join("receiver", max_payload_bytes=1_000, session_expiry_s=300)
    sender.deliver("muster/v1/f/big", b"z")
    wait_until(lambda: b"z" in again.payloads, "a later message")
    assert again.link.counters.oversize_dropped == 0


def test_one_chunk_of_60_kib_reaches_twenty_subscribers(peers: Peers) -> None:
    topic = "muster/v1/f/release/" + "a" * 64 + "/chunk/0"
    waiting = [peers.join(f"device-{n}") for n in range(20)]
    for peer in waiting:
        peer.subscribe(topic, qos=0)
    chunk = random.Random(7).randbytes(60 * 1024)

    peers.join("sender").link.publish(topic, chunk, qos=0)

    wait_until(lambda: all(peer.payloads == [chunk] for peer in waiting), "the chunk everywhere")


def test_five_hundred_messages_arrive_in_order(peers: Peers) -> None:
    receiver = peers.join("receiver")
    receiver.subscribe("muster/v1/f/many")
    sender = peers.join("sender")

    for n in range(500):
        sender.link.publish("muster/v1/f/many", str(n).encode(), qos=1)

    wait_until(lambda: len(receiver.received) >= 500, "all of them")
    assert receiver.payloads == [str(n).encode() for n in range(500)]


def test_messages_of_four_threads_leave_without_waiting_for_the_next_tick(peers: Peers) -> None:
    sender = peers.join("sender")
    began = time.monotonic()

    def send_one_after_the_other(name: int) -> None:
        for n in range(50):
            sender.deliver(f"muster/v1/f/thread/{name}", str(n).encode())

    threads = [threading.Thread(target=send_one_after_the_other, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    # A wake-up that got lost would cost up to a second each.
    assert sum(isinstance(item, Delivered) for item in sender.items) == 200
    assert time.monotonic() - began < 5.0


def test_a_topic_of_seven_levels_and_dots_arrives(peers: Peers) -> None:
    topic = "muster/v1/f/device/d-1/rpc/version.1.4.0"
    receiver = peers.join("receiver")
    receiver.subscribe(topic, "muster/v1/f/device/+/rpc/#")

    peers.join("sender").deliver(topic, b"deep")

    wait_until(lambda: b"deep" in receiver.payloads, "the message")
    assert {item.topic for item in receiver.received} == {topic}


def test_a_wildcard_collects_the_events_of_all_devices_and_nothing_else(peers: Peers) -> None:
    controller = peers.join("controller")
    controller.subscribe("muster/v1/f/device/+/event")
    sender = peers.join("sender")

    for device in ("d1", "d2"):
        sender.deliver(f"muster/v1/f/device/{device}/twin", b"no")
        sender.deliver(f"muster/v1/f/device/{device}/event", device.encode())

    wait_until(lambda: len(controller.received) >= 2, "both events")
    assert controller.payloads == [b"d1", b"d2"]


def test_an_unsubscribed_filter_stays_quiet(peers: Peers) -> None:
    receiver = peers.join("receiver")
    receiver.subscribe("muster/v1/f/off", "muster/v1/f/on")
    receiver.link.unsubscribe(["muster/v1/f/off"])
    # The broker handles packets of one client in order: once this is through, so is the UNSUBSCRIBE.
    receiver.deliver("muster/v1/f/on", b"own")
    sender = peers.join("sender")

    sender.deliver("muster/v1/f/off", b"no")
    sender.deliver("muster/v1/f/on", b"yes")

    wait_until(lambda: b"yes" in receiver.payloads, "the message")
    assert receiver.payloads == [b"own", b"yes"]


def test_the_link_says_which_version_it_speaks(peers: Peers, broker: EmbeddedBroker) -> None:
    peer = peers.join("anyone")

    expected = {BrokerKind.MOSQUITTO: MqttVersion.V5, BrokerKind.NATS: MqttVersion.V311}[broker.kind]
    assert peer.items == [Connected(expected, session_present=False)]


def test_two_links_of_one_name_push_each_other_out_and_say_so(peers: Peers) -> None:
    first = peers.join("twin")

    peers.join("twin", connects=False)

    wait_until(lambda: any(isinstance(item, Disconnected) for item in first.items), "the loss")


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_retained_message_outlives_a_gentle_restart(kind: BrokerKind, tmp_path: Path) -> None:
    require(kind)
    with start_broker(kind, tmp_path, free_port()) as broker:
        broker.wait_ready(WAIT_S)
        peers = Peers(broker.url)
        peers.join("sender").deliver("muster/v1/f/trust/root", b"metadata", retain=True)

        broker.restart()
        broker.wait_ready(WAIT_S)
        late = peers.join("late")
        late.subscribe("muster/v1/f/trust/root")

        wait_until(lambda: late.payloads == [b"metadata"], "retained message")
        peers.leave()


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_an_unsupervised_broker_stays_down_until_it_is_told_to_start(kind: BrokerKind, tmp_path: Path) -> None:
    require(kind)
    with start_broker(kind, tmp_path, free_port(), supervised=False) as broker:
        broker.wait_ready(WAIT_S)
        pid = broker.pid

        broker.kill()

        with pytest.raises(BrokerUnavailable):
            broker.wait_ready(0.5)
        assert broker.pid == pid
        broker.restart()
        broker.wait_ready(WAIT_S)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_taken_port_is_refused_with_the_option_that_changes_it(kind: BrokerKind, tmp_path: Path) -> None:
    require(kind)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()

        with pytest.raises(BrokerUnavailable, match="--broker-port"):
            start_broker(kind, tmp_path, taken.getsockname()[1])


def test_a_broker_that_ends_at_once_is_reported_with_its_last_words(tmp_path: Path) -> None:
    class Broken:
        kick_socket = None

        def command(self, configuration: Path) -> list[str]:
            return [sys.executable, "-c", "import sys; sys.exit('the disk is on fire')"]

        def files(self, folder: Path, port: int, admission: Admission | None) -> dict[str, str]:
            return {}

    with EmbeddedBroker(BrokerKind.NATS, Broken(), tmp_path, free_port(), supervised=True) as broker:
        broker.start()

        with pytest.raises(BrokerUnavailable, match="the disk is on fire"):
            broker.wait_ready(WAIT_S)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_broker_ends_with_the_process_that_started_it(kind: BrokerKind, tmp_path: Path) -> None:
    require(kind)
    port = free_port()
    program = (
        "import pathlib, sys, time\n"
        "from muster_controller.broker.embedded import BrokerKind, start_broker\n"
        "broker = start_broker(BrokerKind(sys.argv[1]), pathlib.Path(sys.argv[2]), int(sys.argv[3]))\n"
        "broker.wait_ready(10)\n"
        "print(broker.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    command = [sys.executable, "-c", program, str(kind), str(tmp_path), str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert answers(port, timeout_s=WAIT_S)

        parent.send_signal(signal.SIGKILL)

    wait_until(lambda: not answers(port, timeout_s=1.0), "the port closed")
    wait_until(lambda: not _runs(pid), "the broker gone")


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        # An orphan whose new parent has not collected it yet has ended all the same.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
