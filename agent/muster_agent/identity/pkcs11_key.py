"""The identity key as an object of a PKCS#11 token: SoftHSM, a smart card, a TPM through tpm2-pkcs11.

It needs the extra `pkcs11` and the vendor's module. The module is native code of somebody else's: it is loaded by
processes that end, never by the daemon. Sessions are short, since a token has few.
"""

import hashlib
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pkcs11
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from pkcs11.types import SignMixin
from pkcs11.util.ec import encode_ec_public_key, encode_named_curve_parameters

from muster_agent.errors import KeyUnusable
from muster_agent.identity.key_uri import Pkcs11Uri
from muster_agent.identity.public_key import spki_pem

PIN_BYTES_MAX = 256
ID_BYTES = 8
SIGNATURE_BYTES = 64  # r and s, 32 bytes each.


class Pkcs11Key:
    """A key pair on a token; its private half cannot be read out."""

    def __init__(self, uri: Pkcs11Uri) -> None:
        self._uri = uri

    @classmethod
    def open(cls, uri: Pkcs11Uri, *, make: bool) -> "Pkcs11Key":
        """Return the key that `uri` names, made first if it is not there and `make`. Raises KeyUnusable."""
        key = cls(uri)
        with key._session(rw=False) as session:
            found = key._find(session, pkcs11.ObjectClass.PRIVATE_KEY)
        if not found and not make:
            raise KeyUnusable(f"{key} has no key pair {uri.label!r}; is it the token that this device enrolled with?")
        if not found:
            with key._session(rw=True) as session:
                key._make(session)
        key.public_pem()  # What cannot be used is said now.
        return key

    def __str__(self) -> str:
        name = self._uri.token or self._uri.serial
        return f"the token {name!r} of {self._uri.module}" if name else f"the token of {self._uri.module}"

    def public_pem(self) -> str:
        with self._session(rw=False) as session:
            public = self._one(session, pkcs11.ObjectClass.PUBLIC_KEY)
            assert isinstance(public, pkcs11.PublicKey)
            try:
                loaded = serialization.load_der_public_key(encode_ec_public_key(public))
            except (ValueError, TypeError, UnsupportedAlgorithm) as error:
                raise KeyUnusable(f"the key {self._uri.label!r} of {self} is no elliptic curve key") from error
        if not isinstance(loaded, ec.EllipticCurvePublicKey) or not isinstance(loaded.curve, ec.SECP256R1):
            raise KeyUnusable(f"the key {self._uri.label!r} of {self} is not a P-256 key; name another object=")
        return spki_pem(loaded)

    def sign(self, data: bytes) -> bytes:
        with self._session(rw=False) as session:
            private = self._one(session, pkcs11.ObjectClass.PRIVATE_KEY)
            assert isinstance(private, SignMixin)
            # CKM_ECDSA over a digest made here: every token with P-256 has it, CKM_ECDSA_SHA256 only some.
            raw = private.sign(hashlib.sha256(data).digest(), mechanism=pkcs11.Mechanism.ECDSA)
        if len(raw) != SIGNATURE_BYTES:
            raise KeyUnusable(f"{self} signed with {len(raw)} bytes instead of {SIGNATURE_BYTES}; is the key P-256?")
        half = SIGNATURE_BYTES // 2
        return encode_dss_signature(int.from_bytes(raw[:half], "big"), int.from_bytes(raw[half:], "big"))

    # -- the token ----------------------------------------------------------------------------------------------------

    def _make(self, session: pkcs11.Session) -> None:
        curve = session.create_domain_parameters(
            pkcs11.KeyType.EC, {pkcs11.Attribute.EC_PARAMS: encode_named_curve_parameters("secp256r1")}, local=True
        )
        curve.generate_keypair(
            id=self._uri.id or secrets.token_bytes(ID_BYTES),
            label=self._uri.label,
            store=True,
            capabilities=pkcs11.MechanismFlag.SIGN | pkcs11.MechanismFlag.VERIFY,
            private_template={
                pkcs11.Attribute.SENSITIVE: True,
                pkcs11.Attribute.EXTRACTABLE: False,
                pkcs11.Attribute.PRIVATE: True,
            },
        )

    def _find(self, session: pkcs11.Session, kind: pkcs11.ObjectClass) -> list[pkcs11.Object]:
        asked: dict[pkcs11.Attribute, object] = {
            pkcs11.Attribute.CLASS: kind,
            pkcs11.Attribute.KEY_TYPE: pkcs11.KeyType.EC,
            pkcs11.Attribute.LABEL: self._uri.label,
        }
        if self._uri.id is not None:
            asked[pkcs11.Attribute.ID] = self._uri.id
        return list(session.get_objects(asked))

    def _one(self, session: pkcs11.Session, kind: pkcs11.ObjectClass) -> pkcs11.Object:
        found = self._find(session, kind)
        if len(found) != 1:
            what = "private" if kind is pkcs11.ObjectClass.PRIVATE_KEY else "public"
            raise KeyUnusable(
                f"{self} has {len(found)} {what} keys {self._uri.label!r}; name one with object= and id= in the URI"
            )
        return found[0]

    @contextmanager
    def _session(self, *, rw: bool) -> Iterator[pkcs11.Session]:
        uri = self._uri
        pin = None if uri.pin_file is None else _pin(uri.pin_file)
        try:
            token = pkcs11.lib(str(uri.module)).get_token(
                token_label=uri.token, token_serial=uri.serial and uri.serial.encode()
            )
            with token.open(rw=rw, user_pin=pin) as session:
                yield session
        except pkcs11.PinLocked as error:
            raise KeyUnusable(f"{self} is locked after wrong PINs; unlock it with its vendor's tool") from error
        except pkcs11.PinIncorrect as error:
            raise KeyUnusable(
                f"{self} refuses the PIN in {uri.pin_file}; correct it: tokens lock after a few wrong ones"
            ) from error
        except (pkcs11.NoSuchToken, pkcs11.MultipleTokensReturned) as error:
            raise KeyUnusable(
                f"{self} was not found, or is not the only one; see `pkcs11-tool --module {uri.module} -L` and name it "
                "with token= or serial="
            ) from error
        except pkcs11.PKCS11Error as error:
            # Its errors mostly have no text of their own.
            raise KeyUnusable(f"{self}: {type(error).__name__} {error}".rstrip()) from error


def _pin(path: Path) -> str:
    """Return the PIN: the first line of a file that only its owner, and its group, can read."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            line = file.readline(PIN_BYTES_MAX).strip()
    except OSError as error:
        raise KeyUnusable(f"the PIN file {path} cannot be read: {error.strerror}") from error
    if mode & 0o007:
        raise KeyUnusable(f"everybody can read the PIN file {path} (mode {stat.S_IMODE(mode):04o}); chmod 600 it")
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise KeyUnusable(f"the PIN file {path} is not text") from error
