"""Signing keys as files: ed25519, the private half as PEM PKCS#8 (mode 0600), the public half as JSON beside it.

`root-1.pem` is what its holder guards, perhaps on another machine; `root-1.pub` stays, so that keys can be listed and
delegated to without them. Signing itself is securesystemslib's.
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from securesystemslib.signer import CryptoSigner, SSlibKey

from muster_controller.registry import durable
from muster_controller.registry.errors import KeyExists, KeyMissing, KeyUnreadable
from muster_shared import ids
from muster_shared.errors import WireError
from muster_shared.ids import ModelName
from muster_shared.undecodable import UNDECODABLE, reason

PASSPHRASE_VARIABLE = "MUSTER_KEY_PASSPHRASE"
PRIVATE_SUFFIX = ".pem"
PUBLIC_SUFFIX = ".pub"
ED25519 = "ed25519"

_NAME = re.compile(
    r"(?P<online>snapshot|timestamp|assignment)"
    r"|(?P<top>root|targets)-[a-z0-9_]{1,32}"
    r"|release-(?P<model>[a-z0-9_-]+)-[a-z0-9_]{1,32}"
)


class Role(Enum):
    """What a key may sign."""

    ROOT = "root"
    TARGETS = "targets"
    RELEASE = "release"
    SNAPSHOT = "snapshot"
    TIMESTAMP = "timestamp"
    ASSIGNMENT = "assignment"


Passphrase = Callable[[Path], bytes | None]
"""Asked once for each private key that is read; None means that the file is not encrypted."""


def passphrase_from_environment(path: Path) -> bytes | None:
    """Return what MUSTER_KEY_PASSPHRASE says, for every key alike."""
    text = os.environ.get(PASSPHRASE_VARIABLE)
    return text.encode() if text else None


@dataclass(frozen=True)
class KeyFile:
    """One key of one holder. `name` is the file name without its suffix, such as `release-digits-2`."""

    name: str
    role: Role
    model: ModelName | None
    """For release keys."""
    public: SSlibKey
    path: Path
    """Of the private half, whether it is here or not."""

    @property
    def keyid(self) -> str:
        return self.public.keyid

    @property
    def is_private_here(self) -> bool:
        return self.path.is_file()


@dataclass(frozen=True)
class OnlinePublicKeys:
    """The public halves of the keys that a controller holds itself; the offline keys vouch for them."""

    snapshot: SSlibKey
    timestamp: SSlibKey
    assignment: SSlibKey


class _PublicFile(msgspec.Struct, frozen=True, kw_only=True):
    keyid: str
    key: dict[str, object]


class _OnlineFile(msgspec.Struct, frozen=True, kw_only=True):
    snapshot: _PublicFile
    timestamp: _PublicFile
    assignment: _PublicFile


def role_of(name: str) -> tuple[Role, ModelName | None]:
    """Return what the key called `name` signs: `root-1`, `targets-anna`, `release-<model>-2`, `snapshot`…

    Raises:
        WireError: `name` is no key name.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise WireError(
            f"{name[:80]!r} is not a key name: use root-<holder>, targets-<holder> or release-<model>-<holder>, "
            "with a holder of a-z, 0-9 and _"
        )
    if match["online"]:
        return Role(match["online"]), None
    if match["top"]:
        return Role(match["top"]), None
    return Role.RELEASE, ModelName(ids.name(match["model"], "model"))


def create_key(folder: Path, name: str, passphrase: bytes | None = None) -> KeyFile:
    """Make a key pair in `folder`, encrypted when there is a passphrase.

    Raises:
        KeyExists: a half with this name is there.
        WireError: `name` is no key name.
    """
    role, model = role_of(name)
    durable.make_folder(folder, 0o700)
    path, public_path = folder / f"{name}{PRIVATE_SUFFIX}", folder / f"{name}{PUBLIC_SUFFIX}"
    if public_path.exists():
        raise KeyExists(public_path)
    private = Ed25519PrivateKey.generate()
    pem = private.private_bytes(
        Encoding.PEM,
        PrivateFormat.PKCS8,
        BestAvailableEncryption(passphrase) if passphrase else NoEncryption(),
    )
    public = CryptoSigner(private).public_key
    try:
        durable.create(path, pem, 0o600)
    except FileExistsError as error:
        raise KeyExists(path) from error
    durable.write(public_path, msgspec.json.format(msgspec.json.encode(_public_file(public)), indent=1))
    return KeyFile(name, role, model, public, path)


def write_public(folder: Path, name: str, public: SSlibKey) -> None:
    """Keep the public half of somebody's key. Raises KeyExists when another key has this name here."""
    path = folder / f"{name}{PUBLIC_SUFFIX}"
    if path.exists():
        if load_key(path).keyid != public.keyid:
            raise KeyExists(path)
        return
    durable.make_folder(folder, 0o700)
    durable.write(path, msgspec.json.format(msgspec.json.encode(_public_file(public)), indent=1))


def load_signer(path: Path, passphrase: Passphrase = passphrase_from_environment) -> CryptoSigner:
    """Return the signer of the private key at `path`.

    Raises:
        KeyMissing: it is not there.
        KeyUnreadable: it is not an ed25519 key in PEM, or the passphrase is wrong or lacking.
    """
    try:
        pem = path.read_bytes()
    except FileNotFoundError as error:
        raise KeyMissing(path.stem, path.parent) from error
    except OSError as error:
        raise KeyUnreadable(path, str(error)) from error
    secret = passphrase(path) if b"ENCRYPTED" in pem else None
    try:
        private = load_pem_private_key(pem, secret)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        hint = f"is {PASSPHRASE_VARIABLE} right?" if b"ENCRYPTED" in pem else "it is no PEM private key"
        raise KeyUnreadable(path, hint) from error
    if not isinstance(private, Ed25519PrivateKey):
        raise KeyUnreadable(path, "it is not an ed25519 key; make one with `muster key create`")
    return CryptoSigner(private)


def load_key(path: Path, passphrase: Passphrase = passphrase_from_environment) -> KeyFile:
    """Return the key at `path` (either half), from its public half when that is there.

    Raises:
        KeyMissing, KeyUnreadable, WireError
    """
    role, model = role_of(path.stem)
    public_path, private_path = path.with_suffix(PUBLIC_SUFFIX), path.with_suffix(PRIVATE_SUFFIX)
    if public_path.is_file():
        try:
            public = _public_key(msgspec.json.decode(public_path.read_bytes(), type=_PublicFile))
        except (OSError, msgspec.MsgspecError, ValueError, KeyError, TypeError) as error:
            raise KeyUnreadable(public_path, str(error)) from error
    else:
        public = load_signer(private_path, passphrase).public_key
    return KeyFile(path.stem, role, model, public, private_path)


def list_keys(folder: Path, passphrase: Passphrase = passphrase_from_environment) -> tuple[KeyFile, ...]:
    """Return every key of which at least one half is in `folder`, by name."""
    stems = {path.stem for path in folder.glob("*") if path.suffix in (PRIVATE_SUFFIX, PUBLIC_SUFFIX)}
    names = sorted(stem for stem in stems if _NAME.fullmatch(stem))
    return tuple(load_key(folder / f"{name}{PUBLIC_SUFFIX}", passphrase) for name in names)


def encode_online_keys(keys: OnlinePublicKeys) -> bytes:
    """Return `keys` as the file that travels from the controller to the operator."""
    document = _OnlineFile(
        snapshot=_public_file(keys.snapshot),
        timestamp=_public_file(keys.timestamp),
        assignment=_public_file(keys.assignment),
    )
    return msgspec.json.format(msgspec.json.encode(document), indent=1)


def parse_online_keys(raw: bytes) -> OnlinePublicKeys:
    """Return the keys in `raw`. Raises WireError."""
    try:
        document = msgspec.json.decode(raw, type=_OnlineFile)
        return OnlinePublicKeys(
            _public_key(document.snapshot), _public_key(document.timestamp), _public_key(document.assignment)
        )
    except (ValueError, KeyError, TypeError, *UNDECODABLE) as error:
        raise WireError(f"not a file of online keys: {reason(error)}") from error


def _public_file(key: SSlibKey) -> _PublicFile:
    return _PublicFile(keyid=key.keyid, key=key.to_dict())


def _public_key(file: _PublicFile) -> SSlibKey:
    key = SSlibKey.from_dict(file.keyid, dict(file.key))
    if key.keytype != ED25519 or key.scheme != ED25519:
        raise ValueError(f"a key of type {key.keytype!r}; only {ED25519} is used here")
    return key
