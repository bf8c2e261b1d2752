"""The fleet CA: what its certificates say, what survives a crash or a second process, and what it refuses to use."""

import ssl
import stat
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from muster_controller.identity import certificates
from muster_controller.identity.ca import FleetCa
from muster_controller.identity.certificates import DAY_S, Signer, SigningKey
from muster_controller.identity.errors import CaInvalid, RootKeyAway
from muster_shared.ids import DeviceId, FleetId

NOW = 1_800_000_000.0
FLEET = FleetId("test")
NAMES = ("localhost", "127.0.0.1", "::1", "fleet.example")
DEVICE = DeviceId("dev-1")


def open_ca(data: Path, now: float = NOW) -> FleetCa:
    return FleetCa(data, FLEET, now, lambda path: None)


def issue(ca: FleetCa, now: float = NOW) -> list[x509.Certificate]:
    public = certificates.new_key().public_key()
    return x509.load_pem_x509_certificates(ca.issue_device(DEVICE, public, now).pem)


def chain_at(path: Path) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(path.read_bytes())


def verify_client(ca: FleetCa, chain: list[x509.Certificate], now: float = NOW) -> None:
    store = Store(x509.load_pem_x509_certificates(ca.roots_pem))
    policies = PolicyBuilder().store(store).time(certificates._moment(now))
    # A name that is no host name stands in the subject alone.
    leaf_policy = x509.verification.ExtensionPolicy.permit_all()
    ca_policy = x509.verification.ExtensionPolicy.webpki_defaults_ca()
    verifier = policies.extension_policies(ca_policy=ca_policy, ee_policy=leaf_policy).build_client_verifier()
    verifier.verify(chain[0], chain[1:])


def revoked_serials(ca: FleetCa) -> list[set[int]]:
    begin = b"-----BEGIN X509 CRL-----"
    parts = ca.paths.crl.read_bytes().split(begin)[1:]
    return [{each.serial_number for each in x509.load_pem_x509_crl(begin + part)} for part in parts]


def bring(path: Path, key: SigningKey, chain: list[x509.Certificate]) -> Path:
    raw = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(raw + certificates.pem(chain))
    return path


def foreign_ca(now: float = NOW) -> tuple[Signer, Signer]:
    """Return a root and an intermediate of somebody else's CA."""
    root_key, key = certificates.new_key(), certificates.new_key()
    root = Signer(root_key, certificates.make_root(root_key, FleetId("theirs"), now), ())
    return root, Signer(key, certificates.make_intermediate(root, key, FleetId("theirs"), now), (root.certificate,))


# -- what it issues ----------------------------------------------------------------------------------------------------


def test_a_device_certificate_names_the_device_and_the_fleet_and_is_good_for_a_week_as_a_client(tmp_path: Path) -> None:
    ca = open_ca(tmp_path)

    leaf, intermediate = issue(ca)

    names = {each.oid: each.value for each in leaf.subject}
    assert names == {NameOID.COMMON_NAME: "dev-1", NameOID.ORGANIZATION_NAME: "test"}
    usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert leaf.not_valid_before_utc.timestamp() == NOW - 300
    assert leaf.not_valid_after_utc.timestamp() == NOW + 7 * DAY_S
    assert intermediate.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0
    verify_client(ca, [leaf, intermediate])


def test_a_client_certificate_says_its_name_in_a_uri_too_which_nobody_has_to_understand(tmp_path: Path) -> None:
    ca = open_ca(tmp_path)
    ca.renew_own(NAMES, NOW)

    found = [
        leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        for leaf in (issue(ca)[0], chain_at(ca.paths.controller)[0])
    ]

    assert [each.critical for each in found] == [False, False]
    assert [list(each.value) for each in found] == [
        [x509.UniformResourceIdentifier("urn:muster:test:dev-1")],
        [x509.UniformResourceIdentifier("urn:muster:test:controller.test")],
    ]


def test_the_server_certificate_has_every_name_and_brings_the_whole_chain_with_it(tmp_path: Path) -> None:
    ca = open_ca(tmp_path)

    ca.renew_own(NAMES, NOW)

    leaf, intermediate, root = chain_at(ca.paths.server)
    verifier = PolicyBuilder().store(Store([root])).time(certificates._moment(NOW))
    for name in (x509.DNSName("fleet.example"), x509.IPAddress(ip_address("::1"))):
        assert verifier.build_server_verifier(name).verify(leaf, [intermediate])
    assert certificates.pin(root) == ca.pin
    with pytest.raises(VerificationError):
        verifier.build_server_verifier(x509.DNSName("elsewhere.example")).verify(leaf, [intermediate])


def test_openssl_takes_key_and_chain_from_one_file(tmp_path: Path) -> None:
    ca = open_ca(tmp_path)
    ca.renew_own(NAMES, NOW)

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(ca.paths.server)
    context.load_verify_locations(ca.paths.clients)

    assert context.cert_store_stats()["x509_ca"] == 2


def test_what_is_not_at_half_of_its_life_is_left_alone(tmp_path: Path) -> None:
    ca = open_ca(tmp_path)
    first = ca.renew_own(NAMES, NOW)

    early, late = ca.renew_own(NAMES, NOW + 14 * DAY_S), ca.renew_own(NAMES, NOW + 16 * DAY_S)

    assert [each.name for each in first] == ["server.test", "controller.test"]
    assert early == []
    assert [each.name for each in late] == ["server.test", "controller.test"]


def test_another_name_is_worth_another_server_certificate(tmp_path: Path) -> None:
    ca = open_ca(tmp_path)
    ca.renew_own(NAMES, NOW)

    made = ca.renew_own((*NAMES, "10.0.0.7"), NOW)

    assert [each.name for each in made] == ["server.test"]


def test_no_certificate_outlives_what_signed_it(tmp_path: Path) -> None:
    ca = open_ca(tmp_path)
    late = NOW + 364 * DAY_S

    leaf, intermediate = issue(ca, late)

    assert leaf.not_valid_after_utc == intermediate.not_valid_after_utc


def test_an_intermediate_that_ran_out_signs_nothing_and_says_what_to_do(tmp_path: Path) -> None:
    ca = open_ca(tmp_path)

    with pytest.raises(CaInvalid, match="muster ca renew"):
        issue(ca, NOW + 366 * DAY_S)


def test_a_fleet_whose_name_no_certificate_can_hold_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(CaInvalid, match="53 characters"):
        FleetCa(tmp_path, FleetId("f" * 54), NOW)


# -- files -------------------------------------------------------------------------------------------------------------


def test_no_private_key_can_be_read_by_others(tmp_path: Path) -> None:
    ca = open_ca(tmp_path)
    ca.renew_own(NAMES, NOW)
    ca.renew(NOW, new_key=True)

    private = [path for path in ca.folder.rglob("*") if path.is_file() and b"PRIVATE KEY" in path.read_bytes()]

    assert {path.name for path in private} >= {"authority.pem", "root.key", "server.pem", "controller.pem"}
    assert len(private) == 5
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in private)


def test_the_ca_is_the_same_after_a_restart(tmp_path: Path) -> None:
    first = open_ca(tmp_path)

    second = open_ca(tmp_path)

    assert second.pin == first.pin
    verify_client(second, issue(first))


def test_a_ca_that_was_half_made_is_made_again(tmp_path: Path) -> None:
    whole = open_ca(tmp_path)
    (whole.folder / "authority.pem").unlink()  # The power failed before the last of the files that matter.

    again = open_ca(tmp_path)

    again.renew(NOW)  # The key that was left behind is not taken for the root's.
    verify_client(again, issue(again))


def test_the_keys_of_a_ca_are_encrypted_with_the_passphrase_of_the_operator(tmp_path: Path) -> None:
    FleetCa(tmp_path, FLEET, NOW, lambda path: b"secret")

    assert b"ENCRYPTED" in (tmp_path / "ca" / "authority.pem").read_bytes()
    assert b"ENCRYPTED" in (tmp_path / "ca" / "root.key").read_bytes()
    with pytest.raises(CaInvalid):
        FleetCa(tmp_path, FLEET, NOW, lambda path: b"another")


@pytest.mark.parametrize("keep", [0, 10, 500])
def test_a_damaged_ca_is_said_to_be_damaged(tmp_path: Path, keep: int) -> None:
    path = open_ca(tmp_path).folder / "authority.pem"
    path.write_bytes(path.read_bytes()[:keep])

    with pytest.raises(CaInvalid, match=r"authority\.pem"):
        open_ca(tmp_path)


# -- the root's key ----------------------------------------------------------------------------------------------------


def test_the_roots_key_moves_as_a_whole(tmp_path: Path) -> None:
    ca = open_ca(tmp_path)
    key = (ca.folder / "root.key").read_bytes()

    copy = ca.take_root(tmp_path / "usb")

    assert copy.read_bytes() == key
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert not ca.has_root_key
    with pytest.raises(RootKeyAway, match="--root-key"):
        ca.renew(NOW)
    ca.renew(NOW + DAY_S, root_key=copy)
    assert ca.intermediate_expires_at == NOW + 366 * DAY_S


def test_a_key_that_is_already_in_the_other_folder_is_not_overwritten(tmp_path: Path) -> None:
    ca = open_ca(tmp_path / "data")
    other = tmp_path / "usb" / "root.key"
    other.parent.mkdir()
    other.write_text("somebody else's")

    with pytest.raises(FileExistsError):
        ca.take_root(other.parent)

    assert other.read_text() == "somebody else's"
    assert ca.has_root_key


def test_the_key_of_another_root_renews_nothing(tmp_path: Path) -> None:
    ca, other = open_ca(tmp_path / "one"), open_ca(tmp_path / "other")

    with pytest.raises(CaInvalid, match="bring the root's own"):
        ca.renew(NOW, root_key=other.folder / "root.key")


def test_the_intermediate_is_renewed_in_time_by_itself_while_the_roots_key_is_here(tmp_path: Path) -> None:
    ca = open_ca(tmp_path)

    early, late = ca.refresh(NOW + 200 * DAY_S), ca.refresh(NOW + 250 * DAY_S)

    assert (early, late) == (False, True)
    assert ca.intermediate_expires_at == NOW + 615 * DAY_S


def test_devices_stay_in_when_the_intermediate_is_renewed(tmp_path: Path) -> None:
    ca = open_ca(tmp_path)
    chain = issue(ca)

    ca.renew(NOW + DAY_S)

    verify_client(ca, chain, NOW + DAY_S)
    assert issue(ca, NOW + DAY_S)[1].subject == chain[1].subject


def test_another_process_that_renews_is_noticed(tmp_path: Path) -> None:
    ca = open_ca(tmp_path)

    open_ca(tmp_path).renew(NOW, new_key=True)

    assert ca.refresh(NOW)
    assert [each.name for each in ca.renew_own(NAMES, NOW)] == ["server.test", "controller.test"]
    assert not ca.refresh(NOW)


# -- revocation --------------------------------------------------------------------------------------------------------


def test_the_revocation_list_names_what_is_revoked_and_is_left_alone_until_that_changes(tmp_path: Path) -> None:
    ca = open_ca(tmp_path)
    leaf = issue(ca)[0]
    revoked = [(f"{leaf.serial_number:x}", NOW)]

    written = [ca.write_crl([], NOW), ca.write_crl(revoked, NOW), ca.write_crl(revoked, NOW + DAY_S)]

    assert written == [True, True, False]
    assert revoked_serials(ca) == [{leaf.serial_number}]


def test_each_list_begins_later_than_the_one_before_it(tmp_path: Path) -> None:
    ca = open_ca(tmp_path)
    begins = []

    for serial in ("a", "b", "c"):
        ca.write_crl([(serial, NOW)], NOW)
        begins.append(x509.load_pem_x509_crl(ca.paths.crl.read_bytes()).last_update_utc)

    assert begins == sorted(set(begins))


def test_a_list_is_renewed_long_before_it_runs_out(tmp_path: Path) -> None:
    ca = open_ca(tmp_path)
    ca.write_crl([], NOW)

    assert ca.write_crl([], NOW + 11 * DAY_S)
    crl = x509.load_pem_x509_crl(ca.paths.crl.read_bytes())
    assert crl.next_update_utc is not None
    assert crl.next_update_utc.timestamp() == NOW + 41 * DAY_S


def test_certificates_of_a_retired_intermediate_can_still_be_revoked(tmp_path: Path) -> None:
    ca = open_ca(tmp_path)
    leaf = issue(ca)[0]
    ca.renew(NOW, new_key=True)

    ca.write_crl([(f"{leaf.serial_number:x}", NOW)], NOW)

    assert revoked_serials(ca) == [{leaf.serial_number}, {leaf.serial_number}]
    assert len(chain_at(ca.paths.clients)) == 3


# -- somebody else's CA ------------------------------------------------------------------------------------------------


def test_an_intermediate_of_the_users_own_ca_is_used_once_devices_know_its_root(tmp_path: Path) -> None:
    ca = open_ca(tmp_path / "data")
    before = issue(ca)
    root, theirs = foreign_ca()
    file = bring(tmp_path / "theirs.pem", theirs.key, [theirs.certificate, root.certificate])
    with pytest.raises(CaInvalid, match="--announce"):
        ca.use(file, NOW)
    announced = tmp_path / "root.pem"
    announced.write_bytes(certificates.pem([root.certificate]))

    ca.announce(announced, NOW)
    ca.use(file, NOW)

    after = issue(ca)
    assert after[1] == theirs.certificate
    assert ca.pin == certificates.pin(root.certificate)
    verify_client(ca, before)
    verify_client(ca, after)


def test_a_chain_in_any_order_is_put_in_order(tmp_path: Path) -> None:
    ca = open_ca(tmp_path / "data")
    root, theirs = foreign_ca()
    file = bring(tmp_path / "theirs.pem", theirs.key, [root.certificate, theirs.certificate])

    ca.use(file, NOW, force=True)

    assert issue(ca)[1] == theirs.certificate


def test_what_is_no_usable_intermediate_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    ca = open_ca(tmp_path / "data")
    root, theirs = foreign_ca()
    other_root, _ = foreign_ca()
    old_root, old = foreign_ca(NOW - 400 * DAY_S)
    leaf_key = certificates.new_key()
    issued = certificates.issue_client(theirs, leaf_key.public_key(), "dev", FleetId("theirs"), NOW)
    leaf = x509.load_pem_x509_certificates(issued.pem)
    weak = rsa.generate_private_key(65537, 2048)
    bad: dict[str, Path] = {
        "not the key": bring(tmp_path / "a.pem", weak, [theirs.certificate, root.certificate]),
        "no chain": bring(tmp_path / "b.pem", theirs.key, [theirs.certificate]),
        "another's root": bring(tmp_path / "c.pem", theirs.key, [theirs.certificate, other_root.certificate]),
        "a leaf": bring(tmp_path / "d.pem", leaf_key, [*leaf, root.certificate]),
        "run out": bring(tmp_path / "e.pem", old.key, [old.certificate, old_root.certificate]),
        "the root itself": bring(tmp_path / "f.pem", root.key, [root.certificate]),
    }
    (tmp_path / "g.pem").write_bytes(b"nothing")
    bad["no PEM"] = tmp_path / "g.pem"
    pin = ca.pin

    for what, file in bad.items():
        with pytest.raises(CaInvalid):
            ca.use(file, NOW, force=True)
        assert (what, ca.pin) == (what, pin)
    verify_client(ca, issue(ca))


def test_an_intermediate_with_an_rsa_key_signs_as_well(tmp_path: Path) -> None:
    ca = open_ca(tmp_path / "data")
    root, _ = foreign_ca()
    key = rsa.generate_private_key(65537, 2048)
    certificate = certificates.make_intermediate(root, key, FleetId("theirs"), NOW)
    file = bring(tmp_path / "rsa.pem", key, [certificate, root.certificate])

    ca.use(file, NOW, force=True)

    assert isinstance(issue(ca)[0].public_key(), ec.EllipticCurvePublicKey)
    verify_client(ca, issue(ca))
