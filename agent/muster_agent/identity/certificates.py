"""Session keys and certificates: what a device asks for, and whether what it was granted fits it."""

import hashlib
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from muster_agent.errors import GrantUnusable
from muster_agent.identity.keys import private_pem
from muster_shared.ids import DeviceId, FleetId

CHAIN_MAX = 5


@dataclass(frozen=True)
class SessionKey:
    """The key of connections for the life of one certificate."""

    private: ec.EllipticCurvePrivateKey

    @classmethod
    def make(cls) -> "SessionKey":
        return cls(ec.generate_private_key(ec.SECP256R1()))

    def pem(self) -> bytes:
        """Return it for its file."""
        return private_pem(self.private)

    def request(self, device: DeviceId) -> str:
        """Return a certificate signing request, PEM. The controller reads only the key of it."""
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, device)])
        csr = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(self.private, hashes.SHA256())
        return csr.public_bytes(serialization.Encoding.PEM).decode("ascii")


@dataclass(frozen=True)
class Leaf:
    """What is to be known of a granted certificate."""

    fingerprint: str
    """SHA-256 of its DER, lower-case hex."""
    expires_at: float


def check_chain(chain: str, roots: str, key: SessionKey, fleet: FleetId, device: DeviceId) -> Leaf:
    """Return what the first certificate of `chain` says, once it is this device's and leads to one of `roots` (PEM).

    Dates are not judged: the device's clock may be wrong, the broker's is not.

    Raises:
        GrantUnusable: it does not fit, and why.
    """
    try:
        links = x509.load_pem_x509_certificates(chain.encode("ascii"))
        anchors = x509.load_pem_x509_certificates(roots.encode("ascii"))
    except ValueError as error:
        raise GrantUnusable(f"the granted certificates do not parse: {error}; look at the controller's log") from error
    if len(links) > CHAIN_MAX:
        raise GrantUnusable(f"a chain of {len(links)} certificates was granted; {CHAIN_MAX} are the most")
    leaf = links[0]
    if _spki(leaf.public_key()) != _spki(key.private.public_key()):
        raise GrantUnusable("the granted certificate is of another key than the one asked for; ask again")
    name = (_one(leaf, NameOID.ORGANIZATION_NAME), _one(leaf, NameOID.COMMON_NAME))
    if name != (fleet, device):
        raise GrantUnusable(f"the granted certificate names {name[1]} of fleet {name[0]}, not {device} of {fleet}")
    at = leaf
    for issuer in links[1:]:
        if not _issued(at, issuer):
            break
        at = issuer
    if not any(_issued(at, anchor) for anchor in anchors):
        raise GrantUnusable("the granted certificate does not lead to the CA that came with it; see `muster ca show`")
    return Leaf(hashlib.sha256(leaf.public_bytes(serialization.Encoding.DER)).hexdigest(), _expiry(leaf))


def identity_fingerprint(public_pem: str) -> str:
    """Return the SHA-256 of a public key's DER (SubjectPublicKeyInfo), lower-case hex."""
    return hashlib.sha256(_spki(serialization.load_pem_public_key(public_pem.encode("ascii")))).hexdigest()


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _spki(public: object) -> bytes:
    if not isinstance(public, ec.EllipticCurvePublicKey):
        raise GrantUnusable("the granted certificate is not of an elliptic curve key; look at the controller's log")
    return public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _one(certificate: x509.Certificate, oid: x509.ObjectIdentifier) -> str | None:
    found = certificate.subject.get_attributes_for_oid(oid)
    return str(found[0].value) if len(found) == 1 else None


def _expiry(certificate: x509.Certificate) -> float:
    return certificate.not_valid_after_utc.timestamp()
