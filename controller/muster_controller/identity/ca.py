"""The fleet CA as files: `<data>/ca/`, made on first use, changed durably, read by brokers and by the device port.

    authority.pem    the intermediate's key and certificate, and its chain (0600): one file, so that they fit
    root.pem         the root's certificate, for people and `GET /enrol/v1/ca`
    root.key         the root's private key until `muster ca take-root` (0600)
    roots/           other roots that devices trust meanwhile: what was, and what will be (`use --announce`)
    retired/         intermediates that issue no more but still have to say which of their certificates are revoked
    clients.pem      every root and intermediate that clients' certificates chain to: for brokers
    server.pem       key, certificate and chain of the ports that devices connect to (0600)
    controller.pem   those of the controller's own connection to the broker (0600)
    crl.pem          the revocation lists, one for each intermediate

It decides nobody's identity: `service` does. Safe from any thread; another process that changes the folder (the
command line) is noticed by `refresh`.
"""

import fcntl
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from muster_controller.client_names import controller_name, urn
from muster_controller.identity import certificates
from muster_controller.identity.agreement import Own
from muster_controller.identity.certificates import Issued, Signer, SigningKey
from muster_controller.identity.errors import CaInvalid, RootKeyAway
from muster_controller.registry import durable
from muster_controller.registry.keys import Passphrase, passphrase_from_environment
from muster_shared.ids import DeviceId, FleetId, Sha256

FOLDER = "ca"
AUTHORITY, ROOT, ROOT_KEY = "authority.pem", "root.pem", "root.key"
ROOTS, RETIRED = "roots", "retired"
CLIENTS, SERVER, CONTROLLER, CRL = "clients.pem", "server.pem", "controller.pem", "crl.pem"

RENEW_INTERMEDIATE_S = 120 * certificates.DAY_S
RENEW_CRL_S = 10 * certificates.DAY_S
FILE_BYTES_MAX = 1024 * 1024
_BEGIN_CRL = b"-----BEGIN X509 CRL-----"


@dataclass(frozen=True)
class Paths:
    """Where brokers find what they need. Key and certificate are in one file, so that they always fit."""

    clients: Path
    server: Path
    controller: Path
    crl: Path


@dataclass(frozen=True)
class CertificateInfo:
    """One certificate of the CA, for people. `role`: root, intermediate, announced, retired, server, controller."""

    role: str
    subject: str
    sha256: Sha256
    issued_at: float
    expires_at: float


class FleetCa:
    """The CA of one fleet. Times are Unix seconds."""

    def __init__(
        self, data: Path, fleet: FleetId, now: float, passphrase: Passphrase = passphrase_from_environment
    ) -> None:
        """Open the CA of a data folder, and make it when there is none.

        Raises:
            CaInvalid: its files are damaged or do not fit, or the fleet's name is too long for a certificate.
        """
        if len(fleet) > certificates.FLEET_CHARACTERS_MAX:
            most = certificates.FLEET_CHARACTERS_MAX
            raise CaInvalid("fleet", f"its name stands in certificates; choose one of at most {most} characters")
        self.fleet = fleet
        self.folder = data / FOLDER
        self._passphrase = passphrase
        self._mutex = threading.RLock()
        durable.make_folder(self.folder, 0o700)
        with self._exclusive():
            if not (self.folder / AUTHORITY).exists():
                self._make(now)
            self._load(now)
            self._publish()

    @classmethod
    def existing(cls, data: Path, now: float) -> Self:
        """Open the CA of a data folder that has one. Raises CaInvalid."""
        folder = data / FOLDER
        if not (folder / AUTHORITY).is_file() or not (folder / CONTROLLER).is_file():
            raise CaInvalid(folder, "there is no fleet CA; start the controller once, or name its folder with --data")
        own = _read_certificates(folder / CONTROLLER)[0]
        (fleet,) = own.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
        return cls(data, FleetId(str(fleet.value)), now)

    # -- what is known -----------------------------------------------------------------------------------------------

    @property
    def paths(self) -> Paths:
        return Paths(*(self.folder / name for name in (CLIENTS, SERVER, CONTROLLER, CRL)))

    @property
    def pin(self) -> Sha256:
        """What tokens carry: the root's SHA-256."""
        return certificates.pin(self._signer.root)

    @property
    def signer_pin(self) -> Sha256:
        """SHA-256 of the intermediate that issues now."""
        return certificates.pin(self._signer.certificate)

    @property
    def has_in_common(self) -> tuple[Own, Own]:
        """What every controller of the fleet has to have: the root, and the key of who issues."""
        former_roots = frozenset(certificates.pin(each) for each in self._roots)
        former_keys = frozenset(_key_pin(each.key) for each in self._retired)
        return (
            Own("ca-root", FOLDER, self.pin, former=former_roots),
            Own("ca-issuer", FOLDER, _key_pin(self._signer.key), former=former_keys),
        )

    @property
    def root_pem(self) -> bytes:
        return certificates.pem([self._signer.root])

    @property
    def roots_pem(self) -> bytes:
        """What devices are to trust: the root, and others while one takes the place of another."""
        return certificates.pem([self._signer.root, *self._roots])

    @property
    def has_root_key(self) -> bool:
        return (self.folder / ROOT_KEY).is_file()

    @property
    def intermediate_expires_at(self) -> float:
        return self._signer.expires_at

    def describe(self) -> list[CertificateInfo]:
        """Return every certificate that the CA itself has."""
        with self._mutex:
            found = [("root", self._signer.root), ("intermediate", self._signer.certificate)]
            found += [("announced", each) for each in self._roots]
            found += [("retired", each.certificate) for each in self._retired]
            for role, name in (("server", SERVER), ("controller", CONTROLLER)):
                own = self._read_own(name)
                if own is not None:
                    found.append((role, own[0]))
        return [_info(role, each) for role, each in found]

    # -- what it issues ----------------------------------------------------------------------------------------------

    def issue_device(self, name: DeviceId, public: ec.EllipticCurvePublicKey, now: float) -> Issued:
        """Return a certificate for a device, or a mixer of that common name, whose request was granted."""
        with self._mutex:
            return certificates.issue_client(self._signer, public, name, self.fleet, now)

    def renew_own(self, names: Sequence[str], now: float) -> list[Issued]:
        """Renew the server's and the controller's certificates where they need it, and return the new ones.

        They do when they are at half of their life, when the intermediate is another, and when `names` are.
        """
        made: list[Issued] = []
        with self._exclusive():
            if self._is_stale(SERVER, now, names):
                key = certificates.new_key()
                issued = certificates.issue_server(self._signer, key.public_key(), names, self.fleet, now)
                # The root goes with it: who knows nothing but its hash can check the whole chain.
                self._write(SERVER, _plain(key) + issued.pem + self.root_pem)
                made.append(issued)
            name = controller_name(self.fleet)
            if self._is_stale(CONTROLLER, now, (urn(self.fleet, name),)):
                key = certificates.new_key()
                issued = certificates.issue_client(self._signer, key.public_key(), name, self.fleet, now)
                self._write(CONTROLLER, _plain(key) + issued.pem)
                made.append(issued)
        return made

    def issue_server(self, names: Sequence[str], file: Path, now: float) -> Issued:
        """Write a certificate for a server that is not ours, such as a broker, with key and chain, and return it.

        Raises:
            CaInvalid: a name is none, or the intermediate has run out.
        """
        key = certificates.new_key()
        with self._mutex:
            issued = certificates.issue_server(self._signer, key.public_key(), names, self.fleet, now)
            durable.write(file, _plain(key) + issued.pem, 0o600)
        return issued

    def write_crl(self, revoked: Sequence[tuple[str, float]], now: float) -> bool:
        """Write which certificates (serial number in hex, when) hold no more; return whether the file changed.

        A list that says the same is left alone until it is ten days old.
        """
        with self._exclusive():
            signers = [self._signer, *self._retired]
            path = self.folder / CRL
            lists = _read_lists(path)
            if _say(lists, signers, {int(serial, 16) for serial, _ in revoked}, now):
                return False
            last = max((each.last_update_utc.timestamp() for each in lists), default=0.0)
            begins_at = max(now - certificates.BACKDATED_S, last + 1.0)
            made = [certificates.revocation_list(each, revoked, now, begins_at) for each in signers]
            durable.write(path, b"".join(made))
        return True

    # -- what changes it ---------------------------------------------------------------------------------------------

    def refresh(self, now: float) -> bool:
        """Take what another process changed, and renew the intermediate in time if the root's key is here.

        Returns whether the CA is another than before: then `renew_own` and `write_crl` have to follow.
        """
        with self._exclusive():
            before = (self._signer.certificate, self._roots, [each.certificate for each in self._retired])
            self._load(now)
            if self.has_root_key and self._signer.expires_at - now < RENEW_INTERMEDIATE_S:
                self._renew(self._root_signer(self.folder / ROOT_KEY), now, new_key=False)
            self._publish()
            return before != (self._signer.certificate, self._roots, [each.certificate for each in self._retired])

    def renew(self, now: float, *, root_key: Path | None = None, new_key: bool = False) -> None:
        """Let the root sign the intermediate anew.

        Args:
            root_key: where the root's key is, if it was taken elsewhere.
            new_key: make another key, because somebody may have the old one. The certificates of the old one hold
                until they run out, so devices have to be revoked or renewed besides (`docs/runbooks`).
        Raises:
            RootKeyAway, CaInvalid: there is no such key, or it is another root's.
        """
        with self._exclusive():
            self._renew(self._root_signer(root_key or self.folder / ROOT_KEY), now, new_key=new_key)
            self._publish()

    def take_root(self, target: Path) -> Path:
        """Move the root's private key into the folder `target`, and return where it is.

        It is written, synced, read back and checked there before it is overwritten and removed here.

        Raises:
            RootKeyAway: it is not here.
            CaInvalid: it cannot be read back.
            FileExistsError: `target` has a root.key already.
        """
        with self._exclusive():
            source = self.folder / ROOT_KEY
            signer = self._root_signer(source)
            raw = source.read_bytes()
            copy = target / ROOT_KEY
            durable.make_folder(target, 0o700)
            durable.create(copy, raw, 0o600)
            if _public(self._read_key(copy)) != _public(signer.key):
                raise CaInvalid(copy, "the copy of the root's key is not what was written; try another medium")
            with source.open("r+b") as file:  # A file system that keeps old blocks keeps them; this is for the others.
                file.write(b"\0" * len(raw))
                file.flush()
                os.fsync(file.fileno())
            source.unlink()
            durable.sync_folder(self.folder)
            durable.write(target / ROOT, self.root_pem)
            return copy

    def announce(self, root: Path, now: float) -> None:
        """Let devices trust another root beside ours from their next renewal on. Raises CaInvalid."""
        found = _read_certificates(root)
        if len(found) != 1:
            raise CaInvalid(root, "bring one certificate, the root's")
        with self._exclusive():
            self._keep_root(found[0])
            self._load(now)
            self._publish()

    def use(self, file: Path, now: float, *, force: bool = False) -> None:
        """Issue from an intermediate that the user's own CA issued, with its chain and its root in the same file.

        Args:
            file: PEM: its private key, its certificate, and what leads to the root, with it.
            force: although devices may be enrolled that do not know its root yet.
        Raises:
            CaInvalid: key and certificate do not fit, it may not sign, the chain does not hold, or its root is new.
        """
        key, found = self._read_key(file), _read_certificates(file)
        signer = certificates.order_chain(str(file), found, key)
        certificates.check_chain(str(file), signer, now)
        if not signer.above:
            raise CaInvalid(file, "bring an intermediate, not the root itself; roots belong offline")
        with self._exclusive():
            known = {certificates.pin(each) for each in (self._signer.root, *self._roots)}
            if certificates.pin(signer.root) not in known and not force:
                raise CaInvalid(
                    file,
                    "devices that are enrolled do not know its root yet; let them learn it with `muster ca use "
                    "--announce ROOT.pem`, wait a week and come back, or say --force if no device is enrolled",
                )
            self._replace(signer)
            self._load(now)
            self._publish()

    # -- inside ------------------------------------------------------------------------------------------------------

    def _make(self, now: float) -> None:
        root_key, key = certificates.new_key(), certificates.new_key()
        certificate = certificates.make_root(root_key, self.fleet, now)
        root = Signer(root_key, certificate, ())
        intermediate = certificates.make_intermediate(root, key, self.fleet, now)
        self._write(ROOT_KEY, self._sealed(root_key, self.folder / ROOT_KEY))  # First: without its key it is no CA.
        self._write_authority(Signer(key, intermediate, (certificate,)))

    def _load(self, now: float) -> None:
        path = self.folder / AUTHORITY
        signer = certificates.order_chain(str(path), _read_certificates(path), self._read_key(path))
        certificates.check_chain(str(path), signer, None)
        self._signer = signer
        self._roots = [
            certificate
            for file in sorted((self.folder / ROOTS).glob("*.pem"))
            for certificate in _read_certificates(file)
            if certificate != self._signer.root and certificate.not_valid_after_utc.timestamp() > now
        ]
        self._retired: list[Signer] = []
        for file in sorted((self.folder / RETIRED).glob("*.pem")):
            retired = certificates.order_chain(str(file), _read_certificates(file), self._read_key(file))
            if retired.expires_at > now and _public(retired.key) != _public(self._signer.key):
                self._retired.append(retired)

    def _publish(self) -> None:
        """Write what follows from the rest, where it is not there already."""
        clients = [self._signer.root, *self._roots, self._signer.certificate, *self._signer.above[:-1]]
        clients += [each for retired in self._retired for each in (retired.certificate, *retired.above)]
        for name, content in ((ROOT, self.root_pem), (CLIENTS, certificates.pem(dict.fromkeys(clients)))):
            path = self.folder / name
            if not path.exists() or path.read_bytes() != content:
                durable.write(path, content)

    def _renew(self, root: Signer, now: float, *, new_key: bool) -> None:
        key = certificates.new_key() if new_key else self._signer.key
        intermediate = certificates.make_intermediate(root, key, self.fleet, now)
        self._replace(Signer(key, intermediate, (root.certificate,)))
        self._load(now)

    def _replace(self, signer: Signer) -> None:
        """Issue from `signer` from now on; what was goes on to be trusted until it has run out."""
        old = self._signer
        if _public(old.key) != _public(signer.key):
            name = f"{RETIRED}/{certificates.pin(old.certificate)[:16]}.pem"
            path = self.folder / name
            self._write(name, self._sealed(old.key, path) + certificates.pem((old.certificate, *old.above)))
        if old.root != signer.root:
            self._keep_root(old.root)
        self._write_authority(signer)

    def _keep_root(self, certificate: x509.Certificate) -> None:
        self._write(f"{ROOTS}/{certificates.pin(certificate)[:16]}.pem", certificates.pem([certificate]), 0o644)

    def _root_signer(self, path: Path) -> Signer:
        if not path.is_file():
            raise RootKeyAway(path.parent)
        key, root = self._read_key(path), self._signer.root
        if _public(key) != _public(root.public_key()):
            raise CaInvalid(path, f"this is not the key of {certificates.said(root)}; bring the root's own")
        return Signer(key, root, ())

    def _is_stale(self, name: str, now: float, names: Sequence[str]) -> bool:
        own = self._read_own(name)
        if own is None:
            return True
        certificate = own[0]
        begin, end = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
        if now > (begin + end) / 2 or self._signer.certificate not in own:
            return True
        return _names(certificate) != set(names)

    def _read_own(self, name: str) -> list[x509.Certificate] | None:
        """Return a certificate of ours with its chain; None where there is none, or none that fits its key."""
        path = self.folder / name
        try:
            key = load_pem_private_key(path.read_bytes(), None)
            found = _read_certificates(path)
        except (OSError, ValueError, TypeError, UnsupportedAlgorithm, CaInvalid):
            return None
        fits = isinstance(key, ec.EllipticCurvePrivateKey) and _public(key) == _public(found[0].public_key())
        return found if fits else None

    def _write_authority(self, signer: Signer) -> None:
        path = self.folder / AUTHORITY
        content = self._sealed(signer.key, path) + certificates.pem((signer.certificate, *signer.above))
        self._write(AUTHORITY, content)

    def _write(self, name: str, content: bytes, mode: int = 0o600) -> None:
        path = self.folder / name
        durable.make_folder(path.parent, 0o700)
        durable.write(path, content, mode)

    def _sealed(self, key: SigningKey, path: Path) -> bytes:
        """Return a CA's key for a file, encrypted where the operator has said with what."""
        secret = self._passphrase(path)
        how = BestAvailableEncryption(secret) if secret else NoEncryption()
        return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, how)

    def _read_key(self, path: Path) -> SigningKey:
        raw = _read(path)
        secret = self._passphrase(path) if b"ENCRYPTED" in raw else None
        try:
            key = load_pem_private_key(raw, secret)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise CaInvalid(path, f"no private key can be read from it ({error})") from error
        if isinstance(key, ec.EllipticCurvePrivateKey | RSAPrivateKey):
            return key
        raise CaInvalid(path, "its key is of a kind that TLS clients do not all know; bring an EC or RSA key")

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Keep other threads and processes out of the folder."""
        with self._mutex:
            descriptor = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                yield
            finally:
                os.close(descriptor)


def _read_lists(path: Path) -> list[x509.CertificateRevocationList]:
    """Return the revocation lists of a file; none where it cannot be read: it is written again then."""
    try:
        parts = path.read_bytes().split(_BEGIN_CRL)[1:]
        return [x509.load_pem_x509_crl(_BEGIN_CRL + part) for part in parts]
    except (OSError, ValueError):
        return []


def _say(
    lists: Sequence[x509.CertificateRevocationList], signers: Sequence[Signer], serials: Iterable[int], now: float
) -> bool:
    """Whether these lists are recent, of these issuers, and name these serial numbers."""
    expected = set(serials)
    return len(lists) == len(signers) and all(
        each.issuer == signer.certificate.subject
        and each.is_signature_valid(signer.key.public_key())
        and {entry.serial_number for entry in each} == expected
        and -certificates.BACKDATED_S <= now - each.last_update_utc.timestamp() < RENEW_CRL_S
        for each, signer in zip(lists, signers, strict=True)
    )


def _names(certificate: x509.Certificate) -> set[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return set()
    return {str(each.value) for each in names}


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        raw = file.read(FILE_BYTES_MAX + 1)
    if len(raw) > FILE_BYTES_MAX:
        raise CaInvalid(path, f"over {FILE_BYTES_MAX} bytes is more than certificates need")
    return raw


def _read_certificates(path: Path) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(_read(path))
    except ValueError as error:
        raise CaInvalid(path, "no certificate can be read from it; bring PEM") from error


def _plain(key: SigningKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _public(key: SigningKey | CertificatePublicKeyTypes) -> bytes:
    public = key.public_key() if isinstance(key, ec.EllipticCurvePrivateKey | RSAPrivateKey) else key
    return public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _key_pin(key: SigningKey) -> Sha256:
    return Sha256(sha256(_public(key)).hexdigest())


def _info(role: str, certificate: x509.Certificate) -> CertificateInfo:
    begin, end = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
    return CertificateInfo(role, certificates.said(certificate), certificates.pin(certificate), begin, end)
