"""What a secured broker lets whom do, held against every broker that can be embedded, with the clients of a thief.

Brokers drop what they refuse, mostly without a word; so each test looks at what the others really receive, behind a
fence: messages through the same subscriptions that arrive later. Real processes and sockets on 127.0.0.1.
"""

import socket
import ssl
from collections.abc import Iterator
from datetime import timedelta

import pytest
from paho.mqtt.enums import MQTTProtocolVersion

from harness.certificates import Leaf, SmallCa
from harness.guarded_broker import FLEET, SHA256, WAIT_S, Guarded, Peer, until
from muster_controller.broker.embedded import BrokerKind, BrokerUnavailable, EmbeddedBroker, find_broker
from muster_controller.broker.permissions import Access, Role, allows, filters
from muster_shared.ids import DeviceId
from muster_shared.topics import Channel

pytestmark = [pytest.mark.broker, pytest.mark.timeout(90)]

V311, V5 = MQTTProtocolVersion.MQTTv311, MQTTProtocolVersion.MQTTv5
BROKERS = [(BrokerKind.MOSQUITTO, V311), (BrokerKind.MOSQUITTO, V5), (BrokerKind.NATS, V311)]
DEVICES = ("owner", "rogue", "bystander")
MIXERS = ("m1", "m2")
PREFIX = f"muster/v1/{FLEET}"
OWNER = f"{PREFIX}/device/owner"
ROGUE = f"{PREFIX}/device/rogue"
CONTROLLER = f"controller.{FLEET}"

FORBIDDEN = [
    *(f"{OWNER}/{channel.value}" for channel in Channel),
    f"{ROGUE}/assignment",
    f"{ROGUE}/ack",
    f"{PREFIX}/controller",
    f"{PREFIX}/trust/root",
    f"{PREFIX}/release/{SHA256}/chunk/0",
    f"{PREFIX}/device/{CONTROLLER}/event",
    f"{PREFIX}/mixed/m1",
    f"{PREFIX}/mixed/m1/ack",
    f"{PREFIX}/mixed/m1/state",
    "muster/v1/other/device/rogue/event",
    "$SYS/broker/uptime",
    "$MQTT/sub/anything",
]
REACHING = [
    *(f"{OWNER}/{channel.value}" for channel in Channel),
    f"{OWNER}/+",
    f"{OWNER}/#",
    f"{PREFIX}/device/+/assignment",
    f"{PREFIX}/device/+/twin",
    f"{PREFIX}/+/owner/ack",
    f"{PREFIX}/release/+/want",
    f"{PREFIX}/metrics/3",
    f"{PREFIX}/metrics/+",
    f"{PREFIX}/mixed/+",
    f"{PREFIX}/mixed/m1/ack",
    f"{PREFIX}/#",
    "+/#",
    "#",
    f"$share/thieves/{OWNER}/assignment",
    f"$share/thieves/{PREFIX}/device/+/event",
    "$share/thieves/#",
    "$SYS/#",
    "$MQTT/#",
    "$MQTT/sub/+",
]


RAW = [
    f"{PREFIX}/metrics/3",
    f"{PREFIX}/metrics/+",
    f"{PREFIX}/metrics/#",
    f"{PREFIX}/+/3",
    f"{PREFIX}/+/+",
    f"{PREFIX}/#",
    "muster/v1/+/metrics/3",
    "muster/+/+/metrics/+",
    "+/+/+/+/+",
    "+/#",
    "#",
    f"$share/mixers/{PREFIX}/metrics/3",
    f"$share/mixers/{PREFIX}/metrics/+",
    "$share/mixers/#",
    "$MQTT/sub/+",
]
"""What the controller, or somebody who is not the mixer, may ask for to see windows."""
MIXED = f"{PREFIX}/mixed"


@pytest.fixture(scope="module", params=BROKERS, ids=lambda one: f"{one[0]}-{one[1].name}")
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    kind, version = request.param
    require(kind)
    guarded = Guarded.make(tmp_path_factory.mktemp(str(kind)), kind, version, DEVICES)
    guarded.mixers.update(MIXERS)
    with guarded.start():
        yield guarded


@pytest.fixture
def guarded(running: Guarded) -> Iterator[Guarded]:
    yield running
    running.leave()


@pytest.fixture(params=[BrokerKind.MOSQUITTO, BrokerKind.NATS], ids=str)
def fresh(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """A broker of one test's own, which revokes and restarts."""
    kind: BrokerKind = request.param
    require(kind)
    guarded = Guarded.make(tmp_path_factory.mktemp(str(kind)), kind, V311, DEVICES)
    guarded.mixers.update(MIXERS)
    with guarded.start():
        yield guarded
        guarded.leave()


def require(kind: BrokerKind) -> None:
    try:
        find_broker(kind)
    except BrokerUnavailable as error:
        pytest.skip(str(error))


def test_a_device_may_send_all_that_is_its_own_and_gets_all_that_is_for_it(guarded: Guarded) -> None:
    controller, owner = guarded.controller(), guarded.device("owner")

    guarded.fence(controller, owner, "owner")  # One message through every row of the table.

    assert {topic for topic, _ in owner.received} == {
        f"{OWNER}/assignment",
        f"{OWNER}/ack",
        f"{OWNER}/call",
        f"{PREFIX}/controller",
        f"{PREFIX}/trust/{SHA256}",
        f"{PREFIX}/release/{SHA256}/chunk/0",
    }
    assert {topic for topic, _ in controller.received} == {
        f"{OWNER}/twin",
        f"{OWNER}/presence",
        f"{OWNER}/event",
        f"{OWNER}/answer",
        f"{PREFIX}/release/{SHA256}/want",
    }


def test_retained_messages_of_its_own_reach_a_device_that_comes_later(guarded: Guarded) -> None:
    controller = guarded.controller()
    controller.publish(f"{OWNER}/assignment", b"desired", retain=True)
    controller.publish(f"{PREFIX}/trust/timestamp", b"metadata", retain=True)

    owner = guarded.device("owner")

    owner.wait(lambda: {b"desired", b"metadata"} <= set(owner.payloads), "both")


def test_nothing_that_a_device_sends_elsewhere_reaches_anybody(guarded: Guarded) -> None:
    controller, owner, rogue = guarded.controller(), guarded.device("owner"), guarded.join("rogue")

    for topic in FORBIDDEN:
        for qos in (0, 1):
            rogue.publish(topic, b"forged", qos=qos, retain=True)
        assert not rogue.was_cut or guarded.kind is BrokerKind.NATS, topic
        if rogue.was_cut:
            rogue = guarded.join("rogue")
    guarded.fence(controller, owner, "owner")
    again(controller, filters(Role.CONTROLLER, Access.SUBSCRIBE, FLEET))
    again(owner, filters(Role.DEVICE, Access.SUBSCRIBE, FLEET, "owner"))
    guarded.fence(controller, owner, "owner")

    assert [topic for topic, payload in controller.received + owner.received if payload == b"forged"] == []


def test_a_will_elsewhere_is_not_published(guarded: Guarded) -> None:
    controller, owner = guarded.controller(), guarded.device("owner")

    for topic in (f"{OWNER}/presence", f"{OWNER}/twin", f"{OWNER}/assignment", f"{PREFIX}/controller"):
        rogue = guarded.join("rogue", will=topic)
        if rogue.is_in:  # NATS does not even let it in.
            rogue.sever()
            guarded.join("rogue").leave()  # The broker is through with the one before, then.
    guarded.fence(controller, owner, "owner")
    again(controller, filters(Role.CONTROLLER, Access.SUBSCRIBE, FLEET))
    guarded.fence(controller, owner, "owner")

    assert b"forged" not in controller.payloads + owner.payloads


def test_the_will_of_a_device_on_its_own_presence_is_published(guarded: Guarded) -> None:
    controller = guarded.controller()
    leaver = guarded.join("bystander", will=f"{PREFIX}/device/bystander/presence")

    leaver.sever()

    controller.wait(lambda: (f"{PREFIX}/device/bystander/presence", b"forged") in controller.received, "the will")
    controller.publish(f"{PREFIX}/controller", b"")
    guarded.join("bystander").publish(f"{PREFIX}/device/bystander/presence", b"", retain=True)


@pytest.mark.parametrize("asked", REACHING)
def test_a_subscription_that_reaches_further_brings_nothing_of_others(guarded: Guarded, asked: str) -> None:
    controller, owner, rogue = guarded.controller(), guarded.device("owner"), guarded.join("rogue")
    controller.publish(f"{OWNER}/assignment", b"kept", retain=True)
    owner.publish(f"{OWNER}/twin", b"kept", retain=True)

    granted = rogue.subscribe(asked)
    for _ in range(2):  # Twice: of a shared subscription, every member gets a part.
        guarded.fence(controller, owner, "owner")
    rogue_hears(guarded, controller, rogue)

    foreign = [topic for topic, _ in rogue.received if not allows("rogue", Access.SUBSCRIBE, topic, FLEET)]
    assert foreign == []
    assert granted == [guarded.kind is BrokerKind.MOSQUITTO], "Mosquitto grants, and then delivers nothing"


def test_the_controller_may_not_speak_for_devices(guarded: Guarded) -> None:
    controller, owner = guarded.controller(), guarded.device("owner")

    for channel in (Channel.TWIN, Channel.PRESENCE, Channel.EVENT, Channel.ANSWER):
        controller.publish(f"{OWNER}/{channel.value}", b"forged", retain=True)
    guarded.fence(controller, owner, "owner")

    assert b"forged" not in controller.payloads


# -- windows, and who mixes them --------------------------------------------------------------------------------------


def test_a_window_reaches_the_mixer_and_its_sums_the_controller_and_the_answer_the_mixer(guarded: Guarded) -> None:
    controller, owner, mixer = guarded.controller(), guarded.device("owner"), guarded.mixer("m1")

    owner.publish(f"{PREFIX}/metrics/3", b"window")
    mixer.wait(lambda: b"window" in mixer.payloads, "the window")
    for topic in (f"{MIXED}/m1", f"{MIXED}/m1/state"):
        mixer.publish(topic, b"sums")
    controller.wait(lambda: controller.payloads.count(b"sums") == 2, "sums and state")
    controller.publish(f"{MIXED}/m1/ack", b"safe")

    mixer.wait(lambda: (f"{MIXED}/m1/ack", b"safe") in mixer.received, "the acknowledgement")
    assert b"window" not in controller.payloads


@pytest.mark.parametrize("asked", RAW)
def test_the_controller_is_refused_on_the_raw_topic_while_the_mixer_hears_it(guarded: Guarded, asked: str) -> None:
    controller, owner, mixer = guarded.controller(), guarded.device("owner"), guarded.mixer("m1")

    granted = controller.subscribe(asked)
    for number in range(3):  # Of a shared subscription, every member gets a part.
        owner.publish(f"{PREFIX}/metrics/3", f"window {number}".encode(), retain=number == 2)
    mixer.wait(lambda: b"window 2" in mixer.payloads, "the windows")
    guarded.fence(controller, owner, "owner")
    controller.unsubscribe([asked])
    controller.subscribe(asked)  # For what is retained.
    guarded.fence(controller, owner, "owner")
    mixer.publish(f"{MIXED}/m1", b"fence")
    controller.wait(lambda: b"fence" in controller.payloads, "what comes from the mixer")
    owner.publish(f"{PREFIX}/metrics/3", b"", retain=True)

    assert [topic for topic, _ in controller.received if "/metrics/" in topic] == []
    assert granted == [guarded.kind is BrokerKind.MOSQUITTO], "Mosquitto grants, and then delivers nothing"


def test_a_second_connection_with_the_controllers_certificate_hears_no_windows_either(guarded: Guarded) -> None:
    owner, mixer = guarded.device("owner"), guarded.mixer("m1")
    thief = guarded.join(CONTROLLER, client_id="thief")

    thief.subscribe(*RAW)
    owner.publish(f"{PREFIX}/metrics/3", b"window")
    mixer.wait(lambda: b"window" in mixer.payloads, "the window")
    assert all(thief.subscribe(f"{OWNER}/event"))
    owner.publish(f"{OWNER}/event", b"after it")
    thief.wait(lambda: b"after it" in thief.payloads, "what it may hear")

    assert b"window" not in thief.payloads


def test_the_controller_sends_no_windows_and_speaks_for_no_mixer(guarded: Guarded) -> None:
    controller, owner, mixer = guarded.controller(), guarded.device("owner"), guarded.mixer("m1")

    for topic in (f"{PREFIX}/metrics/3", f"{MIXED}/m1", f"{MIXED}/m1/state"):
        for qos in (0, 1):
            controller.publish(topic, b"forged", qos=qos, retain=True)
    owner.publish(f"{PREFIX}/metrics/3", b"fence")
    mixer.publish(f"{MIXED}/m1", b"fence")
    mixer.wait(lambda: b"fence" in mixer.payloads, "the fence at the mixer")
    controller.wait(lambda: b"fence" in controller.payloads, "the fence at the controller")
    again(mixer, filters(Role.MIXER, Access.SUBSCRIBE, FLEET, "m1"))
    again(controller, filters(Role.CONTROLLER, Access.SUBSCRIBE, FLEET))
    guarded.fence(controller, owner, "owner")

    assert b"forged" not in mixer.payloads + controller.payloads


def test_a_mixer_speaks_neither_for_another_nor_for_anybody_else(guarded: Guarded) -> None:
    controller, owner = guarded.controller(), guarded.device("owner")
    victim, rogue = guarded.mixer("m1"), guarded.mixer("m2")

    for topic in (
        *(f"{MIXED}/m1{channel}" for channel in ("", "/state", "/ack")),
        f"{MIXED}/m2/ack",
        *(f"{OWNER}/{channel.value}" for channel in Channel),
        *(f"{PREFIX}/{rest}" for rest in ("controller", "trust/root", f"release/{SHA256}/chunk/0")),
    ):
        rogue.publish(topic, b"forged", retain=True)
        if rogue.was_cut:
            assert guarded.kind is BrokerKind.NATS, topic
            rogue = guarded.mixer("m2")
    rogue.publish(f"{MIXED}/m2", b"own")
    controller.wait(lambda: b"own" in controller.payloads, "what is its own")
    guarded.fence(controller, owner, "owner")
    again(controller, filters(Role.CONTROLLER, Access.SUBSCRIBE, FLEET))
    again(owner, filters(Role.DEVICE, Access.SUBSCRIBE, FLEET, "owner"))
    again(victim, filters(Role.MIXER, Access.SUBSCRIBE, FLEET, "m1"))
    guarded.fence(controller, owner, "owner")

    assert b"forged" not in controller.payloads + owner.payloads + victim.payloads


@pytest.mark.parametrize("name", ["rogue", f"mixer.m9.{FLEET}", "mixer.m1.other"])
def test_who_is_no_mixer_of_the_fleet_hears_no_windows(guarded: Guarded, name: str) -> None:
    owner, mixer = guarded.device("owner"), guarded.mixer("m1")
    rogue = guarded.join(name)

    if rogue.is_in:
        rogue.subscribe(*RAW)
    owner.publish(f"{PREFIX}/metrics/3", b"window", retain=True)
    mixer.wait(lambda: b"window" in mixer.payloads, "the window")
    if rogue.is_in:
        rogue.subscribe(*RAW)
        guarded.controller().publish(f"{PREFIX}/controller", b"for all")
        if rogue.subscribe(f"{PREFIX}/controller") == [True]:
            guarded.peers[-1].publish(f"{PREFIX}/controller", b"fence")
            rogue.wait(lambda: b"fence" in rogue.payloads, "what is for all")
    owner.publish(f"{PREFIX}/metrics/3", b"", retain=True)

    assert b"window" not in rogue.payloads
    assert rogue.is_in is (guarded.kind is BrokerKind.MOSQUITTO or name == "rogue")


def test_a_mixer_that_is_admitted_comes_in_and_one_that_is_revoked_is_cut_and_hears_nothing(fresh: Guarded) -> None:
    owner, late = fresh.device("owner"), "m3"
    fresh.mixers.add(late)
    fresh.broker.refresh()
    until(lambda: fresh.join(f"mixer.{late}.{FLEET}", client_id="m3").is_in, "the late one in")
    mixer, others = fresh.mixer(late), fresh.mixer("m1")

    def hears() -> bool:
        owner.publish(f"{PREFIX}/metrics/3", b"window")
        return b"window" in mixer.payloads

    until(hears, "a window")
    fresh.ca.revoke(fresh.ca.leaf(f"mixer.{late}.{FLEET}"))
    fresh.mixers.discard(late)
    fresh.revoked.add(DeviceId(f"mixer.{late}.{FLEET}"))
    fresh.broker.refresh()

    mixer.wait(lambda: mixer.was_cut, "the connection cut")
    until(lambda: not fresh.join(f"mixer.{late}.{FLEET}", client_id="m3").is_in, "the door shut")
    owner.publish(f"{PREFIX}/metrics/3", b"after it")
    others.wait(lambda: b"after it" in others.payloads, "a window at the other mixer")
    assert b"after it" not in mixer.payloads
    assert not others.was_cut
    assert not owner.was_cut


def test_nobody_comes_in_without_a_certificate(guarded: Guarded) -> None:
    peer = Peer(guarded.broker.port, "rogue", ca=guarded.ca.root_file, leaf=None, version=guarded.version)

    assert not peer.is_in
    peer.leave()


def test_nobody_comes_in_without_tls(guarded: Guarded) -> None:
    with socket.create_connection(("127.0.0.1", guarded.broker.port), timeout=WAIT_S) as sock:
        sock.sendall(b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x0a\x00\x00")

        try:
            answer = sock.recv(4)
        except ConnectionResetError:
            answer = b""

    assert not answer.startswith(b"\x20"), "a CONNACK without TLS"


@pytest.mark.parametrize("name", ["rogue", CONTROLLER])
def test_a_certificate_of_another_ca_is_refused(guarded: Guarded, name: str) -> None:
    foreign = SmallCa.make(guarded.folder / "foreign", FLEET)

    assert not guarded.join(name, leaf=foreign.leaf(name)).is_in


@pytest.mark.parametrize("name", ["rogue", "controller.other", CONTROLLER])
def test_a_certificate_of_another_fleet_under_the_same_root_is_refused(guarded: Guarded, name: str) -> None:
    other = SmallCa.make(guarded.folder / "other", "other", under=guarded.ca)

    assert not guarded.join(name, leaf=other.leaf(name)).is_in


def test_an_expired_certificate_is_refused(guarded: Guarded) -> None:
    ends = timedelta(seconds=-1)

    assert not guarded.join("rogue", leaf=guarded.ca.leaf("rogue", ends=ends, file="expired")).is_in


def test_a_certificate_of_a_server_does_not_make_a_client(guarded: Guarded) -> None:
    assert not guarded.join("rogue", leaf=guarded.ca.leaf("rogue", server_names=["localhost"], file="server")).is_in


def test_a_certificate_that_signed_itself_is_refused(guarded: Guarded) -> None:
    root = SmallCa.make(guarded.folder / "self", FLEET)
    lone = guarded.folder / "self" / "lone.pem"
    lone.write_bytes(root.leaf("rogue").certificate.read_bytes().split(b"-----END CERTIFICATE-----\n")[0])
    lone.write_bytes(lone.read_bytes() + b"-----END CERTIFICATE-----\n")

    assert not guarded.join("rogue", leaf=Leaf(lone, root.leaf("rogue").key)).is_in


@pytest.mark.parametrize("keeps_session", [False, True])
def test_who_takes_the_client_id_of_another_gets_none_of_its_messages(guarded: Guarded, keeps_session: bool) -> None:
    controller, owner = guarded.controller(), guarded.device("owner", keeps_session=True)

    thieves = [
        guarded.join("rogue", client_id=stolen, keeps_session=keeps_session)
        for stolen in (f"muster-{FLEET}-owner", "owner")
    ]
    controller.publish(f"{OWNER}/assignment", b"secret", retain=True)
    if guarded.kind is BrokerKind.NATS:
        owner.wait(lambda: owner.was_cut, "pushed out, as the docs say")
        owner = back(guarded, "owner")
    guarded.fence(controller, owner, "owner")
    for thief in thieves:
        if not thief.was_cut and thief.is_in:
            rogue_hears(guarded, controller, thief)

    assert b"secret" in owner.payloads
    for thief in thieves:
        assert {topic for topic, _ in thief.received} <= {f"{ROGUE}/ack", f"{PREFIX}/controller", f"{PREFIX}/trust/x"}


def test_mosquitto_gives_everybody_the_client_id_of_the_certificate(guarded: Guarded) -> None:
    if guarded.kind is not BrokerKind.MOSQUITTO:
        pytest.skip("NATS binds client ids to nobody; docs/brokers.md says what that means")
    controller, owner = guarded.controller(), guarded.device("owner", keeps_session=True)

    for stolen in (f"muster-{FLEET}-owner", "owner", CONTROLLER, f"muster-controller-{FLEET}"):
        assert guarded.join("rogue", client_id=stolen).is_in
    guarded.fence(controller, owner, "owner")

    assert not owner.was_cut
    assert not controller.was_cut


def test_a_certificate_that_says_its_name_in_the_subject_alone_will_do_for_mosquitto(guarded: Guarded) -> None:
    controller = guarded.controller()
    plain = guarded.join("owner", leaf=guarded.ca.leaf("owner", file="plain", has_urn=False))

    if guarded.kind is BrokerKind.NATS:  # It would compare every user with the subject, for each connection.
        assert not plain.is_in
        return
    plain.publish(f"{OWNER}/event", b"plain")
    controller.wait(lambda: b"plain" in controller.payloads, "its event")


def test_a_readiness_probe_disturbs_nobody(guarded: Guarded) -> None:
    controller, owner = guarded.controller(), guarded.device("owner")

    guarded.broker.wait_ready(WAIT_S)
    guarded.fence(controller, owner, "owner")

    assert not controller.was_cut
    assert not owner.was_cut


def test_a_revoked_device_is_cut_within_seconds_and_does_not_come_back_and_nobody_else_notices(fresh: Guarded) -> None:
    controller, owner, rogue = fresh.controller(), fresh.device("owner"), fresh.device("rogue")
    pid = fresh.broker.pid

    revoke(fresh, "rogue")

    rogue.wait(lambda: rogue.was_cut, "the connection cut")
    until(lambda: not fresh.join("rogue").is_in, "the door shut")
    fresh.fence(controller, owner, "owner")
    assert not controller.was_cut
    assert not owner.was_cut
    assert fresh.broker.pid == pid


def test_a_revoked_device_stays_out_after_a_restart_and_after_a_crash(fresh: Guarded) -> None:
    revoke(fresh, "rogue")
    fresh.broker.restart()
    fresh.broker.wait_ready(WAIT_S)

    assert not fresh.join("rogue").is_in
    assert fresh.join("owner").is_in

    crash(fresh.broker)
    assert not fresh.join("rogue").is_in
    assert fresh.join("owner").is_in


def test_another_certificate_of_a_revoked_device_gives_it_no_rights(fresh: Guarded) -> None:
    controller, owner = fresh.controller(), fresh.device("owner")
    spare = fresh.ca.leaf("rogue", file="spare")  # Not on the list of revoked certificates: the name decides.

    revoke(fresh, "rogue")
    until(lambda: not fresh.join("rogue").is_in, "the door shut")
    thief = fresh.join("rogue", leaf=spare)
    if thief.is_in:
        thief.subscribe(*filters(Role.DEVICE, Access.SUBSCRIBE, FLEET, "rogue"))
        thief.publish(f"{ROGUE}/event", b"forged")
    fresh.fence(controller, owner, "owner")
    controller.publish(f"{ROGUE}/assignment", b"secret")
    fresh.fence(controller, owner, "owner")

    assert b"forged" not in controller.payloads
    assert thief.received == []
    assert thief.is_in is (fresh.kind is BrokerKind.MOSQUITTO), "Mosquitto knows it by the list alone"


def test_a_will_left_by_a_revoked_device_is_not_published(fresh: Guarded) -> None:
    controller, owner = fresh.controller(), fresh.device("owner")
    rogue = fresh.join("rogue", will=f"{OWNER}/presence")

    revoke(fresh, "rogue")
    if rogue.is_in:
        rogue.wait(lambda: rogue.was_cut, "the connection cut")
    fresh.fence(controller, owner, "owner")

    assert b"forged" not in controller.payloads


def test_a_device_that_is_accepted_later_comes_in_without_a_restart(fresh: Guarded) -> None:
    controller, owner = fresh.controller(), fresh.device("owner")
    early = fresh.join("late")

    fresh.devices.add(DeviceId("late"))
    fresh.broker.refresh()

    until(lambda: fresh.join("late").is_in, "the late one in")
    late = fresh.device("late")
    fresh.fence(controller, late, "late")
    assert early.is_in is (fresh.kind is BrokerKind.MOSQUITTO), "Mosquitto takes any certificate of the CA"
    assert not controller.was_cut
    assert not owner.was_cut


def test_revoking_right_after_a_restart_is_not_lost(fresh: Guarded) -> None:
    fresh.broker.restart()

    revoke(fresh, "rogue")  # Perhaps the program does not listen to signals yet.
    fresh.broker.wait_ready(WAIT_S)

    until(lambda: not fresh.join("rogue").is_in, "the door shut")
    assert fresh.join("owner").is_in


def test_a_renewed_certificate_of_the_broker_is_shown_to_new_connections_and_cuts_none(fresh: Guarded) -> None:
    owner, controller = fresh.device("owner"), fresh.controller()
    shown = fresh.ca.leaf("broker")
    renewed = fresh.ca.leaf("broker", server_names=("localhost",), file="renewed")
    before = serial_shown(fresh)

    renewed.key.replace(shown.key)
    renewed.certificate.replace(shown.certificate)
    fresh.broker.reload_certificates()

    until(lambda: serial_shown(fresh) != before, "the new certificate")
    fresh.fence(controller, owner, "owner")
    assert not owner.was_cut


def test_certificates_of_a_ca_that_was_added_are_taken_after_a_reload(fresh: Guarded) -> None:
    controller, owner = fresh.controller(), fresh.device("owner")
    added = SmallCa.make(fresh.folder / "added", FLEET)
    assert not fresh.join("rogue", leaf=added.leaf("rogue")).is_in

    fresh.ca.roots.write_bytes(fresh.ca.roots.read_bytes() + added.roots.read_bytes())
    fresh.ca.crl.write_bytes(fresh.ca.crl.read_bytes() + added.crl.read_bytes())
    fresh.broker.refresh()

    until(lambda: fresh.join("rogue", leaf=added.leaf("rogue")).is_in, "the other CA's")
    fresh.fence(controller, owner, "owner")
    assert not owner.was_cut


def revoke(guarded: Guarded, name: str) -> None:
    guarded.ca.revoke(guarded.ca.leaf(name))
    guarded.revoked.add(DeviceId(name))
    guarded.devices.discard(DeviceId(name))
    guarded.broker.refresh()


def crash(broker: EmbeddedBroker) -> None:
    before = broker.pid
    broker.kill()
    until(lambda: broker.pid != before, "started again")
    broker.wait_ready(WAIT_S)


def back(guarded: Guarded, name: str) -> Peer:
    """Return the device, in again: NATS makes an id that is fought for wait for a second."""
    until(lambda: guarded.join(name, keeps_session=True).is_in, f"{name} back")
    peer = guarded.peers[-1]
    assert all(peer.subscribe(*filters(Role.DEVICE, Access.SUBSCRIBE, FLEET, name)))
    return peer


def again(peer: Peer, wanted: tuple[str, ...]) -> None:
    """Subscribe anew, to get what is retained."""
    peer.unsubscribe(wanted)
    assert all(peer.subscribe(*wanted))


def rogue_hears(guarded: Guarded, controller: Peer, rogue: Peer) -> None:
    """Return once the rogue has what came before: one message through each subscription of its own."""
    guarded.marks += 1
    mark = f"to the rogue {guarded.marks}".encode()
    assert all(rogue.subscribe(f"{ROGUE}/ack", f"{PREFIX}/controller", f"{PREFIX}/trust/x"))
    for topic in (f"{ROGUE}/ack", f"{PREFIX}/controller", f"{PREFIX}/trust/x"):
        controller.publish(topic, mark)
    rogue.wait(lambda: len({topic for topic, payload in rogue.received if payload == mark}) == 3, "the fence")


def serial_shown(guarded: Guarded) -> str:
    """Return the serial number of the certificate that the broker shows now."""
    context = guarded.ca.controller.context(guarded.ca.root_file)
    with (
        socket.create_connection(("127.0.0.1", guarded.broker.port), timeout=WAIT_S) as sock,
        context.wrap_socket(sock, server_hostname="localhost") as tls,
    ):
        shown = tls.getpeercert()
        assert shown is not None
        serial = shown["serialNumber"]
        assert isinstance(serial, str)
        return serial


def test_the_certificates_of_the_harness_are_what_they_seem(guarded: Guarded) -> None:
    context = guarded.ca.leaf("rogue").context(guarded.ca.root_file)

    assert context.verify_mode is ssl.CERT_REQUIRED
    assert guarded.join("rogue").is_in
