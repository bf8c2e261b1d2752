"""Checkpoints: the head of the audit log, signed by the controller's audit key (ed25519).

Whoever steals the controller can sign new ones, but cannot take back those that are elsewhere: a log that does not
extend an old checkpoint is not the log that was. What is signed: `DOMAIN`, then the fields as JSON with sorted keys.
"""

from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from securesystemslib.signer import CryptoSigner

from muster_controller.audit.chain import Anchor
from muster_controller.registry import durable
from muster_controller.registry.keys import Passphrase, load_signer, passphrase_from_environment
from muster_shared.errors import MusterError
from muster_shared.undecodable import UNDECODABLE

KEY_FILE = "keys/audit.pem"
DOMAIN = b"muster audit checkpoint 1\n"
BYTES_MAX = 16 * 1024


class CheckpointInvalid(MusterError):
    """Bytes that are no checkpoint, or one that its key did not sign."""


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """The head of the log of `fleet` at the moment `at`. Other fields may stand beside: those of a line of a log."""

    fleet: str
    ordinal: int
    hash: str
    at: float
    key: str
    """The public key, 32 bytes in hex."""
    signature: str
    """64 bytes in hex; empty: nobody signed it (an export of a database without its controller)."""

    @property
    def anchor(self) -> Anchor:
        return Anchor(self.ordinal, self.hash)

    @property
    def is_signed(self) -> bool:
        return self.signature != ""


class Signer:
    """The controller's audit key."""

    def __init__(self, signer: CryptoSigner, fleet: str) -> None:
        self._signer = signer
        self._fleet = fleet
        self.key = str(signer.public_key.keyval["public"])

    def sign(self, head: Anchor, at: float) -> Checkpoint:
        said = unsigned(self._fleet, head, at, self.key)
        return msgspec.structs.replace(said, signature=self._signer.sign(_signed_bytes(said)).signature)


def open_signer(data: Path, fleet: str, passphrase: Passphrase = passphrase_from_environment) -> Signer:
    """Return the audit key in a controller's data folder, which is made if it is not there. Raises KeyUnreadable."""
    path = data / KEY_FILE
    if not path.is_file():
        durable.make_folder(path.parent, 0o700)
        secret = passphrase(path)
        closed = BestAvailableEncryption(secret) if secret else NoEncryption()
        durable.create(
            path, Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, closed), 0o600
        )
    return Signer(load_signer(path, passphrase), fleet)


def unsigned(fleet: str, head: Anchor, at: float, key: str = "") -> Checkpoint:
    """Return a checkpoint that nobody vouches for: it tells where a log ends."""
    return Checkpoint(fleet=fleet, ordinal=head.ordinal, hash=head.hash, at=at, key=key, signature="")


def check(checkpoint: Checkpoint) -> None:
    """Raises CheckpointInvalid unless the key that it names signed it."""
    try:
        public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(checkpoint.key))
        public.verify(bytes.fromhex(checkpoint.signature), _signed_bytes(checkpoint))
    except (ValueError, InvalidSignature) as error:
        raise CheckpointInvalid(
            f"the checkpoint of line {checkpoint.ordinal} was not signed by the key that it names; "
            "use one as `muster audit head` or the last line of an export said it"
        ) from error


def parse(raw: bytes) -> Checkpoint:
    """Return the signed checkpoint in `raw`: alone, or as the last line of an export. Raises CheckpointInvalid."""
    if len(raw) > BYTES_MAX:
        raise CheckpointInvalid("this is too long for a checkpoint; give the JSON of `muster audit head --json`")
    try:
        try:
            found = msgspec.json.decode(raw, type=Checkpoint)
        except msgspec.ValidationError:
            found = msgspec.json.decode(raw, type=_Last).checkpoint
    except UNDECODABLE as error:
        raise CheckpointInvalid(f"this is no checkpoint: {error}") from error
    check(found)
    return found


class _Last(msgspec.Struct, forbid_unknown_fields=True):
    checkpoint: Checkpoint


def _signed_bytes(checkpoint: Checkpoint) -> bytes:
    said = msgspec.to_builtins(checkpoint)
    del said["signature"]
    return DOMAIN + msgspec.json.encode(said, order="sorted")
