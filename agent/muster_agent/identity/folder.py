"""The folder of a device's identity: its key, and the certificate that it was granted last with all that goes with it.

    identity/identity.key                    the identity key, where it is a file
    identity/current ──▶ sets/000007/        session.key  session.crt  ca.pem  root.json  enrolment.json
    identity/sets/000008/                    being written, or a left-over of a power loss

A set is written whole and synced before `current` is renamed over, so key and certificate fit whatever byte power fails
at. Folders have mode 0700, files 0600. It reads no certificate: what must be known of one stands in `enrolment.json`.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from muster_agent.errors import IdentityDamaged, IdentityError
from muster_agent.io.durable import sync
from muster_shared.ids import DeviceId, FleetId
from muster_shared.undecodable import UNDECODABLE

CURRENT = "current"
SETS = "sets"
VERSION = 1
_RECORD = "enrolment.json"
_CERTIFICATE, _SESSION_KEY, _CA, _ROOT = "session.crt", "session.key", "ca.pem", "root.json"
_RECORD_BYTES_MAX = 256 * 1024


class Enrolled(msgspec.Struct, frozen=True, kw_only=True):
    """What the controller granted, beside the files. Times are Unix seconds by the controller's clock."""

    v: int = VERSION
    fleet: FleetId
    device: DeviceId
    broker_url: str
    device_url: str
    """Where to renew."""
    fingerprint: str
    """SHA-256 of the certificate's DER, lower-case hex."""
    identity_fingerprint: str
    """SHA-256 of the identity key's SubjectPublicKeyInfo (DER), lower-case hex: it stays while certificates come and
    go."""
    granted_at: float
    renew_at: float
    expires_at: float
    labels: dict[str, str] = {}
    """The controller's; they go before the device's own of the same name."""


@dataclass(frozen=True)
class Credentials:
    """One set, as it is written."""

    enrolled: Enrolled
    session_key: bytes
    """PEM."""
    certificate: str
    """PEM: the device's, then the intermediate's."""
    ca: str
    """PEM: the roots to trust."""
    root: bytes
    """The TUF root (JSON) that this device began with; empty: none yet."""


_decoder = msgspec.json.Decoder(Enrolled)


class IdentityFolder:
    """A folder, whether it is there or not. Any thread and process may read while one writes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.key_path = path / "identity.key"
        self.certificate_path = path / CURRENT / _CERTIFICATE
        self.session_key_path = path / CURRENT / _SESSION_KEY
        self.ca_path = path / CURRENT / _CA
        self.root_path = path / CURRENT / _ROOT

    def current(self) -> Enrolled | None:
        """Return what was granted last; None: the device is not enrolled.

        Raises:
            IdentityDamaged: there is something, but it does not parse or cannot be read.
        """
        path = self.path / CURRENT / _RECORD
        try:
            with path.open("rb") as file:
                enrolled = _decoder.decode(file.read(_RECORD_BYTES_MAX))
        except FileNotFoundError as error:
            if os.path.lexists(self.path / CURRENT):
                raise IdentityDamaged(f"{path} is missing; enrol again with a new token") from error
            return None
        except OSError as error:
            raise IdentityDamaged(
                f"{path} cannot be read ({error.strerror}); run the agent, and its commands, as the owner of the file"
            ) from error
        except UNDECODABLE as error:
            raise IdentityDamaged(f"{path} does not parse ({error}); enrol again with a new token") from error
        if enrolled.v != VERSION:
            raise IdentityDamaged(f"{path} is of format {enrolled.v}; this agent reads {VERSION}: upgrade it")
        return enrolled

    def ca(self) -> str:
        """Return the roots to trust, PEM. Raises IdentityDamaged."""
        return _text(self.ca_path)

    def root(self) -> bytes:
        """Return the TUF root that the device began with; empty: the controller had none yet."""
        with suppress(FileNotFoundError):
            return self.root_path.read_bytes()
        return b""

    @property
    def owner(self) -> tuple[int, int] | None:
        """Whose files these are to be, when root writes them for the agent: whoever owns the folder above."""
        if os.geteuid() != 0:
            return None
        parent = self.path if self.path.exists() else self.path.parent
        with suppress(OSError):
            found = parent.stat()
            return (found.st_uid, found.st_gid)
        return None

    def make(self) -> None:
        """Make the folder, for its owner alone. Raises OSError."""
        owner = self.owner
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileExistsError):
            self.path.mkdir(mode=0o700)
            sync(self.path.parent)
            if owner is not None:
                os.chown(self.path, *owner, follow_symlinks=False)
        self.path.chmod(0o700)

    def put(self, credentials: Credentials) -> None:
        """Make `credentials` the current ones, durably, and remove those before.

        Raises:
            IdentityError: it cannot be written; what was current still is.
        """
        try:
            self.make()
            with self._alone():
                self._put(credentials)
        except OSError as error:
            raise IdentityError(
                f"the new certificate cannot be written to {self.path} ({error.strerror or error}); free some space, "
                "or run this as the owner of the folder"
            ) from error

    def _put(self, credentials: Credentials) -> None:
        sets, owner = self.path / SETS, self.owner
        with suppress(FileExistsError):
            sets.mkdir(mode=0o700)
            _give(sets, owner)
        name = f"{1 + max(map(_number, os.listdir(sets)), default=0):06d}"
        folder = sets / name
        folder.mkdir(mode=0o700)
        _give(folder, owner)
        write_new(folder / _SESSION_KEY, credentials.session_key, owner)
        write_new(folder / _CERTIFICATE, credentials.certificate.encode("ascii"), owner)
        write_new(folder / _CA, credentials.ca.encode("ascii"), owner)
        if credentials.root:
            write_new(folder / _ROOT, credentials.root, owner)
        write_new(folder / _RECORD, msgspec.json.format(msgspec.json.encode(credentials.enrolled)), owner)
        for synced in (folder, sets, self.path):
            sync(synced)
        fresh = self.path / f".{CURRENT}"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(Path(SETS, name), target_is_directory=True)
        fresh.rename(self.path / CURRENT)
        sync(self.path)
        for other in os.listdir(sets):
            if other != name:
                shutil.rmtree(sets / other, ignore_errors=True)  # The next one tries it again.

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Let no other process write: somebody may run `muster-agent renew` while the agent does the same."""
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def write_new(path: Path, content: bytes, owner: tuple[int, int] | None) -> None:
    """Write a file that was not there, mode 0600, and sync it. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        if owner is not None:
            os.fchown(descriptor, *owner)
        view = memoryview(content)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _give(path: Path, owner: tuple[int, int] | None) -> None:
    if owner is not None:
        os.chown(path, *owner, follow_symlinks=False)


def _number(name: str) -> int:
    return int(name) if name.isascii() and name.isdigit() else 0


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise IdentityDamaged(f"{path} cannot be read ({error}); enrol again with a new token") from error
