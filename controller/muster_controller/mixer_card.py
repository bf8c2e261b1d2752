"""A mixer's card: the public halves of its keys, in one file that it hands out.

    mixer.json ── `muster mixer admit` ──▶ the controller: who may have a mixer's certificate
         └─────── `muster mixer sign` ───▶ the offline keys: to whom devices seal their windows

Values and bytes alone; where the private halves are is `mixer.folder`'s.
"""

from collections.abc import Mapping
from typing import Final, Literal

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from muster_shared import ids
from muster_shared.errors import WireError
from muster_shared.metrics import key_id
from muster_shared.undecodable import UNDECODABLE, reason

CARD: Final = "mixer.json"
"""What the file is called."""
CARD_BYTES_MAX: Final = 16 * 1024
IDENTITY_CHARACTERS_MAX: Final = 1024
KEY_BYTES: Final = 32
KEYS_MAX: Final = 16
"""Of sealing, in force at once: all of them are in the file that every device has."""


class MixerCard(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a mixer shows of itself."""

    v: Literal[1] = 1
    mixer: str
    """Its name."""
    identity: str
    """PEM (SubjectPublicKeyInfo): the P-256 key with which it asks for certificates."""
    public_key: bytes
    """X25519, 32 raw bytes: to it devices seal."""

    @property
    def key_id(self) -> str:
        return key_id(self.public_key)


def encode_card(card: MixerCard) -> bytes:
    return msgspec.json.format(msgspec.json.encode(card), indent=1) + b"\n"


def parse_card(raw: bytes) -> MixerCard:
    """Return the card in `raw`, checked. Raises WireError."""
    if len(raw) > CARD_BYTES_MAX:
        raise WireError(f"a mixer's card of {len(raw)} bytes; the limit is {CARD_BYTES_MAX}")
    try:
        card = msgspec.json.decode(raw, type=MixerCard)
    except UNDECODABLE as error:
        raise WireError(
            f"this is no mixer's card ({reason(error)}); take the mixer.json that `muster mixer create` wrote"
        ) from error
    check_card(card)
    return card


def check_card(card: MixerCard) -> None:
    """Raises WireError: its name is none, or one of its keys."""
    ids.name(card.mixer, "mixer")
    check_key(card.public_key)
    if len(card.identity) > IDENTITY_CHARACTERS_MAX:
        raise WireError("the identity key of a mixer's card is too long for one")
    try:
        key = load_pem_public_key(card.identity.encode("ascii"))
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise WireError("the identity key of the mixer's card is no public key in PEM") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise WireError("the identity key of the mixer's card is not of P-256")


def check_key(public_key: bytes) -> None:
    """Raise WireError unless somebody can seal to this key: not 32 bytes, or a point of low order (RFC 7748, 6.1)."""
    try:
        if len(public_key) != KEY_BYTES:
            raise ValueError("length")
        X25519PrivateKey.generate().exchange(X25519PublicKey.from_public_bytes(public_key))
    except ValueError as error:
        raise WireError("a mixer's key is no X25519 public key of 32 bytes; take the mixer.json as it is") from error


def check_keys(keys: Mapping[str, bytes]) -> None:
    """Raise WireError unless these may be the mixers of a fleet, by `key_id`."""
    if len(keys) > KEYS_MAX:
        raise WireError(f"{len(keys)} mixer keys; {KEYS_MAX} at most, so remove those of mixers that are gone")
    for name, public_key in keys.items():
        check_key(public_key)
        if key_id(public_key) != name:
            raise WireError(f"mixer key {name[:40]!r} is not called as its content says; take another copy")
