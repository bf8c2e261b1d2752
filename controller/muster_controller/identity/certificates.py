"""X.509 as the fleet uses it: which fields each kind of certificate has. RFC 5280; profiles of decision 0013.

    root ── intermediate (pathlen 0) ── devices (clientAuth) · servers (serverAuth) · the controller (clientAuth)

No files and no clock: keys, names and the present are given.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from ipaddress import ip_address
from itertools import pairwise

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from muster_controller.client_names import controller_name, urn
from muster_controller.identity.errors import CaInvalid
from muster_shared.ids import FleetId, Sha256

DAY_S = 86_400.0
ROOT_S = 3_652 * DAY_S
INTERMEDIATE_S = 365 * DAY_S
DEVICE_S = 7 * DAY_S
SERVER_S = 30 * DAY_S
CRL_S = 30 * DAY_S
"""OpenSSL refuses everybody once a list is out of date, so it lasts far longer than the time between two."""
BACKDATED_S = 300.0
"""So that a certificate holds at once for whoever's clock is slow; the same as the clocks that enrolment forgives."""

FLEET_CHARACTERS_MAX = 53
"""RFC 5280 gives a common name 64 characters, and ours begins with `controller.`."""

SigningKey = ec.EllipticCurvePrivateKey | RSAPrivateKey
"""Ours are P-256; an intermediate of the user's CA may be RSA."""


@dataclass(frozen=True)
class Issued:
    """One certificate with what stands above it, root excluded."""

    pem: bytes
    """Leaf first."""
    serial: str
    """Lower-case hex."""
    name: str
    """The subject's common name."""
    issued_at: float
    expires_at: float


@dataclass(frozen=True)
class Signer:
    """A certificate that may sign others, and its key. `above` is what leads to the root, which is last."""

    key: SigningKey
    certificate: x509.Certificate
    above: tuple[x509.Certificate, ...]

    @property
    def root(self) -> x509.Certificate:
        return self.above[-1] if self.above else self.certificate

    @property
    def expires_at(self) -> float:
        return self.certificate.not_valid_after_utc.timestamp()


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def pin(certificate: x509.Certificate) -> Sha256:
    """Return what tokens carry: SHA-256 of the DER."""
    return Sha256(sha256(certificate.public_bytes(Encoding.DER)).hexdigest())


def pem(certificates: Iterable[x509.Certificate]) -> bytes:
    return b"".join(each.public_bytes(Encoding.PEM) for each in certificates)


def make_root(key: SigningKey, fleet: FleetId, now: float) -> x509.Certificate:
    """Return a root that vouches for itself, and may have one level of others below it."""
    name = _name(f"Muster root {_short(key.public_key())}", fleet)
    builder = _builder(name, name, key.public_key(), now, now + ROOT_S)
    return _authority(builder, 1, key.public_key()).sign(key, SHA256())


def make_intermediate(root: Signer, key: SigningKey, fleet: FleetId, now: float) -> x509.Certificate:
    """Return what signs everything else. One key has one name, so a renewed one takes the place of the old.

    Raises:
        CaInvalid: the root has run out.
    """
    name = _name(f"Muster intermediate {_short(key.public_key())}", fleet)
    until = min(now + INTERMEDIATE_S, root.expires_at)
    if until <= now:
        raise CaInvalid(
            said(root.certificate), "the root has run out; bring an intermediate of another: `muster ca use`"
        )
    builder = _builder(name, root.certificate.subject, key.public_key(), now, until)
    builder = builder.add_extension(_issued_by(root), critical=False)
    return _authority(builder, 0, key.public_key()).sign(root.key, SHA256())


def issue_client(signer: Signer, public: ec.EllipticCurvePublicKey, name: str, fleet: FleetId, now: float) -> Issued:
    """Return a certificate for a device, a mixer or the controller itself. Raises CaInvalid: the issuer has run out."""
    lifetime = SERVER_S if name == controller_name(fleet) else DEVICE_S
    also = [x509.UniformResourceIdentifier(urn(fleet, name))]
    return _issue(signer, public, name, fleet, now, lifetime, ExtendedKeyUsageOID.CLIENT_AUTH, also)


def issue_server(
    signer: Signer, public: ec.EllipticCurvePublicKey, names: Sequence[str], fleet: FleetId, now: float
) -> Issued:
    """Return a certificate for the ports that devices connect to; `names` are host names and addresses.

    Raises:
        CaInvalid: the issuer has run out, or a name is none.
    """
    also = [_host(each) for each in names]
    return _issue(signer, public, f"server.{fleet}", fleet, now, SERVER_S, ExtendedKeyUsageOID.SERVER_AUTH, also)


def revocation_list(signer: Signer, revoked: Iterable[tuple[str, float]], now: float, begins_at: float) -> bytes:
    """Return the PEM of a list of serial numbers (hex) and when each was revoked, signed by one issuer.

    `begins_at` has to be later than that of the list before, to the second, or OpenSSL may keep the old one.
    """
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(signer.certificate.subject)
        .last_update(_moment(begins_at))
        .next_update(_moment(now + CRL_S))
        .add_extension(_issued_by(signer), critical=False)
        .add_extension(x509.CRLNumber(int(now * 1000)), critical=False)
    )
    for serial, at in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(int(serial, 16)).revocation_date(_moment(at))
        builder = builder.add_revoked_certificate(entry.build())
    return builder.sign(signer.key, SHA256()).public_bytes(Encoding.PEM)


def check_chain(where: str, signer: Signer, now: float | None) -> None:
    """Raise CaInvalid unless `signer` may sign certificates, its key is its own, and the chain leads to its root.

    Without `now`, it may have run out.
    """
    certificate = signer.certificate
    if _der(certificate.public_key()) != _der(signer.key.public_key()):
        raise CaInvalid(where, "the private key is not that of the certificate; bring the pair that belongs together")
    chain = (certificate, *signer.above)
    for each in chain:
        _check_authority(where, each, now)
    for below, above in pairwise(chain):
        try:
            below.verify_directly_issued_by(above)
        except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise CaInvalid(where, f"{said(below)} was not issued by {said(above)}; bring the whole chain") from error
    root = signer.root
    try:
        root.verify_directly_issued_by(root)
    except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise CaInvalid(where, f"{said(root)} is no root: it does not sign itself; put the root last") from error


def said(certificate: x509.Certificate) -> str:
    """Return a certificate's name for people."""
    return certificate.subject.rfc4514_string() or "a certificate without a name"


def order_chain(where: str, certificates: Sequence[x509.Certificate], key: SigningKey) -> Signer:
    """Return the signer whose key this is, with the others in the order of who issued whom.

    Raises:
        CaInvalid: none of them has this key, or they lead to no root.
    """
    own = next((each for each in certificates if _der(each.public_key()) == _der(key.public_key())), None)
    if own is None:
        raise CaInvalid(where, "no certificate has the public key of this private key; bring the pair")
    above: list[x509.Certificate] = []
    last = own
    while last.issuer != last.subject:
        found = next((each for each in certificates if each.subject == last.issuer and each not in above), None)
        if found is None:
            raise CaInvalid(where, f"who issued {said(last)} is missing; bring the chain up to the root, with it")
        above.append(found)
        last = found
    return Signer(key, own, tuple(above))


def _check_authority(where: str, certificate: x509.Certificate, now: float | None) -> None:
    try:
        basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except (x509.ExtensionNotFound, ValueError) as error:
        raise CaInvalid(where, f"{said(certificate)} does not say what it is for; it is no CA's") from error
    if not (basic.ca and usage.key_cert_sign):
        raise CaInvalid(where, f"{said(certificate)} may not sign certificates; ask for a CA certificate")
    if now is not None and not certificate.not_valid_before_utc <= _moment(now) < certificate.not_valid_after_utc:
        raise CaInvalid(where, f"{said(certificate)} is not valid now; renew it, or set this machine's clock")


def _issue(
    signer: Signer,
    public: ec.EllipticCurvePublicKey,
    name: str,
    fleet: FleetId,
    now: float,
    lifetime_s: float,
    usage: x509.ObjectIdentifier,
    also: Sequence[x509.GeneralName],
) -> Issued:
    until = min(now + lifetime_s, signer.expires_at)
    if until <= now:
        raise CaInvalid(said(signer.certificate), "it has run out; let the root renew it: `muster ca renew`")
    builder = (
        _builder(_name(name, fleet), signer.certificate.subject, public, now, until)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(_issued_by(signer), critical=False)
    )
    if also:
        builder = builder.add_extension(x509.SubjectAlternativeName(also), critical=False)
    certificate = builder.sign(signer.key, SHA256())
    return Issued(
        pem((certificate, signer.certificate, *signer.above[:-1])),
        f"{certificate.serial_number:x}",
        name,
        now,
        certificate.not_valid_after_utc.timestamp(),
    )


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public: CertificatePublicKeyTypes,
    now: float,
    until: float,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_moment(now - BACKDATED_S))
        .not_valid_after(_moment(until))
    )


def _authority(
    builder: x509.CertificateBuilder, path_length: int, public: CertificatePublicKeyTypes
) -> x509.CertificateBuilder:
    return (
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _usage(*, signs: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _issued_by(signer: Signer) -> x509.AuthorityKeyIdentifier:
    try:
        own = signer.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.key.public_key())
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)


def _host(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        pass
    try:
        return x509.DNSName(name)
    except ValueError as error:
        raise CaInvalid(name, "this is no host name; write it in ASCII (xn--…)") from error


def _name(common: str, fleet: FleetId) -> x509.Name:
    return x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, fleet), x509.NameAttribute(NameOID.COMMON_NAME, common)]
    )


def _short(public: CertificatePublicKeyTypes) -> str:
    return sha256(_der(public)).hexdigest()[:8]


def _der(public: CertificatePublicKeyTypes) -> bytes:
    return public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _moment(at: float) -> datetime:
    return datetime.fromtimestamp(int(at), UTC)
