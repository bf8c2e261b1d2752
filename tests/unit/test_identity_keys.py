"""The identity key as a file, and what configuration may say of it."""

import os
import stat
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from muster_agent.errors import KeyUnusable
from muster_agent.identity.folder import IdentityFolder
from muster_agent.identity.key_uri import Pkcs11Uri, kind, parse_key
from muster_agent.identity.keys import FileKey, open_key


@pytest.fixture
def folder(tmp_path: Path) -> IdentityFolder:
    return IdentityFolder(tmp_path / "data" / "identity")


def verify(pem: str, signature: bytes, data: bytes) -> None:
    public = serialization.load_pem_public_key(pem.encode())
    assert isinstance(public, ec.EllipticCurvePublicKey)
    assert public.curve.name == "secp256r1"
    public.verify(signature, data, ec.ECDSA(hashes.SHA256()))


def test_a_key_is_made_once_for_its_owner_alone_and_signs(folder: IdentityFolder) -> None:
    made = open_key("file", folder, make=True)

    again = open_key("file", folder, make=True)

    verify(again.public_pem(), made.sign(b"data"), b"data")
    assert stat.S_IMODE(folder.key_path.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    assert os.listdir(folder.path) == ["identity.key"]


def test_a_signature_fits_nothing_else(folder: IdentityFolder) -> None:
    key = open_key("file", folder, make=True)

    signature = key.sign(b"data")

    with pytest.raises(InvalidSignature):
        verify(key.public_pem(), signature, b"other data")


def test_a_renewal_makes_no_key(folder: IdentityFolder) -> None:
    with pytest.raises(KeyUnusable, match=r"identity\.key"):
        open_key("file", folder, make=False)

    assert not folder.key_path.exists()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_key_that_others_may_read_is_refused_and_the_message_says_what_to_do(
    folder: IdentityFolder, mode: int
) -> None:
    FileKey.open(folder, make=True)
    folder.key_path.chmod(mode)

    with pytest.raises(KeyUnusable, match="chmod 600"):
        FileKey.open(folder, make=True)


def test_a_key_that_does_not_parse_is_refused_and_not_replaced(folder: IdentityFolder) -> None:
    folder.make()
    folder.key_path.touch(0o600)

    with pytest.raises(KeyUnusable, match="does not parse"):
        FileKey.open(folder, make=True)

    assert folder.key_path.read_bytes() == b""


def test_a_key_of_another_curve_is_refused(folder: IdentityFolder) -> None:
    folder.make()
    folder.key_path.touch(0o600)
    folder.key_path.write_bytes(
        ec.generate_private_key(ec.SECP384R1()).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )

    with pytest.raises(KeyUnusable, match="P-256"):
        FileKey.open(folder, make=True)


def test_a_link_in_place_of_the_key_is_not_followed(folder: IdentityFolder, tmp_path: Path) -> None:
    FileKey.open(IdentityFolder(tmp_path / "other"), make=True)
    folder.make()
    folder.key_path.symlink_to(tmp_path / "other" / "identity.key")

    with pytest.raises(KeyUnusable):
        FileKey.open(folder, make=True)


def test_what_a_kill_left_while_the_key_was_made_does_not_stand_in_the_way(folder: IdentityFolder) -> None:
    folder.make()
    (folder.path / f".identity.key.{os.getpid()}").write_bytes(b"half a k")

    key = FileKey.open(folder, make=True)

    assert key.public_pem().startswith("-----BEGIN PUBLIC KEY-----")
    assert os.listdir(folder.path) == ["identity.key"]


def test_a_pkcs11_uri_names_module_token_object_and_pin() -> None:
    parsed = parse_key(
        "pkcs11:token=my%20fleet;object=who;id=%01%ff?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:/etc/pin"
    )

    assert parsed == Pkcs11Uri(
        module=Path("/usr/lib/softhsm/libsofthsm2.so"),
        token="my fleet",
        serial=None,
        label="who",
        id=b"\x01\xff",
        pin_file=Path("/etc/pin"),
    )
    assert parse_key("file") is None
    assert kind("pkcs11:token=secret-place") == "pkcs11"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "identity key"),
        ("/etc/key.pem", "identity key"),
        ("pkcs11:token=a", "no module"),
        ("pkcs11:token=a?module-path=lib.so", "no module"),
        ("pkcs11:token=a;token=b?module-path=/lib.so", "one each"),
        ("pkcs11:slot=1?module-path=/lib.so", "one each"),
        ("pkcs11:token=a;type=cert?module-path=/lib.so", "private key"),
        ("pkcs11:token=a?module-path=/lib.so&pin-value=1234", "pin-source"),
        ("pkcs11:token=a?module-path=/lib.so&pin-source=pin", "whole path"),
        ("pkcs11:token=a?module-path=/lib.so&pin-source=|cat pin", "whole path"),
    ],
)
def test_what_names_no_usable_key_is_refused_and_a_pin_is_never_repeated(text: str, said: str) -> None:
    with pytest.raises(KeyUnusable, match=said) as refused:
        parse_key(text)

    assert "1234" not in str(refused.value)


def test_the_three_slashes_of_a_file_url_are_understood() -> None:
    parsed = parse_key("pkcs11:?module-path=/lib.so&pin-source=file:///etc/pin")

    assert parsed is not None
    assert parsed.pin_file == Path("/etc/pin")
    assert parsed.label == "muster-identity"
