"""Alerts on a topic of somebody's own broker: real brokers, with and without TLS, passwords and client certificates."""

import random
from pathlib import Path

import msgspec
import pytest

from harness.certificates import SmallCa
from harness.guarded_broker import free_port
from harness.plant import PASSWORD, TOPIC, WAIT_S, has_mosquitto, running_mosquitto, subscribed
from muster_controller.alerts.errors import ReceiverInvalid, TellingFailed
from muster_controller.alerts.mqtt import Login, Publisher, check_target, parse_target
from muster_controller.alerts.telling import LONGEST_S, Teller
from muster_controller.broker.embedded import BrokerKind, BrokerUnavailable, start_broker
from muster_controller.core.alerts.grouping import Body, body
from muster_controller.db.engine import find_database
from muster_controller.db.ledger import SqlLedger
from muster_controller.db.receiver_store import Kind, Receiver, ReceiverStore
from muster_controller.db.side import SideDatabase
from muster_shared.link import BrokerAddress, LinkConfig, parse_broker_url

pytestmark = [pytest.mark.broker, pytest.mark.timeout(120)]

NOW = 1_800_000_000.0


def said() -> Body:
    return body("alert.firing", "[lab] page: drift, digits", "It drifts.", {"rule": "drift"}, NOW)


def to(address: str, login: Login | None = None) -> Receiver:
    return Receiver("plant", Kind.MQTT, address, secret=check_target(address, login or Login()), created_by="anna")


# -- without TLS -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [BrokerKind.MOSQUITTO, BrokerKind.NATS])
def test_an_alert_is_one_message_that_is_not_retained(tmp_path: Path, kind: BrokerKind) -> None:
    """By MQTT 5, and by 3.1.1, which is all that NATS speaks."""
    port = free_port()
    try:
        broker = start_broker(kind, tmp_path / "broker", port)
    except BrokerUnavailable as error:
        pytest.skip(str(error))
    try:
        broker.wait_ready(WAIT_S)
        with subscribed(LinkConfig(parse_broker_url(broker.url), "plant")) as subscriber:
            Publisher().send(to(f"mqtt://127.0.0.1:{port}/{TOPIC}"), "n-1", said(), NOW)
            (message,) = subscriber.wait(1)
        with subscribed(LinkConfig(parse_broker_url(broker.url), "late")) as late:
            Publisher().send(to(f"mqtt://127.0.0.1:{port}/{TOPIC}"), "n-2", said(), NOW)
            (second,) = late.wait(1)
    finally:
        broker.stop()

    assert message.topic == TOPIC
    assert msgspec.json.decode(message.payload) == {"id": "n-1", **msgspec.json.decode(msgspec.json.encode(said()))}
    assert msgspec.json.decode(second.payload)["id"] == "n-2"


def test_a_broker_that_is_away_is_tried_again_with_the_same_id_until_it_is_back(tmp_path: Path) -> None:
    if not has_mosquitto():
        pytest.skip("no Mosquitto")
    now, port, where = [NOW], free_port(), tmp_path / "muster.db"
    with SqlLedger(where, lambda: now[0]):
        pass  # It migrates.
    with SideDatabase(find_database(where)) as side:
        store = ReceiverStore(side, lambda: now[0])
        teller = Teller(store, {Kind.MQTT: Publisher(total_s=1.0)}, lambda: now[0], random.Random(7))
        store.add(to(f"mqtt://127.0.0.1:{port}/{TOPIC}"))
        store.tell([("n-1", "plant", said())])
        first = teller.turn()
        error = store.queues()["plant"].error
        broker = start_broker(BrokerKind.MOSQUITTO, tmp_path / "broker", port)
        try:
            broker.wait_ready(WAIT_S)
            with subscribed(LinkConfig(parse_broker_url(broker.url), "plant")) as subscriber:
                now[0] += LONGEST_S
                teller = Teller(store, {Kind.MQTT: Publisher()}, lambda: now[0], random.Random(7))
                second = teller.turn()
                (message,) = subscriber.wait(1)
        finally:
            broker.stop()
        queue = store.queues()["plant"]

    assert (first, second) == (0, 1)
    assert "refused" in error
    assert "127.0.0.1" not in error
    assert msgspec.json.decode(message.payload)["id"] == "n-1"
    assert (queue.told, queue.waiting) == (1, 0)


# -- with TLS ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_certificate", [False, True])
def test_a_broker_of_others_is_convinced_by_a_password_or_by_a_certificate(
    tmp_path: Path, by_certificate: bool
) -> None:
    with running_mosquitto(tmp_path, by_certificate=by_certificate) as broker, subscribed(broker.reader) as subscriber:
        Publisher().send(to(broker.address, broker.login), "n-1", said(), NOW)

        (message,) = subscriber.wait(1)

    assert message.topic == TOPIC
    assert msgspec.json.decode(message.payload)["id"] == "n-1"


def test_a_broker_that_nobody_vouches_for_and_one_that_refuses_are_told_apart_and_nothing_is_given_away(
    tmp_path: Path,
) -> None:
    with running_mosquitto(tmp_path, by_certificate=False) as broker:
        other = SmallCa.make(tmp_path / "other", "other")
        foreign = Login(password=PASSWORD, ca=other.roots.read_text())
        wrong = Login(password="guessed", ca=broker.ca.roots.read_text())
        elsewhere = to(broker.address.replace(TOPIC, "plant/8/alerts"), broker.login)

        with pytest.raises(TellingFailed, match="certificate verify failed") as unknown:
            Publisher(total_s=2.0).send(to(broker.address, foreign), "n-1", said(), NOW)
        with pytest.raises(TellingFailed, match=r"[Nn]ot authorized") as refused:
            Publisher(total_s=2.0).send(to(broker.address, wrong), "n-1", said(), NOW)
        with pytest.raises(TellingFailed, match=r"does not take it: [Nn]ot authorized"):
            Publisher().send(elsewhere, "n-1", said(), NOW)

    for error in (unknown, refused):
        assert "127.0.0.1" not in error.value.said
        assert PASSWORD not in error.value.said


# -- addresses ---------------------------------------------------------------------------------------------------------


def test_an_address_names_a_user_a_port_and_a_topic_of_any_depth() -> None:
    target = parse_target("mqtts://muster%40plant@broker.example:8884/plant%207/alerts/muster")

    assert target.topic == "plant 7/alerts/muster"
    assert target.broker == BrokerAddress("broker.example", 8884, tls=True, username="muster@plant")
    assert parse_target("mqtt://10.0.0.7/alerts").broker.port == 1883


@pytest.mark.parametrize(
    "address",
    [
        "mqtts://broker.example",
        "mqtts://broker.example/",
        "mqtts://user:secret@broker.example/alerts",
        "https://broker.example/alerts",
        "mqtts:///alerts",
        "mqtts://broker.example/alerts/%23",
        "mqtts://broker.example/alerts/#",
        "mqtts://broker.example/alerts?",
        "mqtts://broker.example/alerts/+/x",
        "mqtts://broker.example/$SYS/alerts",
        "mqtts://broker.example/a%00b",
        "mqtts://broker.example/a?qos=0",
        "mqtts://broker.example/a#b",
        "mqtts://broker.example:99999/a",
        "mqtts://broker.example/a b",
        "mqtts://broker.example/" + 600 * "a",
    ],
)
def test_what_is_no_topic_of_a_broker_is_refused_and_not_repeated(address: str) -> None:
    with pytest.raises(ReceiverInvalid) as refused:
        parse_target(address)

    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("address", "login"),
    [
        ("mqtt://muster@broker.example/alerts", Login(password="secret")),
        ("mqtt://broker.example/alerts", Login(ca="-----BEGIN CERTIFICATE-----")),
        ("mqtts://broker.example/alerts", Login(password="secret")),
        ("mqtts://muster@broker.example/alerts", Login()),
        ("mqtts://broker.example/alerts", Login(ca="secret")),
        ("mqtts://broker.example/alerts", Login(certificate="-----BEGIN CERTIFICATE----- secret")),
    ],
)
def test_a_login_that_cannot_hold_is_refused_and_not_repeated(address: str, login: Login) -> None:
    with pytest.raises(ReceiverInvalid) as refused:
        check_target(address, login)

    assert "secret" not in str(refused.value)
