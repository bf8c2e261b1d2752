"""A mixer from nothing to its broker, over a whole controller: created, admitted, certified, signed for, revoked.

And the promise that all of it is for: the controller's own certificate, as it lies in its folder, hears no window.
"""

import json
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from typer.testing import CliRunner, Result

from harness.certificates import Leaf
from harness.desk import FLEET, Desk, bring_offline, is_problem, open_desk
from harness.enrolling import AskingDevice, post
from harness.guarded_broker import WAIT_S, Peer, free_port, until
from muster_controller.broker.embedded import BrokerKind, BrokerUnavailable, find_broker, start_broker
from muster_controller.broker.security import BrokerSecurity
from muster_controller.cli import mixer_identity
from muster_controller.identity.ca import FleetCa
from muster_controller.mixer import certificate
from muster_controller.mixer.certificate import CertificateRefused, CertificateUnavailable
from muster_controller.mixer.folder import MixerFolder, MixerFolderInvalid
from muster_controller.registry.operator import load_offline
from muster_shared.assignment import parse_keys
from muster_shared.enrolment import EnrolmentToken, Granted, Refused, parse_token
from muster_shared.ids import DeviceId
from muster_shared.link import parse_broker_url

pytestmark = [pytest.mark.broker, pytest.mark.timeout(180), pytest.mark.usefixtures("quiet")]

PREFIX = f"muster/v1/{FLEET}"
RAW = (
    *(f"{PREFIX}/metrics/{cohort}" for cohort in (3, "+", "#")),
    *(f"{PREFIX}/+/+", f"{PREFIX}/+/3", f"{PREFIX}/#", "muster/v1/+/metrics/+", "+/#", "#"),
    *(f"$share/thieves/{PREFIX}/metrics/+", "$share/thieves/#", "$MQTT/sub/+"),
)


@pytest.fixture(scope="module", params=["mosquitto", "nats"])
def desk(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    kind = BrokerKind(request.param)
    try:
        find_broker(kind)
    except BrokerUnavailable as missing:
        pytest.skip(str(missing))
    with open_desk(tmp_path_factory.mktemp("fleet"), open_lab=False, broker_kind=kind) as desk:
        yield desk


def muster(desk: Desk, *words: str) -> Result:
    app, group = typer.Typer(), typer.Typer()
    mixer_identity.attach(group)
    app.add_typer(group, name="mixer")
    env = {"COLUMNS": "200", "MUSTER_TOKEN": None, "MUSTER_URL": None, "MUSTER_DATA": str(desk.folder / "data")}
    return CliRunner(env=env).invoke(app, ["mixer", *words])


def said(desk: Desk, *words: str) -> Any:
    result = muster(desk, *words, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def admitted(desk: Desk, folder: Path, name: str) -> MixerFolder:
    said(desk, "create", str(folder), "--name", name)
    said(desk, "admit", str(folder))
    return MixerFolder(folder)


def enrol_token(desk: Desk) -> tuple[EnrolmentToken, int]:
    """Return a token for one device, and the device port."""
    made = desk.http.post("/enrol-tokens", json={"uses": 1}).json()
    return parse_token(made["token"]), int(made["device_url"].rpartition(":")[2])


def enrol(desk: Desk, name: str, file: Path) -> Path:
    """Enrol a device, and return where its key and its certificate are."""
    token, port = enrol_token(desk)
    device = AskingDevice(name)
    root = (desk.folder / "data" / "ca" / "root.pem").read_bytes()
    _, granted = post(port, root, device.asks(time.time(), token))
    assert isinstance(granted, Granted)
    key = device.session.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    file.write_bytes(key + granted.certificate.encode())
    return file


class Clients:
    """Clients of a broker, each with a certificate of the fleet CA."""

    def __init__(self, data: Path, port: int) -> None:
        self._data, self._port = data, port
        self._peers: list[Peer] = []

    def close(self) -> None:
        for peer in self._peers:
            peer.leave()

    def mixer(self, folder: MixerFolder) -> Peer:
        link = certificate.ensure(folder, time.time).link
        assert link.cert_path is not None
        return self.join(link.client_id, link.cert_path)

    def join(self, client_id: str, file: Path) -> Peer:
        root = self._data / "ca" / "root.pem"

        def join() -> bool:
            self._peers.append(Peer(self._port, client_id, ca=root, leaf=Leaf(file, file)))
            return self._peers[-1].is_in

        until(join, f"{client_id} in")  # NATS reads its list again within seconds.
        return self._peers[-1]


@pytest.fixture
def clients(desk: Desk) -> Iterator[Clients]:
    found = Clients(desk.folder / "data", parse_broker_url(desk.controller.broker_url).port)
    yield found
    found.close()


@pytest.fixture
def after_the_controller(desk: Desk, tmp_path: Path) -> Iterator[tuple[Clients, MixerFolder, Path]]:
    """The broker of a controller that is gone, with its files: nobody fights for its name with who has its key now."""
    folder = admitted(desk, tmp_path / "mixer", "m-raw")
    certificate.ensure(folder, time.time)
    device = enrol(desk, "crane-1", tmp_path / "crane-1.pem")
    paths = FleetCa.existing(desk.folder / "data", time.time()).paths
    security = BrokerSecurity(
        fleet=FLEET,
        ca=paths.clients,
        certificate=paths.server,
        key=paths.server,
        client_certificate=paths.controller,
        client_key=paths.controller,
        devices=lambda: [DeviceId("crane-1")],
        revoked=lambda: [],
        crl=paths.crl,
        mixers=lambda: ["m-raw"],
    )
    kind = BrokerKind.NATS if (desk.folder / "data" / "broker" / "nats.conf").exists() else BrokerKind.MOSQUITTO
    with start_broker(kind, tmp_path / "broker", free_port(), security=security) as broker:
        broker.wait_ready(WAIT_S)
        clients = Clients(desk.folder / "data", broker.port)
        yield clients, folder, device
        clients.close()


def test_the_controllers_own_certificate_hears_no_window_that_the_mixer_hears_and_sends_none(
    desk: Desk, after_the_controller: tuple[Clients, MixerFolder, Path]
) -> None:
    clients, folder, file = after_the_controller
    own = desk.folder / "data" / "ca" / "controller.pem"
    mixer, device, thief = clients.mixer(folder), clients.join("crane-1", file), clients.join("thief", own)
    assert all(mixer.subscribe(f"{PREFIX}/metrics/+", f"{PREFIX}/mixed/m-raw/ack"))

    thief.publish(f"{PREFIX}/metrics/3", b"forged")
    for asked in RAW:
        thief.subscribe(asked)
    for number in range(20):
        device.publish(f"{PREFIX}/metrics/3", f"window {number}".encode(), retain=number == 19)
    mixer.wait(lambda: b"window 19" in mixer.payloads, "the windows")
    for asked in RAW:
        thief.unsubscribe([asked])
        thief.subscribe(asked)  # For what is retained.
    assert all(thief.subscribe(f"{PREFIX}/mixed/+"))
    mixer.publish(f"{PREFIX}/mixed/m-raw", b"sums")
    thief.wait(lambda: b"sums" in thief.payloads, "what it may hear")

    assert [topic for topic, _ in thief.received if "/metrics/" in topic] == []
    assert {f"window {number}".encode() for number in range(20)} <= set(mixer.payloads)
    assert b"forged" not in mixer.payloads


def test_the_keys_of_a_mixer_stay_in_its_folder_and_only_its_owner_reads_them(desk: Desk, tmp_path: Path) -> None:
    folder = tmp_path / "mixer"

    admitted(desk, folder, "m-keys")
    said(desk, "renew", str(folder))

    secret = [folder / "identity.key", folder / "session.pem", *(folder / "seal").glob("*.key")]
    assert len(secret) == 3
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in secret)
    for path in (folder / "mixer.json", folder / "admitted.json", folder / "granted.json", folder / "ca.pem"):
        assert b"PRIVATE" not in path.read_bytes()


def test_a_mixer_renews_by_itself_and_its_clock_may_be_wrong(desk: Desk, tmp_path: Path) -> None:
    folder = admitted(desk, tmp_path / "mixer", "m-renew")
    first = certificate.ensure(folder, time.time)
    again = certificate.ensure(folder, time.time)

    renewed = certificate.renew(folder, lambda: time.time() - 86_400.0)

    assert again == first
    assert renewed.renew_at > first.renew_at
    assert renewed.link == first.link
    shown = next(each for each in said(desk, "list")["mixers"] if each["mixer"] == "m-renew")
    assert shown["expires_at"] == pytest.approx(renewed.expires_at, abs=1.0)


def test_a_revoked_mixer_is_cut_and_gets_no_certificate_and_a_new_folder_can_have_its_name(
    desk: Desk, clients: Clients, tmp_path: Path
) -> None:
    folder = admitted(desk, tmp_path / "mixer", "m-gone")
    mixer = clients.mixer(folder)

    changed = said(desk, "revoke", "m-gone", "--reason", "stolen")

    mixer.wait(lambda: mixer.was_cut, "the connection cut")
    assert changed["mixer"]["state"] == "revoked"
    with pytest.raises(CertificateRefused, match="revoked"):
        certificate.renew(folder, time.time)
    assert muster(desk, "admit", str(folder.path)).exit_code == 5
    said(desk, "forget", "m-gone")
    assert muster(desk, "admit", str(folder.path)).exit_code == 5, "its key stays refused"
    clients.mixer(admitted(desk, tmp_path / "another", "m-gone"))
    lines = desk.get("/audit?limit=50")["lines"]
    assert {"mixer.admit", "mixer.revoke"} <= {each["action"] for each in lines}


def test_nobody_gets_the_certificate_of_a_mixer_without_its_key(desk: Desk, tmp_path: Path) -> None:
    admitted(desk, tmp_path / "mixer", "m-mine")
    thief = AskingDevice("m-mine")
    token, port = enrol_token(desk)
    root = (desk.folder / "data" / "ca" / "root.pem").read_bytes()

    without = post(port, root, thief.asks(time.time(), role="mixer"))[1]
    unknown = post(port, root, AskingDevice("m-none").asks(time.time(), role="mixer"))[1]
    with_token = post(port, root, thief.asks(time.time(), token, role="mixer"))[1]
    as_device = post(port, root, thief.asks(time.time(), token))[1]

    assert isinstance(without, Refused)
    assert "no mixer m-mine has this key" in without.reason
    assert isinstance(unknown, Refused)
    assert unknown.code == "device"
    assert isinstance(with_token, Refused)
    assert "needs no token" in with_token.reason
    assert isinstance(as_device, Granted), "a device of that name is somebody else"
    assert "m-mine" in {each["device"] for each in desk.get("/identities")["identities"]}
    assert "mixer" not in json.dumps(desk.get("/identities")["identities"])


def test_only_an_admin_admits_a_mixer(desk: Desk, tmp_path: Path) -> None:
    said(desk, "create", str(tmp_path / "mixer"), "--name", "m-role")
    card = MixerFolder(tmp_path / "mixer").card()
    body = {"mixer": card.mixer, "identity": card.identity, "public_key": card.public_key.hex()}

    assert is_problem(desk.hire("paula", "publisher").post("/mixers", json=body), 403, "forbidden")
    assert is_problem(desk.hire("dora", "operator").post("/mixers/m-role/revoke", json={}), 403, "forbidden")
    assert is_problem(desk.hire("vera", "viewer").get("/mixers"), 403, "forbidden")
    assert desk.hire("anna", "admin").post("/mixers", json=body).status_code == 201


def test_another_key_takes_no_name_and_a_card_that_is_none_is_refused(desk: Desk, tmp_path: Path) -> None:
    admitted(desk, tmp_path / "mixer", "m-name")
    said(desk, "create", str(tmp_path / "other"), "--name", "m-name")
    card = MixerFolder(tmp_path / "other").card()
    body = {"mixer": "m-zero", "identity": card.identity, "public_key": "00" * 32}

    assert muster(desk, "admit", str(tmp_path / "other")).exit_code == 5
    assert desk.http.post("/mixers", json=body).status_code in (400, 422), "a key that everybody can open"
    assert desk.http.post("/mixers", json=body | {"mixer": "m.zero"}).status_code in (400, 422)


def test_devices_seal_to_a_mixer_when_the_offline_keys_say_so_and_not_before(desk: Desk, tmp_path: Path) -> None:
    folder = admitted(desk, tmp_path / "mixer", "m-sign")
    before = next(each for each in said(desk, "list")["mixers"] if each["mixer"] == "m-sign")
    operator = str(desk.folder / "operator")

    said(desk, "sign", str(folder.path / "mixer.json"), "--operator", operator)
    bring_offline(desk)
    signed = said(desk, "list")
    rotated = said(desk, "rotate", str(folder.path))
    said(desk, "sign", str(folder.path), "--operator", operator, "--remove", rotated["before"])
    bring_offline(desk)

    assert not before["is_signed"]
    assert folder.card().key_id in said(desk, "list")["keys"]
    assert rotated["before"] in signed["keys"]
    assert rotated["before"] not in said(desk, "list")["keys"]
    assert set(folder.seal_keys()) == {rotated["before"], rotated["key"]}, "it opens what is on its way"
    named = parse_keys(load_offline(desk.folder / "operator").keys).mixers
    assert named[rotated["key"]] == folder.card().public_key
    assert muster(desk, "retire", str(folder.path), rotated["key"]).exit_code == 1
    said(desk, "retire", str(folder.path), rotated["before"])
    assert set(folder.seal_keys()) == {rotated["key"]}


def test_a_mixer_that_nobody_admitted_says_what_to_do(desk: Desk, tmp_path: Path) -> None:
    said(desk, "create", str(tmp_path / "mixer"), "--name", "m-none")

    with pytest.raises(MixerFolderInvalid, match="muster mixer admit"):
        certificate.ensure(MixerFolder(tmp_path / "mixer"), time.time)


def test_a_mixer_lives_on_while_the_controller_is_away(desk: Desk, tmp_path: Path) -> None:
    folder = admitted(desk, tmp_path / "mixer", "m-away")
    granted = certificate.ensure(folder, time.time)
    elsewhere = json.loads((folder.path / "granted.json").read_text()) | {"device_url": "https://127.0.0.1:1"}
    (folder.path / "granted.json").write_text(json.dumps(elsewhere))
    half: Callable[[], float] = lambda: granted.renew_at + 1.0  # noqa: E731 # Short, and named.
    over: Callable[[], float] = lambda: granted.expires_at + 1.0  # noqa: E731

    assert certificate.ensure(folder, half) == granted
    with pytest.raises(CertificateUnavailable, match="does not answer"):
        certificate.ensure(folder, over)
