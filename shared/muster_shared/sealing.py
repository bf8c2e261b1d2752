"""Sealing of anonymous windows: only the mixer can open them, and neither the broker nor whoever owns it.

HPKE (RFC 9180) by `cryptography`: X25519, HKDF-SHA256, ChaCha20-Poly1305. By itself, because a device that sends none
need not load it.
"""

from collections.abc import Mapping
from typing import Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from muster_shared.errors import WireError
from muster_shared.metrics import SEALED_BYTES_MAX, WINDOW_BYTES, Sealed, Window, key_id, problems
from muster_shared.undecodable import UNDECODABLE, reason

_SUITE: Final = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)
_INFO: Final = b"muster metrics window v1"


def seal(window: Window, public_key: bytes) -> bytes:
    """Return the message for `metrics/<cohort>`, always of the same length for one mixer key.

    Raises:
        WireError: the window does not fit WINDOW_BYTES; its names are too long.
    """
    plain = msgspec.json.encode(window)
    if len(plain) > WINDOW_BYTES:
        raise WireError(f"a window of {len(plain)} bytes; the limit is {WINDOW_BYTES}")
    box = _SUITE.encrypt(plain.ljust(WINDOW_BYTES), X25519PublicKey.from_public_bytes(public_key), _INFO)
    return msgspec.json.encode(Sealed(key=key_id(public_key), box=box))


def open_sealed(raw: bytes, keys: Mapping[str, X25519PrivateKey]) -> Window:
    """Return the window in `raw`, checked: who sent it is unknown, so nothing in it is believed.

    Args:
        keys: by `key_id`.
    Raises:
        WireError: too large, no window, sealed to another key, or it gives more than it may.
    """
    if len(raw) > SEALED_BYTES_MAX:
        raise WireError(f"a sealed window of {len(raw)} bytes; the limit is {SEALED_BYTES_MAX}")
    try:
        sealed = msgspec.json.decode(raw, type=Sealed)
    except UNDECODABLE as error:
        raise WireError(f"not a sealed window: {reason(error)}") from error
    private = keys.get(sealed.key)
    if private is None:
        raise WireError("a window that is sealed to another key")
    try:
        plain = _SUITE.decrypt(sealed.box, private, _INFO)
    except (InvalidTag, ValueError) as error:
        raise WireError("a window that does not open") from error
    if len(plain) != WINDOW_BYTES:
        raise WireError(f"a window of {len(plain)} bytes; all have {WINDOW_BYTES}")
    try:
        window = msgspec.json.decode(plain, type=Window)
    except UNDECODABLE as error:
        raise WireError("not a window") from error  # What was in it is repeated nowhere.
    problem = next(problems(window), None)
    if problem is not None:
        raise WireError(problem)
    return window
