"""The registry's part of the error tree.

MusterError
└── RegistryError
    ├── KeyMissing            a private key that is needed is not here
    ├── KeyUnreadable         a key file that is damaged, or its passphrase is wrong
    ├── KeyExists             a key that would be overwritten
    ├── FolderInvalid         an operator folder that is not one, or is already
    ├── ThresholdNotMet       metadata with too few signatures of its role
    ├── VersionConflict       metadata that does not follow what is there
    ├── MetadataRefused       metadata that is signed but must not be published
    ├── CeremonyRefused       a step of a key ceremony that is not its turn, or a ceremony file that cannot be trusted
    ├── RepositoryEmpty       a controller that no operator has initialised
    ├── BundleBroken          a bundle folder that is not what its manifest says
    ├── BlobMissing           content that is not in the store
    └── BlobMismatch          content that is not what its name says
"""

from pathlib import Path

from muster_shared.errors import MusterError
from muster_shared.ids import Sha256


class RegistryError(MusterError):
    """Anything that the registry refuses or cannot do."""


class KeyMissing(RegistryError):
    def __init__(self, name: str, where: Path) -> None:
        super().__init__(f"no private key {name} in {where}; bring it here, or let its holder sign")
        self.name = name
        self.where = where


class KeyUnreadable(RegistryError):
    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} cannot be used as a key: {reason}")
        self.path = path
        self.reason = reason


class KeyExists(RegistryError):
    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} is already there and keys are never overwritten; choose another name")
        self.path = path


class FolderInvalid(RegistryError):
    def __init__(self, folder: Path, reason: str) -> None:
        super().__init__(f"{folder}: {reason}")
        self.folder = folder
        self.reason = reason


class ThresholdNotMet(RegistryError):
    """`have` signatures of the `need` that `role` needs."""

    def __init__(self, role: str, have: int, need: int) -> None:
        super().__init__(
            f"{role} is signed by {have} of the {need} keys that it needs; let more of its key holders sign"
        )
        self.role = role
        self.have = have
        self.need = need


class VersionConflict(RegistryError):
    def __init__(self, role: str, current: int, offered: int) -> None:
        super().__init__(
            f"{role} is at version {current}, so version {offered} cannot follow it; "
            "take the current metadata and sign the change again"
        )
        self.role = role
        self.current = current
        self.offered = offered


class MetadataRefused(RegistryError):
    def __init__(self, role: str, reason: str) -> None:
        super().__init__(f"the metadata of {role} is refused: {reason}")
        self.role = role
        self.reason = reason


class CeremonyRefused(RegistryError):
    """`reason` says what to do instead."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class RepositoryEmpty(RegistryError):
    def __init__(self, folder: Path) -> None:
        super().__init__(f"{folder} holds no trust metadata yet; run `muster init` with this controller's data folder")
        self.folder = folder


class BundleBroken(RegistryError):
    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name = name
        self.reason = reason


class BlobMissing(RegistryError):
    def __init__(self, sha256: Sha256) -> None:
        super().__init__(f"{sha256} is not in the blob store; publish its bundle again")
        self.sha256 = sha256


class BlobMismatch(RegistryError):
    def __init__(self, sha256: Sha256, reason: str) -> None:
        super().__init__(f"what was sent as {sha256[:12]}… is refused: {reason}; send it again")
        self.sha256 = sha256
        self.reason = reason
