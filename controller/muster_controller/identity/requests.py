"""Whether a request for a certificate is what it says: two signatures, and keys that are of use.

The identity key signed the request; the session key signed the CSR inside it. Who they belong to is `enrolment`'s.
"""

from dataclasses import dataclass
from hashlib import sha256

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from muster_controller.identity.errors import RequestInvalid
from muster_shared.enrolment import CertificateRequest, decode_signed, signed_bytes
from muster_shared.ids import Sha256

_FOREIGN = (ValueError, TypeError, UnsupportedAlgorithm)


@dataclass(frozen=True)
class Verified:
    """A request that was signed by the identity key that it names."""

    request: CertificateRequest
    identity: str
    """PEM of the identity key, as we write it."""
    fingerprint: Sha256
    """Of its DER."""
    session: ec.EllipticCurvePublicKey
    """What the certificate is for."""


def verify(raw: bytes) -> Verified:
    """Return a request as it came over the network, checked.

    Raises:
        WireError: it does not parse, or is too large.
        RequestInvalid: a signature does not hold, or a key is of another kind than P-256.
    """
    signed, request = decode_signed(raw)
    identity = _identity_key(request.identity)
    try:
        identity.verify(signed.signature, signed_bytes(signed.body), ec.ECDSA(SHA256()))
    except InvalidSignature as error:
        raise RequestInvalid("the request is not signed by its identity key; send what was signed") from error
    session = _session_key(request.csr)
    der = _der(identity)
    if der == _der(session):
        raise RequestInvalid("the certificate is asked for the identity key itself; make a key of its own for it")
    text = identity.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    return Verified(request, text, Sha256(sha256(der).hexdigest()), session)


def _identity_key(text: str) -> ec.EllipticCurvePublicKey:
    try:
        key = load_pem_public_key(text.encode("ascii"))
    except _FOREIGN as error:
        raise RequestInvalid("the identity key is no public key in PEM") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise RequestInvalid("the identity key is not of P-256; make one that is")
    return key


def _session_key(text: str) -> ec.EllipticCurvePublicKey:
    try:
        csr = x509.load_pem_x509_csr(text.encode("ascii"))
        holds, key = csr.is_signature_valid, csr.public_key()
    except (*_FOREIGN, InvalidSignature) as error:
        raise RequestInvalid("the certificate signing request does not parse; send PEM") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise RequestInvalid("the session key is not of P-256; make one that is")
    if not holds:
        raise RequestInvalid("the certificate signing request is not signed by its own key")
    return key


def _der(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
