"""A mixer's own folder: the keys that never leave it, and the certificate that it was granted last.

    mixer.json         its card: public halves alone, for `muster mixer admit` and `muster mixer sign`
    identity.key       P-256: asks for certificates, and nothing else (0600)
    seal/<key id>.key  X25519: opens what devices sealed (0600); the card names the newest, all of them open
    admitted.json      from the controller: where to ask for certificates, and whom to trust there
    session.pem        key, certificate and chain of the connection to the broker, in one file that always fits (0600)
    ca.pem             the roots to trust at the broker
    granted.json       where the broker is, and when to ask again
    client-id          what it is called at the broker: the end of it nobody can guess (0600)

The ledger lies beside them, and is `ledger`'s. Who asks for certificates is `certificate`. No network here.
"""

import os
import secrets
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Self

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from muster_controller.mixer.errors import MixerError
from muster_controller.mixer_card import CARD, MixerCard, encode_card, parse_card
from muster_controller.registry import durable
from muster_shared import ids
from muster_shared.enrolment import Admitted, Granted
from muster_shared.errors import WireError
from muster_shared.ids import FleetId
from muster_shared.link import BrokerUrlInvalid, LinkConfig, parse_broker_url
from muster_shared.metrics import key_id
from muster_shared.undecodable import UNDECODABLE, reason

ADMITTED: Final = "admitted.json"
IDENTITY_KEY: Final = "identity.key"
SEAL: Final = "seal"
SESSION: Final = "session.pem"
CA: Final = "ca.pem"
GRANTED: Final = "granted.json"
CLIENT_ID: Final = "client-id"
FILE_BYTES_MAX: Final = 256 * 1024


class MixerFolderInvalid(MixerError):
    """A mixer's folder that lacks something, or whose files are damaged or can be read by others."""

    def __init__(self, where: Path, why: str) -> None:
        super().__init__(f"{where}: {why}")
        self.where = where


class _Granted(msgspec.Struct, frozen=True, kw_only=True):
    """What goes with the certificate. Times are Unix seconds by the controller's clock."""

    v: Literal[1] = 1
    fleet: FleetId
    broker_url: str
    device_url: str
    renew_at: float
    expires_at: float


@dataclass(frozen=True)
class Connection:
    """How a mixer reaches its broker.

    Attributes:
        link: address, files and client id. The files are read again at each connect, so a renewed certificate is
            taken without a restart.
        renew_at, expires_at: of the certificate.
    """

    fleet: FleetId
    link: LinkConfig
    renew_at: float
    expires_at: float


class MixerFolder:
    """A folder, whether it is there or not. One process writes; others may read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path, mixer: str, *, seal_key: Path | None = None) -> Self:
        """Make the keys of a mixer.

        Args:
            seal_key: a `seal/<key id>.key` of another mixer: those that share the cohorts of a fleet share this key.
        Raises:
            MixerFolderInvalid: there is a mixer in it already, or `seal_key` cannot be used.
            WireError: `mixer` is no name.
            OSError: it cannot be written.
        """
        ids.name(mixer, "mixer")
        if (path / CARD).exists():
            raise MixerFolderInvalid(path, "there is a mixer in it already; use another folder")
        folder = cls(path)
        durable.make_folder(path, 0o700)
        private = X25519PrivateKey.generate() if seal_key is None else _seal_key(seal_key)
        folder._keep_seal_key(private)
        # After a crash the keys of before are there; nobody has seen them, so new ones take their place.
        identity = ec.generate_private_key(ec.SECP256R1())
        folder._write(IDENTITY_KEY, private_pem(identity), 0o600)
        folder._write(CLIENT_ID, secrets.token_hex(8).encode(), 0o600)
        public = identity.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
        card = MixerCard(mixer=mixer, identity=public, public_key=private.public_key().public_bytes_raw())
        folder._write(CARD, encode_card(card))
        return folder

    def card(self) -> MixerCard:
        """Return its public halves. Raises MixerFolderInvalid."""
        raw = self._read(CARD, "there is no mixer in it; make one with `muster mixer create`")
        try:
            return parse_card(raw)
        except WireError as error:
            raise MixerFolderInvalid(self.path / CARD, str(error)) from error

    def rotate(self, *, seal_key: Path | None = None) -> MixerCard:
        """Make another key for sealing beside those that are there, and return the card that names it.

        Devices go on sealing to the old one until the offline keys name the new one; it opens both.

        Args:
            seal_key: take that of another mixer, where several share the key.
        Raises:
            MixerFolderInvalid, OSError
        """
        card = self.card()
        private = X25519PrivateKey.generate() if seal_key is None else _seal_key(seal_key)
        self._keep_seal_key(private)
        card = msgspec.structs.replace(card, public_key=private.public_key().public_bytes_raw())
        self._write(CARD, encode_card(card))
        return card

    def retire(self, name: str) -> None:
        """Destroy a key that devices do not seal to any more: what was sealed to it, nobody can ever open again.

        Raises:
            MixerFolderInvalid: it is not here, or the card names it.
        """
        if name not in self.seal_keys():
            raise MixerFolderInvalid(self.path / SEAL, f"there is no key {name}")
        if name == self.card().key_id:
            raise MixerFolderInvalid(
                self.path / SEAL, f"{name} is the newest key; make another first: `muster mixer rotate`"
            )
        path = self.path / SEAL / f"{name}.key"
        with path.open("r+b") as file:  # A file system that keeps old blocks keeps them; this is for the others.
            file.write(b"\0" * path.stat().st_size)
            file.flush()
            os.fsync(file.fileno())
        path.unlink()
        durable.sync_folder(path.parent)

    def seal_keys(self) -> Mapping[str, X25519PrivateKey]:
        """Return what windows may be sealed to, by `metrics.key_id`; the card's is one. Raises MixerFolderInvalid."""
        found = {path.stem: _seal_key(path) for path in sorted((self.path / SEAL).glob("*.key"))}
        wrong = [name for name, key in found.items() if key_id(key.public_key().public_bytes_raw()) != name]
        if wrong:
            raise MixerFolderInvalid(self.path / SEAL / f"{wrong[0]}.key", "it has another key than its name says")
        if self.card().key_id not in found:
            raise MixerFolderInvalid(self.path / SEAL, "the key that mixer.json names is not here; bring it back")
        return found

    def identity_key(self) -> ec.EllipticCurvePrivateKey:
        """Return what signs requests for certificates. Raises MixerFolderInvalid."""
        key = _private_key(self.path / IDENTITY_KEY)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise MixerFolderInvalid(self.path / IDENTITY_KEY, "it is not of P-256; bring back the one of this mixer")
        return key

    def admit(self, admitted: Admitted) -> None:
        """Keep what the controller said when the mixer was admitted. Raises MixerFolderInvalid: it is of another."""
        if admitted.mixer != self.card().mixer:
            raise MixerFolderInvalid(self.path, f"this is mixer {self.card().mixer}, and {admitted.mixer} was admitted")
        self._write(ADMITTED, msgspec.json.format(msgspec.json.encode(admitted), indent=1) + b"\n")

    def admitted(self) -> Admitted:
        """Return where to ask for certificates. Raises MixerFolderInvalid: nobody admitted it yet."""
        raw = self._read(
            ADMITTED,
            "nobody admitted this mixer yet; let an admin say `muster mixer admit` with its mixer.json, and put the "
            f"{ADMITTED} that it writes here",
        )
        try:
            admitted = msgspec.json.decode(raw, type=Admitted)
            ids.name(admitted.fleet, "fleet")
        except (*UNDECODABLE, WireError) as error:
            raise MixerFolderInvalid(
                self.path / ADMITTED, f"it does not parse ({reason(error)}); admit the mixer again"
            ) from error
        return admitted

    def put(self, session: ec.EllipticCurvePrivateKey, granted: Granted) -> None:
        """Make a certificate the current one. A crash in between leaves one that is asked for again. Raises OSError."""
        self._write(CA, granted.ca.encode())
        self._write(SESSION, private_pem(session) + granted.certificate.encode(), 0o600)
        said = _Granted(
            fleet=granted.fleet,
            broker_url=granted.broker_url,
            device_url=granted.device_url,
            renew_at=granted.renew_at,
            expires_at=granted.expires_at,
        )
        self._write(GRANTED, msgspec.json.format(msgspec.json.encode(said), indent=1) + b"\n")

    def connection(self) -> Connection | None:
        """Return how to reach the broker; None: no certificate was granted yet. Raises MixerFolderInvalid."""
        if not (self.path / GRANTED).exists():
            return None
        try:
            granted = msgspec.json.decode(self._read(GRANTED, ""), type=_Granted)
            broker = parse_broker_url(granted.broker_url)
        except (*UNDECODABLE, BrokerUrlInvalid) as error:
            raise MixerFolderInvalid(
                self.path / GRANTED, f"it is damaged ({error}); remove it, and run again"
            ) from error
        mixer, word = self.card().mixer, self._read(CLIENT_ID, "it is missing; bring the folder back").decode("ascii")
        session = self.path / SESSION
        link = LinkConfig(
            broker=broker,
            client_id=f"muster-mixer-{granted.fleet}-{mixer}-{word}",
            ca_path=self.path / CA,
            cert_path=session,
            key_path=session,
        )
        return Connection(granted.fleet, link, granted.renew_at, granted.expires_at)

    @property
    def device_url(self) -> str:
        """Where to ask: as the controller said last. Raises MixerFolderInvalid."""
        if (self.path / GRANTED).exists():
            return msgspec.json.decode(self._read(GRANTED, ""), type=_Granted).device_url
        return self.admitted().device_url

    @property
    def roots(self) -> str:
        """Whom to trust there, PEM. Raises MixerFolderInvalid."""
        return self._read(CA, "").decode("ascii") if (self.path / CA).exists() else self.admitted().ca

    def _keep_seal_key(self, private: X25519PrivateKey) -> None:
        name = key_id(private.public_key().public_bytes_raw())
        durable.make_folder(self.path / SEAL, 0o700)
        self._give(self.path / SEAL)
        self._write(f"{SEAL}/{name}.key", private_pem(private), 0o600)

    def _write(self, name: str, content: bytes, mode: int = 0o644) -> None:
        durable.write(self.path / name, content, mode)
        self._give(self.path / name)

    def _give(self, path: Path) -> None:
        """Let a file that root writes belong to whoever owns the folder: the service has a user of its own."""
        if os.geteuid() == 0:
            owner = self.path.stat()
            os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)

    def _read(self, name: str, missing: str) -> bytes:
        path = self.path / name
        try:
            with path.open("rb") as file:
                raw = file.read(FILE_BYTES_MAX + 1)
        except FileNotFoundError as error:
            raise MixerFolderInvalid(path, missing) from error
        except OSError as error:
            raise MixerFolderInvalid(path, f"it cannot be read ({error.strerror}); run this as its owner") from error
        if len(raw) > FILE_BYTES_MAX:
            raise MixerFolderInvalid(path, f"it has more than {FILE_BYTES_MAX} bytes; bring back the right file")
        return raw


def private_pem(key: ec.EllipticCurvePrivateKey | X25519PrivateKey) -> bytes:
    """Return a private key as PEM (PKCS #8), not encrypted: whoever starts the mixer has no passphrase."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _seal_key(path: Path) -> X25519PrivateKey:
    key = _private_key(path)
    if not isinstance(key, X25519PrivateKey):
        raise MixerFolderInvalid(path, "it is no X25519 key; take a key of the folder seal/ of a mixer")
    return key


def _private_key(path: Path) -> PrivateKeyTypes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        with open(descriptor, "rb") as file:
            mode = os.fstat(descriptor).st_mode
            if not stat.S_ISREG(mode) or mode & 0o077:
                raise MixerFolderInvalid(
                    path,
                    f"others can read it (mode {stat.S_IMODE(mode):04o}); if nobody has, run `chmod 600`, else make "
                    "another: `muster mixer rotate` for sealing, a new folder for the identity",
                )
            return load_pem_private_key(file.read(FILE_BYTES_MAX), None)
    except OSError as error:
        raise MixerFolderInvalid(path, f"it cannot be read ({error.strerror or error}); bring it back") from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise MixerFolderInvalid(path, "no private key can be read from it; bring back a copy") from error
