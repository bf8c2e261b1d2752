"""The identity key on a PKCS#11 token, shown with SoftHSM."""

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from harness.device_port import Authority, DevicePort
from harness.soft_token import LABEL, MODULE, PIN, WHY_NOT, SoftToken, make_token
from muster_agent.errors import EnrolmentRefused, KeyUnusable
from muster_agent.identity import client
from muster_agent.identity.folder import Enrolled, IdentityFolder
from muster_agent.identity.keys import open_key
from muster_shared.ids import DeviceId

pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SoftToken]:
    before = os.environ.get("SOFTHSM2_CONF")
    yield make_token(tmp_path_factory.mktemp("token"))
    os.environ.pop("SOFTHSM2_CONF")
    if before is not None:
        os.environ["SOFTHSM2_CONF"] = before


@pytest.fixture
def folder(tmp_path: Path) -> IdentityFolder:
    return IdentityFolder(tmp_path / "identity")


def test_a_key_is_made_on_the_token_once_and_signs_what_others_verify(token: SoftToken, folder: IdentityFolder) -> None:
    made = open_key(token.uri("first"), folder, make=True)

    again = open_key(token.uri("first"), folder, make=True)

    public = serialization.load_pem_public_key(again.public_pem().encode())
    assert isinstance(public, ec.EllipticCurvePublicKey)
    assert again.public_pem() == made.public_pem()
    for data in (b"", b"data", b"x" * 20_000):
        public.verify(made.sign(data), data, ec.ECDSA(hashes.SHA256()))
    assert not folder.path.exists()


def test_the_private_half_cannot_be_read_out(token: SoftToken, folder: IdentityFolder) -> None:
    import pkcs11

    open_key(token.uri("kept"), folder, make=True)

    with pkcs11.lib(str(MODULE)).get_token(token_label=LABEL).open(user_pin=PIN) as session:
        (private,) = session.get_objects(
            {pkcs11.Attribute.CLASS: pkcs11.ObjectClass.PRIVATE_KEY, pkcs11.Attribute.LABEL: "kept"}
        )
        assert private[pkcs11.Attribute.EXTRACTABLE] is False
        assert private[pkcs11.Attribute.SENSITIVE] is True
        with pytest.raises(pkcs11.AttributeSensitive):
            private[pkcs11.Attribute.VALUE]


def test_a_device_enrols_and_renews_with_a_key_on_a_token(
    token: SoftToken, folder: IdentityFolder, tmp_path: Path
) -> None:
    with closing(DevicePort(tmp_path, Authority())) as port:
        first = client.enrol(
            folder,
            open_key(token.uri("enrols"), folder, make=True),
            controller_url=port.url,
            token=port.token,
            device=DeviceId("crane-07"),
        )
        second = client.renew(folder, open_key(token.uri("enrols"), folder, make=False))
        with pytest.raises(EnrolmentRefused, match="another identity key"):
            client.renew(folder, open_key(token.uri("thief"), folder, make=True))

    assert isinstance(first, Enrolled)
    assert isinstance(second, Enrolled)
    assert first.identity_fingerprint == second.identity_fingerprint
    assert not folder.key_path.exists()


def test_a_renewal_makes_no_key_on_a_token(token: SoftToken, folder: IdentityFolder) -> None:
    with pytest.raises(KeyUnusable, match="is it the token"):
        open_key(token.uri("none"), folder, make=False)


def test_two_keys_of_one_name_are_told_apart_by_id(token: SoftToken, folder: IdentityFolder) -> None:
    one = open_key(token.uri("twice").replace("twice", "twice;id=%01"), folder, make=True)
    two = open_key(token.uri("twice").replace("twice", "twice;id=%02"), folder, make=True)

    with pytest.raises(KeyUnusable, match="id="):
        open_key(token.uri("twice"), folder, make=True)

    assert one.public_pem() != two.public_pem()


def test_a_key_of_another_curve_is_refused(token: SoftToken, folder: IdentityFolder) -> None:
    import pkcs11
    from pkcs11.util.ec import encode_named_curve_parameters

    with pkcs11.lib(str(MODULE)).get_token(token_label=LABEL).open(rw=True, user_pin=PIN) as session:
        session.create_domain_parameters(
            pkcs11.KeyType.EC, {pkcs11.Attribute.EC_PARAMS: encode_named_curve_parameters("secp384r1")}, local=True
        ).generate_keypair(store=True, label="p384")

    with pytest.raises(KeyUnusable, match="P-256"):
        open_key(token.uri("p384"), folder, make=True)


def test_a_wrong_pin_a_missing_token_and_a_missing_module_each_say_what_to_do(
    token: SoftToken, folder: IdentityFolder, tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong"
    wrong.touch(0o600)
    wrong.write_text("000-000")

    with pytest.raises(KeyUnusable, match="lock after a few wrong ones"):
        open_key(token.uri("first", **{"pin-source": f"file:{wrong}"}), folder, make=True)
    with pytest.raises(KeyUnusable, match="was not found"):
        open_key(token.uri("first").replace("harbour", "other"), folder, make=True)
    with pytest.raises(KeyUnusable, match=r"nothing\.so"):
        open_key(token.uri("first", **{"module-path": "/nothing.so"}), folder, make=True)


def test_a_pin_that_everybody_can_read_is_refused(token: SoftToken, folder: IdentityFolder, tmp_path: Path) -> None:
    pin = tmp_path / "pin"
    pin.write_text(PIN)
    pin.chmod(0o644)

    with pytest.raises(KeyUnusable, match="chmod 600") as refused:
        open_key(token.uri("first", **{"pin-source": f"file:{pin}"}), folder, make=True)

    assert PIN not in str(refused.value)
