"""Signing keys as files."""

import os
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from muster_controller.registry.errors import KeyExists, KeyMissing, KeyUnreadable
from muster_controller.registry.keys import (
    OnlinePublicKeys,
    Role,
    create_key,
    encode_online_keys,
    list_keys,
    load_key,
    load_signer,
    parse_online_keys,
    role_of,
)
from muster_shared.errors import WireError


def no_passphrase(path: Path) -> None:
    return None


def test_a_private_key_is_readable_by_its_holder_alone(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        key = create_key(tmp_path / "keys", "root-1")
    finally:
        os.umask(old)

    assert stat.S_IMODE(key.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(key.path.parent.stat().st_mode) == 0o700
    assert not list(key.path.parent.glob("*.tmp"))


def test_what_a_loaded_key_signs_its_public_half_verifies(tmp_path: Path) -> None:
    key = create_key(tmp_path, "targets-anna")

    signature = load_signer(key.path).sign(b"bytes")

    load_key(key.path).public.verify_signature(signature, b"bytes")
    assert signature.keyid == key.keyid


def test_a_key_is_never_overwritten_whichever_half_is_left(tmp_path: Path) -> None:
    key = create_key(tmp_path, "root-1")
    pem = key.path.read_bytes()

    with pytest.raises(KeyExists):
        create_key(tmp_path, "root-1")
    key.path.with_suffix(".pub").unlink()
    with pytest.raises(KeyExists):
        create_key(tmp_path, "root-1")

    assert key.path.read_bytes() == pem


def test_an_encrypted_key_opens_with_its_passphrase_and_with_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = create_key(tmp_path, "root-1", b"correct horse")

    assert b"ENCRYPTED" in key.path.read_bytes()
    assert load_signer(key.path, lambda path: b"correct horse").public_key.keyid == key.keyid
    monkeypatch.setenv("MUSTER_KEY_PASSPHRASE", "correct horse")
    assert load_signer(key.path).public_key.keyid == key.keyid
    for wrong in (lambda path: b"battery staple", no_passphrase):
        with pytest.raises(KeyUnreadable):
            load_signer(key.path, wrong)


def test_keys_are_listed_without_their_private_halves(tmp_path: Path) -> None:
    create_key(tmp_path, "release-ocr-lines-2", b"secret")
    away = create_key(tmp_path, "root-1")
    away.path.unlink()
    (tmp_path / "notes.txt").write_text("not a key")

    release, root = list_keys(tmp_path, no_passphrase)

    assert (release.role, release.model, release.is_private_here) == (Role.RELEASE, "ocr-lines", True)
    assert (root.role, root.keyid, root.is_private_here) == (Role.ROOT, away.keyid, False)
    with pytest.raises(KeyMissing):
        load_signer(root.path)


@pytest.mark.parametrize("name", ["root", "root-", "../root-1", "release-1", "release--1", "ROOT-1", "snapshot-1", ""])
def test_a_name_that_says_no_role_is_refused(name: str) -> None:
    with pytest.raises(WireError):
        role_of(name)


def test_a_file_that_is_no_ed25519_key_is_refused(tmp_path: Path) -> None:
    rsa = generate_private_key(public_exponent=65537, key_size=2048)
    (tmp_path / "root-1.pem").write_bytes(rsa.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (tmp_path / "root-2.pem").write_bytes(b"")

    for name in ("root-1.pem", "root-2.pem"):
        with pytest.raises(KeyUnreadable):
            load_signer(tmp_path / name)


def test_online_keys_survive_the_way_to_the_operator(tmp_path: Path) -> None:
    keys = OnlinePublicKeys(*(create_key(tmp_path, name).public for name in ("snapshot", "timestamp", "assignment")))

    assert parse_online_keys(encode_online_keys(keys)) == keys
    with pytest.raises(WireError):
        parse_online_keys(b'{"snapshot": 1}')
