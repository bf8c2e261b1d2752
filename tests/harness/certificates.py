"""A small certificate authority for tests: roots, intermediates, leaves for a name, expired ones, revocation lists.

Its names look as decision 0013 says (`CN=<device>, O=<fleet>`; the controller is `controller.<fleet>`), and every key
is P-256. It is not the fleet CA of the product: tests of brokers and links need certificates without one.
"""

import ipaddress
import ssl
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAY = timedelta(days=1)
LEEWAY = timedelta(hours=1)
"""Certificates begin so long before they are made, as clocks differ."""


@dataclass(frozen=True)
class Leaf:
    """A certificate with its chain and its key, as files.

    Attributes:
        certificate: PEM: the leaf, then the intermediate.
        key: PEM, PKCS#8, mode 0600.
    """

    certificate: Path
    key: Path

    @property
    def serial(self) -> int:
        return x509.load_pem_x509_certificate(self.certificate.read_bytes()).serial_number

    def context(self, ca: Path) -> ssl.SSLContext:
        """Return a client's TLS context that shows this certificate and trusts `ca` alone."""
        context = ssl.create_default_context(cafile=str(ca))
        context.load_cert_chain(self.certificate, self.key)
        return context


@dataclass
class SmallCa:
    """A root and an intermediate in a folder; `roots` and `crl` are the files that a server is given.

    Attributes:
        fleet: the organisation in the subjects of leaves.
    """

    folder: Path
    fleet: str
    root_key: ec.EllipticCurvePrivateKey
    root: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    intermediate: x509.Certificate
    revoked: set[int] = field(default_factory=set)
    lists: int = 0

    @classmethod
    def make(cls, folder: Path, fleet: str = "f", *, under: "SmallCa | None" = None) -> Self:
        """Return a new one; `under` makes an intermediate of its own below the root of another."""
        folder.mkdir(parents=True, exist_ok=True)
        root_key = ec.generate_private_key(ec.SECP256R1()) if under is None else under.root_key
        root_name = _name(f"{fleet} root", fleet)
        root = _authority(root_name, root_name, root_key, root_key, path=1) if under is None else under.root
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name(f"{fleet} intermediate", fleet)
        ca = cls(folder, fleet, root_key, root, key, _authority(name, root.subject, key, root_key, path=0))
        ca.roots.write_bytes(_pem(ca.root) + _pem(ca.intermediate))
        ca.root_file.write_bytes(_pem(ca.root))
        ca.write_crl()
        return ca

    @property
    def roots(self) -> Path:
        """PEM: root and intermediate."""
        return self.folder / "ca.pem"

    @property
    def root_file(self) -> Path:
        """PEM: the root alone, what a device trusts."""
        return self.folder / "root.pem"

    @property
    def crl(self) -> Path:
        """PEM: the intermediate's list."""
        return self.folder / "crl.pem"

    @property
    def controller_name(self) -> str:
        return f"controller.{self.fleet}"

    @property
    def controller(self) -> Leaf:
        return self.leaf(self.controller_name)

    def leaf(
        self,
        name: str,
        *,
        server_names: Iterable[str] = (),
        begins: timedelta = -LEEWAY,
        ends: timedelta = 7 * DAY,
        file: str | None = None,
        has_urn: bool = True,
    ) -> Leaf:
        """Make a leaf for `name`, or return the one that was made before.

        Args:
            server_names: host names and addresses; with any it is a server's certificate, without a client's.
            begins, ends: relative to now; an expired one ends in the past.
            file: the name of the files, where one name has several certificates.
            has_urn: a client's certificate says fleet and name in its subject alternative name too.
        """
        made = Leaf(self.folder / f"{file or name}.pem", self.folder / f"{file or name}.key")
        if made.certificate.exists():
            return made
        names = list(server_names)
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        usage = ExtendedKeyUsageOID.SERVER_AUTH if names else ExtendedKeyUsageOID.CLIENT_AUTH
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name(name, self.fleet))
            .issuer_name(self.intermediate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + begins)
            .not_valid_after(now + ends)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
        )
        other = [_general(one) for one in names]
        if not names and has_urn:
            other.append(x509.UniformResourceIdentifier(f"urn:muster:{self.fleet}:{name}"))
        if other:
            builder = builder.add_extension(x509.SubjectAlternativeName(other), critical=False)
        made.certificate.write_bytes(_pem(builder.sign(self.key, hashes.SHA256())) + _pem(self.intermediate))
        made.key.touch(mode=0o600)
        made.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return made

    def revoke(self, leaf: Leaf) -> None:
        """Put it on the list."""
        self.revoked.add(leaf.serial)
        self.write_crl()

    def write_crl(self) -> None:
        """Write the list anew, valid for 30 days, and a second newer than the last: OpenSSL takes the newest."""
        self.lists += 1
        now = datetime.now(UTC)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.intermediate.subject)
            .last_update(now - LEEWAY + timedelta(seconds=self.lists))
            .next_update(now + 30 * DAY)
            .add_extension(x509.CRLNumber(self.lists), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
        )
        for serial in sorted(self.revoked):
            builder = builder.add_revoked_certificate(
                x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now - LEEWAY).build()
            )
        self.crl.write_bytes(builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))


def _authority(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    issuer_key: ec.EllipticCurvePrivateKey,
    path: int,
) -> x509.Certificate:
    now = datetime.now(UTC)
    usage = x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=True,
        crl_sign=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - LEEWAY)
        .not_valid_after(now + 365 * DAY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=path), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )


def _name(common_name: str, fleet: str) -> x509.Name:
    return x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, common_name), x509.NameAttribute(NameOID.ORGANIZATION_NAME, fleet)]
    )


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
