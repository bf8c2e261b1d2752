"""The identity key: made on the device, never leaves it, signs requests for certificates and nothing else.

A file with mode 0600 (`FileKey`), or an object of a PKCS#11 token such as a TPM (`pkcs11_key`). P-256, ECDSA with
SHA-256. It is not the key of a connection: that one is made anew with every certificate.
"""

import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from muster_agent.errors import KeyUnusable
from muster_agent.identity.folder import IdentityFolder, write_new
from muster_agent.identity.key_uri import parse_key
from muster_agent.identity.public_key import spki_pem
from muster_agent.io.durable import sync

KEY_BYTES_MAX = 16 * 1024


class IdentityKey(Protocol):
    """Who this device is."""

    def public_pem(self) -> str:
        """Return the public half: PEM, SubjectPublicKeyInfo. Raises KeyUnusable."""
        ...

    def sign(self, data: bytes) -> bytes:
        """Return the signature of `data`: ECDSA P-256 over SHA-256, DER. Raises KeyUnusable."""
        ...


def open_key(text: str, folder: IdentityFolder, *, make: bool) -> IdentityKey:
    """Return the key that the configuration names.

    Args:
        text: `file`, or a PKCS#11 URI.
        folder: Where the file is.
        make: Whether it is made where there is none. A renewal must not: another key is another device.

    Raises:
        KeyUnusable: it cannot be used, or is not there.
    """
    where = parse_key(text)
    if where is None:
        return FileKey.open(folder, make=make)
    try:
        from muster_agent.identity.pkcs11_key import Pkcs11Key
    except ImportError as error:
        raise KeyUnusable(f"PKCS#11 needs the extra: pip install 'muster-agent[pkcs11]' ({error})") from error
    return Pkcs11Key.open(where, make=make)


class FileKey:
    """A key in a file that only its owner can read."""

    def __init__(self, private: ec.EllipticCurvePrivateKey) -> None:
        self._private = private

    @classmethod
    def open(cls, folder: IdentityFolder, *, make: bool) -> "FileKey":
        """Return the key in `folder`, made first if it is not there and `make`. Raises KeyUnusable."""
        path = folder.key_path
        try:
            if make and not os.path.lexists(path):
                _make(folder)
            return cls(_load(path))
        except OSError as error:
            raise KeyUnusable(f"the identity key {path}: {error.strerror or error}") from error

    def public_pem(self) -> str:
        return spki_pem(self._private.public_key())

    def sign(self, data: bytes) -> bytes:
        return self._private.sign(data, ec.ECDSA(hashes.SHA256()))


def private_pem(private: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a private key as PEM (PKCS #8), not encrypted: whoever starts the device has no passphrase."""
    return private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _make(folder: IdentityFolder) -> None:
    """Write a new key whole under another name and link it: a torn file never bears the name, and none is replaced."""
    path = folder.key_path
    folder.make()
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    write_new(fresh, private_pem(ec.generate_private_key(ec.SECP256R1())), folder.owner)
    try:
        with suppress(FileExistsError):  # Somebody was faster: theirs is the key.
            os.link(fresh, path)
    finally:
        fresh.unlink()
    sync(folder.path)


def _load(path: Path) -> ec.EllipticCurvePrivateKey:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    with open(descriptor, "rb") as file:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode) or mode & 0o077:
            raise KeyUnusable(
                f"the identity key {path} can be read by others (mode {stat.S_IMODE(mode):04o}); if nobody has read "
                f"it, run `chmod 600 {path}`, else revoke the device, remove the file and enrol again"
            )
        content = file.read(KEY_BYTES_MAX)
    try:
        private = serialization.load_pem_private_key(content, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise KeyUnusable(
            f"the identity key {path} does not parse; bring back a backup of it, or remove it, revoke the device and "
            "enrol again"
        ) from error
    if not isinstance(private, ec.EllipticCurvePrivateKey) or not isinstance(private.curve, ec.SECP256R1):
        raise KeyUnusable(f"the identity key {path} is not a P-256 key; remove it and enrol again")
    return private
