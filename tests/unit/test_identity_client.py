"""Asking for certificates, against a device port on the loopback."""

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from harness.device_port import FLEET, Authority, DevicePort
from muster_agent.errors import (
    ControllerUntrusted,
    EnrolmentRefused,
    EnrolmentUnreachable,
    GrantUnusable,
    NotEnrolled,
)
from muster_agent.identity import channel, client
from muster_agent.identity.channel import DevicePort as Where
from muster_agent.identity.channel import parse_device_url
from muster_agent.identity.folder import Enrolled, IdentityFolder
from muster_agent.identity.keys import FileKey
from muster_shared.enrolment import ANSWER_BYTES_MAX, Granted, Refused, Waiting
from muster_shared.ids import DeviceId, Sha256

DEVICE = DeviceId("crane-07")
YEAR_S = 365 * 86400.0


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def port(tmp_path: Path, authority: Authority) -> Iterator[DevicePort]:
    with closing(DevicePort(tmp_path, authority)) as port:
        yield port


@pytest.fixture
def folder(tmp_path: Path) -> IdentityFolder:
    return IdentityFolder(tmp_path / "identity")


@pytest.fixture
def key(folder: IdentityFolder) -> FileKey:
    return FileKey.open(folder, make=True)


def enrol(
    port: DevicePort, folder: IdentityFolder, key: FileKey, clock: Callable[[], float] = time.time
) -> Enrolled | Waiting:
    return client.enrol(
        folder,
        key,
        controller_url=port.url,
        token=port.token,
        device=DEVICE,
        labels={"crane": "7"},
        serial="SN-1",
        device_class="x86-cpu",
        agent_version="1.0.0",
        clock=clock,
    )


def test_a_device_with_a_token_gets_a_certificate_and_all_that_goes_with_it(
    port: DevicePort, folder: IdentityFolder, key: FileKey
) -> None:
    enrolled = enrol(port, folder, key)

    assert isinstance(enrolled, Enrolled)
    assert enrolled == folder.current()
    assert (enrolled.fleet, enrolled.device, enrolled.labels) == (FLEET, DEVICE, {"site": "berlin"})
    assert (enrolled.broker_url, enrolled.device_url) == (port.broker_url, port.url)
    assert folder.ca() == port.authority.pem
    assert folder.root() == port.trust_root
    ssl.create_default_context(cafile=folder.ca_path).load_cert_chain(folder.certificate_path, folder.session_key_path)


def test_the_request_says_what_the_device_is_and_asks_for_a_key_that_is_not_its_identity(
    port: DevicePort, folder: IdentityFolder, key: FileKey
) -> None:
    enrol(port, folder, key)

    (request,) = port.requests
    assert (request.serial, request.device_class, request.agent_version) == ("SN-1", "x86-cpu", "1.0.0")
    assert (request.labels, request.token_id) == ({"crane": "7"}, port.token.id)
    assert request.identity == key.public_pem()
    asked = x509.load_pem_x509_csr(request.csr.encode()).public_key()
    assert asked != FileKey.open(folder, make=False)._private.public_key()


def test_a_renewal_needs_no_token_makes_another_session_key_and_keeps_the_first_trust_root(
    port: DevicePort, folder: IdentityFolder, key: FileKey
) -> None:
    first = enrol(port, folder, key)
    before = folder.session_key_path.read_bytes()
    port.trust_root = b'{"root": "of a thief"}'

    second = client.renew(folder, key)

    assert isinstance(first, Enrolled)
    assert isinstance(second, Enrolled)
    assert second.fingerprint != first.fingerprint
    assert second.identity_fingerprint == first.identity_fingerprint
    assert folder.session_key_path.read_bytes() != before
    assert folder.root() == b'{"root": 1}'
    assert (port.requests[1].token_id, port.requests[1].fleet) == ("", FLEET)
    assert len({request.nonce for request in port.requests}) == 2


def test_a_trust_root_that_the_controller_did_not_have_at_first_comes_with_a_renewal(
    port: DevicePort, folder: IdentityFolder, key: FileKey
) -> None:
    port.trust_root = b""
    enrol(port, folder, key)
    port.trust_root = b'{"root": 1}'

    client.renew(folder, key)

    assert folder.root() == b'{"root": 1}'


def test_a_renewal_takes_over_another_ca_and_another_address_of_the_broker(
    port: DevicePort, folder: IdentityFolder, key: FileKey
) -> None:
    enrol(port, folder, key)
    port.roots += Authority("next").pem
    port.broker_url = "mqtts://elsewhere:8883"

    enrolled = client.renew(folder, key)

    assert isinstance(enrolled, Enrolled)
    assert enrolled.broker_url == "mqtts://elsewhere:8883"
    assert folder.ca() == port.roots


def test_without_a_certificate_there_is_nothing_to_renew(folder: IdentityFolder, key: FileKey) -> None:
    with pytest.raises(NotEnrolled, match="enrol"):
        client.renew(folder, key)


def test_whoever_has_another_ca_than_the_token_names_is_told_nothing(
    port: DevicePort, folder: IdentityFolder, key: FileKey
) -> None:
    port.token = msgspec.structs.replace(port.token, ca=Sha256("0" * 64))

    with pytest.raises(ControllerUntrusted, match="another CA"):
        enrol(port, folder, key)

    assert port.raw == []
    assert folder.current() is None


def test_whoever_shows_the_right_ca_but_has_no_certificate_of_it_is_told_nothing(
    port: DevicePort, folder: IdentityFolder, key: FileKey
) -> None:
    real = Authority("root")
    port.given_ca = real.pem.encode()
    port.token = msgspec.structs.replace(port.token, ca=real.sha256)

    with pytest.raises(ControllerUntrusted, match="not who this device trusts"):
        enrol(port, folder, key)

    assert port.raw == []


def test_a_certificate_of_another_host_is_not_accepted(port: DevicePort, folder: IdentityFolder, key: FileKey) -> None:
    port.url = port.url.replace("127.0.0.1", "localhost")

    with pytest.raises(ControllerUntrusted):
        enrol(port, folder, key)

    assert port.raw == []


def test_the_root_is_found_among_several_while_one_rotates(
    port: DevicePort, folder: IdentityFolder, key: FileKey
) -> None:
    port.given_ca = (Authority("next").pem + port.authority.pem).encode()

    assert isinstance(enrol(port, folder, key), Enrolled)


def test_a_clock_that_is_years_behind_enrols_all_the_same(
    port: DevicePort, folder: IdentityFolder, key: FileKey
) -> None:
    enrolled = enrol(port, folder, key, clock=lambda: time.time() - 10 * YEAR_S)

    assert isinstance(enrolled, Enrolled)
    assert len(port.requests) == 2
    assert port.requests[0].nonce != port.requests[1].nonce
    assert abs(port.requests[1].asked_at - time.time()) < 60


def test_a_server_certificate_that_is_not_valid_yet_is_the_clock_of_the_device(
    tmp_path: Path, folder: IdentityFolder, key: FileKey
) -> None:
    tomorrow = Authority(begins=datetime.now(UTC) + timedelta(days=1))

    with closing(DevicePort(tmp_path, tomorrow)) as port:
        enrolled = enrol(port, folder, key)

    assert isinstance(enrolled, Enrolled)


def test_a_server_certificate_that_is_over_is_not_accepted(
    tmp_path: Path, folder: IdentityFolder, key: FileKey
) -> None:
    with closing(DevicePort(tmp_path, Authority(), life_s=60.0)) as port, pytest.raises(ControllerUntrusted):
        enrol(port, folder, key)

    assert port.raw == []


def test_a_certificate_that_is_over_is_not_accepted_where_another_is_not_valid_yet(
    tmp_path: Path, folder: IdentityFolder, key: FileKey
) -> None:
    tomorrow = Authority(begins=datetime.now(UTC) + timedelta(days=1))

    with closing(DevicePort(tmp_path, tomorrow, life_s=60.0)) as port, pytest.raises(ControllerUntrusted, match="over"):
        enrol(port, folder, key, clock=lambda: time.time() + 2 * 86400)

    assert port.raw == []


def test_a_controller_that_wants_somebody_to_accept_changes_nothing(
    port: DevicePort, folder: IdentityFolder, key: FileKey
) -> None:
    port.answers = [Waiting(retry_s=5.0, reason="accept it on the page", server_time=1.0)]

    answer = enrol(port, folder, key)

    assert isinstance(answer, Waiting)
    assert folder.current() is None


def test_a_refusal_is_told_with_its_code_and_reason(port: DevicePort, folder: IdentityFolder, key: FileKey) -> None:
    port.answers = [Refused(code="serial", reason="SN-1 is not on the list", server_time=1.0)]

    with pytest.raises(EnrolmentRefused, match="not on the list") as refused:
        enrol(port, folder, key)

    assert refused.value.code == "serial"


def test_a_controller_that_finds_every_clock_wrong_is_asked_twice_and_no_more(
    port: DevicePort, folder: IdentityFolder, key: FileKey
) -> None:
    port.answers = [Refused(code="clock", reason="off", server_time=float(at)) for at in (1, 2, 3)]

    with pytest.raises(EnrolmentRefused) as refused:
        enrol(port, folder, key)

    assert refused.value.code == "clock"
    assert len(port.requests) == 2


Change = Callable[[DevicePort, Granted], Granted]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda port, at: _with(at, certificate="none"), "do not parse"),
        (lambda port, at: _with(at, ca="none"), "do not parse"),
        (lambda port, at: _with(at, certificate=at.certificate * 6), "are the most"),
        (lambda port, at: _with(at, ca=Authority("root").pem), "does not lead"),
        (lambda port, at: _with(at, broker_url="http://broker"), "cannot be used"),
        (lambda port, at: _with(at, device_url="http://controller"), "cannot be used"),
        (lambda port, at: _with(at, fleet="other"), "fleet"),
        (lambda port, at: _with(at, fleet="Not A Name"), "is of fleet"),
    ],
)
def test_what_was_granted_but_does_not_fit_changes_nothing(
    port: DevicePort, folder: IdentityFolder, key: FileKey, change: Change, said: str
) -> None:
    first = enrol(port, folder, key)
    granting = port.grant

    def grant(public: ec.EllipticCurvePublicKey, device: str, fleet: str = FLEET) -> Granted:
        return change(port, granting(public, device, fleet))

    port.grant = grant  # type: ignore[method-assign]  # The harness answers otherwise from here on.

    with pytest.raises(GrantUnusable, match=said):
        client.renew(folder, key)

    assert folder.current() == first


def test_a_certificate_of_another_key_or_another_device_changes_nothing(
    port: DevicePort, folder: IdentityFolder, key: FileKey
) -> None:
    first = enrol(port, folder, key)
    granting = port.grant
    other = ec.generate_private_key(ec.SECP256R1()).public_key()

    port.grant = lambda public, device, fleet=FLEET: granting(other, device)  # type: ignore[method-assign]  # As above.
    with pytest.raises(GrantUnusable, match="another key"):
        client.renew(folder, key)
    port.grant = lambda public, device, fleet=FLEET: granting(public, "crane-08")  # type: ignore[method-assign]  # Too.
    with pytest.raises(GrantUnusable, match="names crane-08"):
        client.renew(folder, key)

    assert folder.current() == first


def _with(granted: Granted, **changes: object) -> Granted:
    return msgspec.structs.replace(granted, **changes)


@pytest.mark.parametrize("said", [b"", b"{}", b"<html>", b"x" * (ANSWER_BYTES_MAX + 1)])
def test_an_answer_in_other_words_is_worth_another_try(
    port: DevicePort, folder: IdentityFolder, key: FileKey, said: bytes
) -> None:
    port.answers = [said]

    with pytest.raises(EnrolmentUnreachable):
        enrol(port, folder, key)


def test_nobody_at_the_port_is_said_with_what_to_look_at(
    port: DevicePort, folder: IdentityFolder, key: FileKey
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port.url = f"https://127.0.0.1:{taken.getsockname()[1]}"

    with pytest.raises(EnrolmentUnreachable, match="check the address"):
        enrol(port, folder, key)


def test_a_trickle_does_not_hold_a_device_for_longer_than_the_deadline(
    tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "ANSWER_S", 0.5)
    ending = threading.Event()
    sent: list[bytes] = []
    context = authority.server(tmp_path)

    def trickle(listener: socket.socket) -> None:
        try:
            with listener.accept()[0] as plain, context.wrap_socket(plain, server_side=True) as peer:
                peer.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                for _ in range(200):  # Without a deadline the device reads all of it, and says something else.
                    ending.wait(0.02)
                    peer.sendall(b"x")
                    sent.append(b"x")
        except OSError:
            return  # The device hung up.

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=trickle, args=(listener,))
        server.start()
        try:
            with pytest.raises(EnrolmentUnreachable):
                channel.fetch_root(Where("127.0.0.1", listener.getsockname()[1]), authority.sha256)
            taken = len(sent)
        finally:
            ending.set()
            server.join()

    assert taken < 150


def test_the_address_of_a_device_port_has_the_port_of_the_product_by_default() -> None:
    assert parse_device_url("https://fleet.example") == Where("fleet.example", 8443)
    assert str(parse_device_url("https://[::1]:9443/")) == "https://[::1]:9443"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "fleet",
        "http://fleet",
        "https://",
        "https://fleet:0",
        "https://fleet:x",
        "https://fleet/a",
        "https://u@fleet",
    ],
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(EnrolmentRefused, match="https://host"):
        parse_device_url(url)
