"""Attacks on the way between devices and broker: a real agent with a certificate, on a real broker that asks for one.

What each broker grants whom is held by `contract/test_broker_permissions`; here it is what a whole device is worth to
somebody who has stolen another one, or who sits on the line.
"""

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from paho.mqtt.enums import MQTTProtocolVersion

from attack import forgeries
from attack.stage import Line, Stage, begin
from harness.certificates import SmallCa
from harness.fleet_of_one import DEVICE, MODEL, own_broker, wait_until
from harness.guarded_broker import FLEET, Guarded, Peer
from muster_controller.broker import mosquitto
from muster_controller.broker.embedded import BrokerKind, BrokerUnavailable, EmbeddedBroker, find_broker
from muster_shared.ids import DeviceId
from muster_shared.messages import Presence, encode

pytestmark = pytest.mark.broker
STOLEN = "edge-2"
PREFIX = f"muster/v1/{FLEET}"
MARK = b"of a thief"


# -- a stolen device ---------------------------------------------------------------------------------------------------


def test_attack_stolen_device_hears_and_says_nothing_of_another(tmp_path: Path) -> None:
    with guarded(tmp_path) as broker, secured(tmp_path, broker) as stage:
        thief = broker.join(STOLEN)

        speak_for_another(thief)
        stage.update(stage.works.release("1.1.0", factor=3.0))

        assert what_a_thief_has(stage, thief) == []
        stage.wait(lambda: stage.factor() == 3.0)
        assert "malformed" not in stage.log()
        assert stage.refusals() == []


def test_attack_stolen_device_is_noticed_without_permissions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mosquitto, "acl", lambda *_: "pattern readwrite #\n")
    require(BrokerKind.MOSQUITTO)
    with guarded(tmp_path, BrokerKind.MOSQUITTO) as broker, secured(tmp_path, broker) as stage:
        thief = broker.join(STOLEN)

        speak_for_another(thief)

        wait_until(lambda: len(what_a_thief_has(stage, thief)) > 1)


def test_attack_stolen_device_is_out_once_it_is_revoked_and_nobody_else_notices(tmp_path: Path) -> None:
    with guarded(tmp_path) as broker, secured(tmp_path, broker) as stage:
        thief, leaf = broker.join(STOLEN), broker.ca.leaf(STOLEN)
        assert thief.is_in

        broker.ca.revoke(leaf)
        broker.revoked.add(DeviceId(STOLEN))
        broker.broker.refresh()

        thief.wait(lambda: thief.was_cut, "the thief is cut")
        again = broker.join(STOLEN, leaf=leaf)
        speaks = again.is_in and not again.was_cut
        if speaks:  # A broker may let him in, so long as nothing that he says arrives.
            speak_for_another(again)
        stage.update(stage.works.release("1.1.0", factor=3.0))
        assert what_a_thief_has(stage, again) == []
        assert not any(heard.topic.startswith(f"{PREFIX}/device/{STOLEN}/") for heard in stage.heard)


def test_attack_stolen_device_is_noticed_without_revocation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with guarded(tmp_path) as broker, secured(tmp_path, broker) as stage:
        thief = broker.join(STOLEN)
        monkeypatch.setattr(EmbeddedBroker, "refresh", lambda broker: None)

        broker.ca.revoke(broker.ca.leaf(STOLEN))
        broker.revoked.add(DeviceId(STOLEN))
        broker.broker.refresh()
        thief.publish(f"{PREFIX}/device/{STOLEN}/presence", MARK)

        stage.wait(lambda: any(heard.payload == MARK for heard in stage.heard))


# -- on the line -------------------------------------------------------------------------------------------------------


def test_attack_eavesdrop_on_the_line_sees_no_word(tmp_path: Path) -> None:
    with guarded(tmp_path) as broker, tapped(broker.broker.port) as tap:
        with secured(tmp_path, broker, agent_port=tap.port) as stage:
            stage.update(stage.works.release("1.1.0", factor=3.0))

        assert len(tap.seen) > 10_000
        assert words_in(tap.seen) == []


def test_attack_eavesdrop_on_the_line_is_noticed_without_tls(tmp_path: Path) -> None:
    with own_broker(tmp_path / "broker") as broker, tapped(broker.port) as tap:
        stage = begin(tmp_path / "stage", Line(broker.url, f"mqtt://127.0.0.1:{tap.port}"), fleet=FLEET)
        stage.close()

        assert len(words_in(tap.seen)) > 1


def test_attack_impostor_of_the_broker_is_told_nothing_and_the_honest_one_is_found_again(tmp_path: Path) -> None:
    with (
        guarded(tmp_path) as broker,
        tapped(broker.broker.port) as tap,
        impostor(tmp_path) as false,
        secured(tmp_path, broker, agent_port=tap.port) as stage,
    ):
        tap.lead_to(false.port)
        stage.wait(lambda: false.failed)

        assert "CERTIFICATE_VERIFY_FAILED" in stage.wait(lambda: refused_in(stage.log()))
        assert bytes(false.seen) == b""
        assert stage.factor() == 2.0
        tap.lead_to(broker.broker.port)
        stage.update(stage.works.release("1.1.0", factor=3.0))


def test_attack_impostor_is_noticed_without_a_look_at_certificates(tmp_path: Path) -> None:
    with (
        guarded(tmp_path) as broker,
        tapped(broker.broker.port) as tap,
        impostor(tmp_path) as false,
        secured(tmp_path, broker, agent_port=tap.port, without="impostor") as stage,
    ):
        tap.lead_to(false.port)

        stage.wait(lambda: str(DEVICE).encode() in false.seen)


# ----------------------------------------------------------------------------------------------------------------------


def speak_for_another(thief: Peer) -> None:
    """Ask for everything, and say as the other device, and as the controller, what they would act upon."""
    thief.subscribe("#", f"{PREFIX}/#", f"{PREFIX}/device/+/#", f"{PREFIX}/device/{DEVICE}/assignment")
    lie = encode(Presence(device=DEVICE, boot="thief", online=False, sent_at=1.0))
    for channel in ("twin", "presence", "event", "assignment", "ack"):
        thief.publish(f"{PREFIX}/device/{DEVICE}/{channel}", MARK)
        thief.publish(f"{PREFIX}/device/{DEVICE}/{channel}", lie)
    for topic in (f"{PREFIX}/controller", f"{PREFIX}/trust/timestamp", f"{PREFIX}/trust/root"):
        for raw in (MARK, *forgeries.trust("timestamp")):
            thief.publish(topic, raw)


def what_a_thief_has(stage: Stage, thief: Peer) -> list[str]:
    """Return what he heard of the device that is not his, and what was heard that he said in its name."""
    leaked = [topic for topic, _ in thief.received if f"/device/{DEVICE}/" in topic]
    said = [heard.topic for heard in stage.heard if heard.payload == MARK or b'"thief"' in heard.payload]
    return leaked + said


def words_in(seen: bytes | bytearray) -> list[str]:
    return [word for word in (PREFIX, str(DEVICE), str(MODEL), "timestamp.json") if word.encode() in seen]


def require(kind: BrokerKind) -> None:
    try:
        find_broker(kind)
    except BrokerUnavailable as error:
        pytest.skip(str(error))


@contextmanager
def guarded(folder: Path, kind: BrokerKind = BrokerKind.AUTO) -> Iterator[Guarded]:
    broker = Guarded.make(folder / "guarded", kind, MQTTProtocolVersion.MQTTv311, (str(DEVICE), STOLEN))
    with broker.start():
        try:
            yield broker
        finally:
            broker.leave()


@contextmanager
def secured(
    folder: Path, broker: Guarded, *, agent_port: int | None = None, without: str | None = None
) -> Iterator[Stage]:
    """A stage on a broker that asks for certificates; `agent_port` leads there as well."""
    url = broker.broker.url
    line = Line(
        url,
        url if agent_port is None else f"mqtts://localhost:{agent_port}",
        ca=broker.ca.root_file,
        controller=broker.ca.controller,
        device=broker.ca.leaf(str(DEVICE)),
    )
    stage = begin(folder / "stage", line, fleet=FLEET, without=without)
    try:
        yield stage
    finally:
        stage.close()


class Tap:
    """Passes bytes on between whoever connects and `port`, and keeps a copy of them."""

    def __init__(self, port: int) -> None:
        self.seen = bytearray()
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._sockets: list[socket.socket] = []
        self._run(self._accept)

    def close(self) -> None:
        _close(self._listener)
        self._cut()

    def lead_to(self, port: int) -> None:
        """Cut who is connected, and lead them elsewhere when they come back."""
        self._target = port
        self._cut()

    def _cut(self) -> None:
        for each in self._sockets:
            _close(each)

    def _run(self, work: Callable[..., None], *arguments: socket.socket) -> None:
        threading.Thread(target=work, args=arguments, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                ours, _ = self._listener.accept()
                theirs = socket.create_connection(("127.0.0.1", self._target))
                self._sockets += [ours, theirs]
                self._run(self._pass_on, ours, theirs)
                self._run(self._pass_on, theirs, ours)

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                self.seen += data
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


@contextmanager
def tapped(port: int) -> Iterator[Tap]:
    tap = Tap(port)
    try:
        yield tap
    finally:
        tap.close()


class Impostor:
    """A broker of somebody else: a certificate for the right host name, of a CA that is not the fleet's."""

    def __init__(self, folder: Path) -> None:
        leaf = SmallCa.make(folder, FLEET).leaf("broker", server_names=("localhost", "127.0.0.1"))
        self.seen = bytearray()
        self.failed = False
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(leaf.certificate, leaf.key)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        _close(self._listener)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            try:
                connection.settimeout(5.0)
                with self._context.wrap_socket(connection, server_side=True) as tls:
                    self.seen += tls.recv(65_536)
            except OSError:
                self.failed = True


@contextmanager
def impostor(folder: Path) -> Iterator[Impostor]:
    false = Impostor(folder / "impostor")
    try:
        yield false
    finally:
        false.close()


def refused_in(log: str) -> str:
    return next((line for line in log.splitlines() if "CERTIFICATE_VERIFY_FAILED" in line), "")


def _close(each: socket.socket) -> None:
    with suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)
    each.close()
