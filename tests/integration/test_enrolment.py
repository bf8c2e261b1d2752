"""A real device port, over TLS, with real clients; and a whole controller that lets a device in and throws it out."""

import json
import os
import random
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from harness.enrolling import AskingDevice, fetch_ca, post
from muster_controller.broker.embedded import BrokerKind, BrokerUnavailable, find_broker
from muster_controller.config import ServerConfig
from muster_controller.identity.ca import FleetCa
from muster_controller.identity.certificates import pin
from muster_controller.identity.device_port import DevicePort, PortLimits, listen
from muster_controller.server import Controller
from muster_controller.whereabouts import read_running
from muster_shared import topics
from muster_shared.enrolment import (
    CA_PATH,
    PATH,
    REQUEST_BYTES_MAX,
    Granted,
    Refused,
    Waiting,
    decode_answer,
    parse_token,
)
from muster_shared.ids import DeviceId, FleetId
from muster_shared.link import Connected, Disconnected, Link, LinkConfig, LinkItem, parse_broker_url
from muster_shared.messages import Hardware, Twin, encode

FLEET = FleetId("test")
WAIT_S = 30.0


def until(look: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not look():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.01)


# -- the port by itself ------------------------------------------------------------------------------------------------


class Port:
    """A device port with a CA of its own, whose answers a test chooses."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.ca = FleetCa(folder, FLEET, time.time(), lambda path: None)
        self.names = ("localhost", "127.0.0.1")
        self.ca.renew_own(self.names, time.time())
        self.asked: list[bytes] = []
        self.hold = threading.Event()
        self.hold.set()
        self._stack = stack

    def open(self, limits: PortLimits | None = None) -> DevicePort:
        port = DevicePort(
            listen("127.0.0.1", 0), self.ca.paths.server, self._answer, lambda: self.ca.root_pem, time.time, limits
        )
        self._stack.callback(port.stop)
        port.start()
        return port

    def _answer(self, raw: bytes) -> Waiting:
        self.asked.append(raw)
        assert self.hold.wait(WAIT_S)
        return Waiting(retry_s=7.0, reason="because", server_time=time.time())


@pytest.fixture
def port(tmp_path: Path) -> Iterator[Port]:
    with ExitStack() as stack:
        yield Port(tmp_path, stack)


def connect(port: int, ca: bytes | None = None) -> ssl.SSLSocket:
    context = ssl.create_default_context() if ca is None else ssl.create_default_context(cadata=ca.decode())
    if ca is None:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    plain = socket.create_connection(("127.0.0.1", port), timeout=WAIT_S)
    try:
        return context.wrap_socket(plain, server_hostname="localhost")
    except OSError:
        plain.close()
        raise


def say(port: int, said: bytes) -> tuple[int, bytes]:
    """Send bytes over TLS, and return the status and the body of the answer; 0 where there is none."""
    answer = b""
    with closing(connect(port)) as connection, suppress(OSError):
        connection.sendall(said)
        while more := connection.recv(65536):
            answer += more
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]) if head else 0, body


def test_a_client_that_knows_a_hash_gets_the_root_and_then_trusts_nothing_else(port: Port) -> None:
    opened = port.open()

    root = fetch_ca(opened.port)
    status, answer = post(opened.port, root, b"a request")

    assert pin(x509.load_pem_x509_certificate(root)) == port.ca.pin
    assert (status, type(answer), port.asked) == (202, Waiting, [b"a request"])


def test_a_server_of_another_ca_is_not_spoken_to(port: Port, tmp_path: Path) -> None:
    opened = port.open()
    other = FleetCa(tmp_path / "other", FLEET, time.time(), lambda path: None)

    with pytest.raises(ssl.SSLCertVerificationError):
        post(opened.port, other.root_pem, b"a secret")

    assert port.asked == []


def test_the_certificate_is_renewed_without_a_restart(port: Port) -> None:
    opened = port.open()
    with closing(connect(opened.port, port.ca.root_pem)) as before:
        first = before.getpeercert(binary_form=True)

    port.ca.renew_own((*port.names, "fleet.example"), time.time())
    opened.reload_certificates()

    with closing(connect(opened.port, port.ca.root_pem)) as after:
        assert after.getpeercert(binary_form=True) != first


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        (b"GET /api/v1/devices HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        (f"GET {PATH} HTTP/1.1\r\nHost: x\r\n\r\n".encode(), 405),
        (f"DELETE {CA_PATH} HTTP/1.1\r\nHost: x\r\n\r\n".encode(), 405),
        (f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 17000\r\n\r\n".encode() + b"x" * 17000, 413),
        (b"nonsense\r\n\r\n", 0),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 70_000, 0),
    ],
)
def test_the_port_answers_two_requests_and_survives_all_others(port: Port, said: bytes, status: int) -> None:
    opened = port.open()

    found, body = say(opened.port, said)

    assert found == status
    assert status == 0 or isinstance(decode_answer(body), Refused)
    assert port.asked == []
    assert post(opened.port, port.ca.root_pem, b"hello")[0] == 202


def test_a_client_that_asks_before_it_sends_is_told_to_go_on(port: Port) -> None:
    opened = port.open()

    with closing(connect(opened.port)) as connection:
        connection.sendall(
            f"POST {PATH} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n".encode()
        )
        went_on = connection.recv(1000)
        connection.sendall(b"{}")
        answer = connection.recv(1000)

    assert went_on.startswith(b"HTTP/1.1 100")
    assert answer.startswith(b"HTTP/1.1 202")
    assert port.asked == [b"{}"]


def test_who_says_nothing_is_cut_and_holds_nobody_up_meanwhile(port: Port) -> None:
    opened = port.open(PortLimits(handshake_s=2.0, exchange_s=2.0))
    silent = [socket.create_connection(("127.0.0.1", opened.port), timeout=WAIT_S) for _ in range(10)]
    slow = [connect(opened.port) for _ in range(10)]
    for half in slow:
        half.sendall(b"POST / HT")

    status, _ = post(opened.port, port.ca.root_pem, b"hello")

    assert status == 202
    held: list[socket.socket] = [*silent, *slow]
    for each in held:
        with closing(each):
            assert ended(each)
    until(lambda: opened.counters.broken == 20)


def test_one_address_has_few_places_and_others_keep_theirs(port: Port) -> None:
    opened = port.open(PortLimits(connections_a_source=3, exchange_s=3.0))
    held = [connect(opened.port) for _ in range(3)]

    with closing(socket.create_connection(("127.0.0.1", opened.port), timeout=WAIT_S)) as fourth:
        was_cut = ended(fourth)
    with closing(socket.create_connection(("127.0.0.1", opened.port), 5.0, ("127.0.0.2", 0))) as neighbour:
        context = ssl.create_default_context(cadata=port.ca.root_pem.decode())
        with context.wrap_socket(neighbour, server_hostname="localhost") as other:
            is_in = other.version() is not None

    assert (was_cut, is_in) == (True, True)
    assert opened.counters.dropped == 1
    for each in held:
        each.close()


def test_who_asks_too_often_is_told_to_wait_and_then_cut_before_tls(port: Port) -> None:
    opened = port.open(PortLimits(requests_a_second=0.001, requests_at_once=2.0))

    answers = [post(opened.port, port.ca.root_pem, b"x") for _ in range(4)]
    cut = 0
    for _ in range(8):
        try:
            post(opened.port, port.ca.root_pem, b"x")
        except OSError:
            cut += 1

    assert [status for status, _ in answers] == [202, 202, 429, 429]
    assert isinstance(answers[-1][1], Refused)
    assert answers[-1][1].code == "busy"
    assert len(port.asked) == 2
    assert (cut, opened.counters.dropped) == (4, 4)


def test_when_the_database_is_slow_those_who_come_later_are_told_so_at_once(port: Port) -> None:
    opened = port.open(PortLimits(answers_waiting=2))
    port.hold.clear()
    threads = [threading.Thread(target=post, args=(opened.port, port.ca.root_pem, b"x")) for _ in range(2)]
    for each in threads:
        each.start()
    until(lambda: len(port.asked) == 2)

    status, answer = post(opened.port, port.ca.root_pem, b"x")
    port.hold.set()
    for each in threads:
        each.join(WAIT_S)

    assert status == 503
    assert isinstance(answer, Refused)
    assert answer.code == "busy"


def ended(connection: socket.socket) -> bool:
    """Whether the other side cuts the connection, sooner or later."""
    try:
        while connection.recv(65536):
            pass
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


# -- a whole controller ------------------------------------------------------------------------------------------------


class Fleet:
    """A controller as an administrator on its machine sees it."""

    def __init__(self, controller: Controller) -> None:
        self.data = controller.data
        found = read_running(self.data)
        assert found is not None
        self.running = found
        self.port = int(found.device_url.rpartition(":")[2])
        local = (self.data / "local-token").read_text().strip()
        headers = {"Authorization": f"Bearer {local}"}
        self.api = httpx.Client(base_url=f"{found.url}/api/v1", headers=headers, trust_env=False, timeout=WAIT_S)

    def post(self, path: str, **said: Any) -> Any:
        answer = self.api.post(path, json=said)
        assert answer.is_success, answer.text
        return answer.json()

    def token(self, **said: Any) -> str:
        return str(self.post("/enrol-tokens", **said)["token"])

    def enrol(self, device: AskingDevice, token: str | None) -> object:
        parsed = None if token is None else parse_token(token)
        root = fetch_ca(self.port)
        assert parsed is None or pin(x509.load_pem_x509_certificate(root)) == parsed.ca
        return post(self.port, root, device.asks(time.time(), parsed))[1]

    def muster(self, *words: str, code: int = 0) -> str:
        """Run the command line on the controller's machine."""
        command = [sys.executable, "-m", "muster_controller.cli.main", *words]
        environment = {**os.environ, "MUSTER_DATA": str(self.data), "MUSTER_URL": "", "COLUMNS": "200"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == code, done.stderr
        return done.stdout


def open_fleet(data: Path, stack: ExitStack, **said: Any) -> Fleet:
    config = ServerConfig(data=data, fleet=FLEET, port=0, broker_port=0, device_port=0, **said)
    fleet = Fleet(stack.enter_context(Controller(config)))
    stack.callback(fleet.api.close)
    return fleet


@pytest.fixture(scope="module", params=["mosquitto", "nats"])
def fleet(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    kind = BrokerKind(request.param)
    try:
        find_broker(kind)
    except BrokerUnavailable as missing:
        pytest.skip(str(missing))
    with ExitStack() as stack:
        yield open_fleet(tmp_path_factory.mktemp("fleet") / "muster-data", stack, broker_kind=kind)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A controller whose broker knows no certificates; the device port is as always."""
    with ExitStack() as stack:
        yield open_fleet(tmp_path_factory.mktemp("lab") / "muster-data", stack, open_lab=True)


class Connection:
    """A device's link to the broker with the certificate that it was granted."""

    def __init__(self, device: AskingDevice, granted: Granted, folder: Path) -> None:
        key = device.session.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (folder / "device.pem").write_bytes(key + granted.certificate.encode())
        (folder / "ca.pem").write_text(granted.ca)
        self.items: list[LinkItem] = []
        config = LinkConfig(
            broker=parse_broker_url(granted.broker_url),
            client_id=f"muster-test-{device.name}",
            reconnect_min_s=0.05,
            reconnect_max_s=0.2,
            ca_path=folder / "ca.pem",
            cert_path=folder / "device.pem",
            key_path=folder / "device.pem",
        )
        self.link = Link(config, self.items.append, rng=random.Random(1))
        self.link.start()

    def has(self, kind: type[LinkItem]) -> bool:
        return any(isinstance(each, kind) for each in self.items)


def test_a_device_enrols_with_one_token_works_and_is_thrown_out(fleet: Fleet, tmp_path: Path) -> None:
    device = AskingDevice("dev-1")
    token = fleet.token(labels={"site": "berlin", "line": "2"}, uses=1, ttl_s=3600)

    granted = fleet.enrol(device, token)
    assert isinstance(granted, Granted)
    connection = Connection(device, granted, tmp_path)
    try:
        until(lambda: connection.has(Connected))
        revoked = fleet.post("/identities/dev-1/revoke", reason="stolen")
        until(lambda: connection.has(Disconnected))
        connected = sum(isinstance(each, Connected) for each in connection.items)
        again = fleet.enrol(device, None)
    finally:
        connection.link.stop(5.0)

    assert granted.labels == {"site": "berlin", "line": "2"}
    assert granted.broker_url == fleet.running.broker_url
    assert granted.device_url == fleet.running.device_url
    assert revoked["in_effect"] is True
    assert isinstance(again, Refused)
    assert again.code == "revoked"
    assert sum(isinstance(each, Connected) for each in connection.items) == connected
    assert fleet.api.get("/health").json()["broker_connected"] is True
    lines = fleet.api.get("/audit", params={"subject": "dev-1"}).json()["lines"]
    assert (lines[0]["action"], lines[0]["reason"]) == ("identity.revoke", "stolen")


def test_a_device_that_claims_another_group_is_shown_in_its_own(fleet: Fleet, tmp_path: Path) -> None:
    device = AskingDevice("dev-liar")
    granted = fleet.enrol(device, fleet.token(labels={"site": "berlin"}))
    assert isinstance(granted, Granted)
    claims = Twin(
        device=DeviceId("dev-liar"),
        sent_at=time.time(),
        boot="b",
        sequence=1,
        agent_version="1.0.0",
        counter=0,
        hardware=Hardware(device_class="sim", arch="x86_64"),
        labels={"site": "oslo", "line": "2"},
    )

    connection = Connection(device, granted, tmp_path)
    try:
        topic = topics.build(FLEET, topics.DeviceTopic(DeviceId("dev-liar"), topics.Channel.TWIN))
        connection.link.publish(topic, encode(claims), qos=1, retain=True)
        until(lambda: fleet.api.get("/devices/dev-liar").status_code == 200)
    finally:
        connection.link.stop(5.0)

    found = fleet.api.get("/devices/dev-liar").json()
    assert found["labels"] == {"site": "berlin", "line": "2"}
    assert found["granted_labels"] == {"site": "berlin"}
    assert "site=berlin (by an operator), line=2" in fleet.muster("device", "show", "dev-liar")


def test_an_open_lab_is_called_one_wherever_somebody_looks(fleet: Fleet, lab: Fleet) -> None:
    secured, opened = (httpx.get(f"{each.running.url}/login", trust_env=False).text for each in (fleet, lab))

    assert (fleet.api.get("/status").json()["open_lab"], lab.api.get("/status").json()["open_lab"]) == (False, True)
    assert "Open lab" in lab.muster("status")
    assert "Open lab" not in fleet.muster("status")
    assert "Open lab" in opened
    assert "Open lab" not in secured


def test_sessions_of_a_controller_with_a_former_name_are_forgotten_once(tmp_path: Path) -> None:
    left = tmp_path / "muster-data" / "broker" / "jetstream" / "left.txt"
    left.parent.mkdir(parents=True)
    left.touch()

    with ExitStack() as stack:
        open_fleet(tmp_path / "muster-data", stack, open_lab=True)
        was_there = left.exists()
    left.parent.mkdir(exist_ok=True)
    left.touch()
    with ExitStack() as stack:
        open_fleet(tmp_path / "muster-data", stack, open_lab=True)

    assert not was_there
    assert left.exists()


def test_a_device_that_waits_comes_in_when_somebody_accepts_it(fleet: Fleet, tmp_path: Path) -> None:
    device = AskingDevice("dev-2")
    token = fleet.token(approval="manual")

    waits = fleet.enrol(device, token)
    listed = fleet.api.get("/identities", params={"state": "waiting"}).json()["identities"]
    fleet.post("/identities/dev-2/accept", reason="it is ours")
    granted = fleet.enrol(device, token)

    assert isinstance(waits, Waiting)
    assert [each["device"] for each in listed] == ["dev-2"]
    assert isinstance(granted, Granted)
    connection = Connection(device, granted, tmp_path)
    try:
        until(lambda: connection.has(Connected))
    finally:
        connection.link.stop(5.0)


def test_a_forgotten_device_is_thrown_out_and_its_name_is_free(fleet: Fleet, tmp_path: Path) -> None:
    token = fleet.token(uses=2)
    old, new = AskingDevice("dev-4"), AskingDevice("dev-4")
    granted = fleet.enrol(old, token)
    assert isinstance(granted, Granted)
    connection = Connection(old, granted, tmp_path)
    try:
        until(lambda: connection.has(Connected))
        taken = fleet.enrol(new, token)
        fleet.post("/identities/dev-4/forget", reason="new hardware")
        until(lambda: connection.has(Disconnected))
    finally:
        connection.link.stop(5.0)

    assert isinstance(taken, Refused)
    assert taken.code == "device"
    assert isinstance(fleet.enrol(new, token), Granted)


def test_a_request_that_is_too_large_never_reaches_the_database(fleet: Fleet) -> None:
    status, answer = post(fleet.port, fetch_ca(fleet.port), b"x" * (REQUEST_BYTES_MAX + 1))

    assert (status, type(answer)) == (413, Refused)


def test_what_the_api_does_not_take_is_a_problem(lab: Fleet) -> None:
    name = lab.post("/enrol-tokens")["made"]["id"]
    lab.post(f"/enrol-tokens/{name}/revoke")
    asked = {
        "/enrol-tokens": ({"approval": "serial"}, 409),
        "/identities/nobody/accept": ({}, 404),
        "/identities/No Body/accept": ({}, 422),
        f"/enrol-tokens/{name}/revoke": ({}, 409),
        "/enrol-tokens/t-none/revoke": ({}, 404),
    }

    found = {path: lab.api.post(path, json=said).status_code for path, (said, _) in asked.items()}

    assert found == {path: status for path, (_, status) in asked.items()}
    assert lab.api.post("/enrol-tokens", json={"uses": 0}).status_code == 422
    assert lab.api.post("/enrol-tokens", json={"labels": {"": "x"}}).status_code == 422


# -- the command line --------------------------------------------------------------------------------------------------


def test_an_operator_enrols_a_list_of_hardware_from_the_command_line(lab: Fleet, tmp_path: Path) -> None:
    file = tmp_path / "serials"
    file.write_text("# our order of May\nS1\nS2  dev-9\n")

    words = ("--approval", "serial", "--serials", str(file), "--labels", "site=oslo,line=2")
    made = json.loads(lab.muster("enroll-token", "create", *words, "--json"))
    device = AskingDevice("dev-9")
    raw = device.asks(time.time(), parse_token(made["token"]), serial="S2")
    _, granted = post(lab.port, fetch_ca(lab.port), raw)
    listed = lab.muster("enroll-token", "list")
    lab.muster("device", "revoke", "dev-9", "--reason", "sold")
    identities = json.loads(lab.muster("device", "identities", "--state", "revoked", "--json"))

    assert (made["made"]["serials"], made["made"]["uses_max"]) == (2, 2)
    assert made["install"] == f"muster-agent install --controller {made['device_url']} --token {made['token']}"
    assert isinstance(granted, Granted)
    assert granted.labels == {"site": "oslo", "line": "2"}
    assert granted.broker_url == lab.running.broker_url
    assert made["made"]["id"] in listed
    assert parse_token(made["token"]).secret not in listed
    assert [(each["device"], each["reason"]) for each in identities] == [("dev-9", "sold")]


def test_the_roots_key_leaves_and_the_controller_works_on(lab: Fleet, tmp_path: Path) -> None:
    lab.muster("ca", "take-root", str(tmp_path / "usb"))
    shown = lab.api.get("/ca").json()
    lab.muster("ca", "renew", code=1)
    lab.muster("ca", "renew", "--root-key", str(tmp_path / "usb" / "root.key"))
    granted = lab.enrol(AskingDevice("dev-3"), lab.token())

    assert shown["root_key_is_here"] is False
    assert isinstance(granted, Granted)
