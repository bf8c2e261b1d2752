"""What both desks know about our TUF metadata: role names, paths, lifetimes, and how to read and judge a file.

Parsing and signature arithmetic are python-tuf's; here its errors become ours. No files, keys or clock.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from tuf.api.exceptions import LengthOrHashMismatchError, RepositoryError
from tuf.api.metadata import Metadata, Role, Root, Signed, Snapshot, TargetFile, Targets, Timestamp

from muster_controller.registry.errors import MetadataRefused, ThresholdNotMet
from muster_shared import bundle, ids
from muster_shared.assignment import KEYS_TARGET
from muster_shared.bundle import Manifest
from muster_shared.ids import ModelName, Sha256
from muster_shared.messages import MESSAGE_BYTES_MAX, TrustFiles, encode

OFFLINE_LIFETIME = timedelta(days=365)  # Root, targets and releases: an operator's yearly ceremony.
SNAPSHOT_LIFETIME = timedelta(days=30)
TIMESTAMP_LIFETIME = timedelta(days=1)  # How long a stolen broker can hide a revocation.
RELEASE_PREFIX = "release-"
KEYID_MAX = 128

S = TypeVar("S", Root, Timestamp, Snapshot, Targets)


@dataclass(frozen=True)
class OfflineMetadata:
    """What an operator's ceremony yields: exact bytes, as they are published."""

    root: bytes
    targets: bytes
    keys: bytes
    """Of the target `keys/assignment.json`."""


@dataclass(frozen=True)
class ReleaseTarget:
    """One signed release."""

    path: str
    sha256: Sha256
    length: int
    release: int


def release_role(model: ModelName) -> str:
    """Return the name of the role that signs releases of `model`.

    Raises:
        WireError: it would not fit into a topic (a model has at most 56 characters).
    """
    ids.name(model, "model")
    return ids.name(f"{RELEASE_PREFIX}{model}", "role")


def release_paths(model: ModelName) -> str:
    """Return the pattern of target paths that are delegated; `*` stays within one segment."""
    return f"models/{model}/*/*"


def expiry(now: datetime, lifetime: timedelta) -> datetime:
    return now.astimezone(UTC) + lifetime


def parse(kind: type[S], data: bytes, role: str) -> Metadata[S]:
    """Return the metadata in `data`, not yet verified.

    Raises:
        MetadataRefused: it does not parse, or is of another kind.
    """
    try:
        metadata = Metadata[S].from_bytes(data)
        _ = metadata.signed_bytes  # What canonical JSON cannot say, such as a fraction, nobody can sign.
    except RepositoryError as error:
        raise MetadataRefused(role, f"it does not parse ({error})") from error
    if not isinstance(metadata.signed, kind):
        raise MetadataRefused(role, f"it is of type {metadata.signed.type}")
    if not all(_is_keyid(keyid) for named in _roles(metadata.signed) for keyid in named.keyids):
        raise MetadataRefused(role, "it names a key by something that is no plain text")  # python-tuf takes anything.
    return metadata


def _is_keyid(keyid: object) -> bool:
    """Whether people may be shown it: key holders compare key ids by eye, in a terminal."""
    return isinstance(keyid, str) and keyid.isascii() and keyid.isprintable() and len(keyid) <= KEYID_MAX


def _roles(signed: Signed) -> Iterator[Role]:
    if isinstance(signed, Root):
        yield from signed.roles.values()
    if isinstance(signed, Targets) and signed.delegations is not None:
        yield from (signed.delegations.roles or {}).values()
        if signed.delegations.succinct_roles is not None:
            yield signed.delegations.succinct_roles


def require_signatures(delegator: Root | Targets, role: str, metadata: Metadata[S]) -> None:
    """Raise ThresholdNotMet unless enough keys of `role` signed `metadata`; MetadataRefused if it is not delegated."""
    try:
        result = delegator.get_verification_result(role, metadata.signed_bytes, metadata.signatures)
    except ValueError as error:
        raise MetadataRefused(role, "no such role is delegated; add the model with `muster model add`") from error
    if not result.verified:
        raise ThresholdNotMet(role, len(result.signed), result.threshold)


def require_fresh(role: str, metadata: Metadata[S], now: datetime) -> None:
    if metadata.signed.is_expired(now.astimezone(UTC)):
        raise MetadataRefused(role, f"it expired on {metadata.signed.expires:%Y-%m-%d}; sign it anew")


def require_message(role: str, files: Mapping[str, bytes]) -> TrustFiles:
    """Return `files` as the message that devices receive. Raises MetadataRefused when it would be too large."""
    message = TrustFiles(role=role, files={name: data.decode() for name, data in files.items()})
    size = len(encode(message))
    if size > MESSAGE_BYTES_MAX:
        raise MetadataRefused(
            role, f"it makes a message of {size} bytes and the limit is {MESSAGE_BYTES_MAX}; drop releases or models"
        )
    return message


def require_keys_target(targets: Targets, keys: bytes) -> None:
    """Raise MetadataRefused unless `targets` vouches for `keys` as the assignment keys."""
    target = targets.targets.get(KEYS_TARGET)
    if target is None:
        raise MetadataRefused("targets", f"it does not name {KEYS_TARGET}")
    try:
        target.verify_length_and_hashes(keys)
    except LengthOrHashMismatchError as error:
        raise MetadataRefused("targets", f"{KEYS_TARGET} is not the file that was signed ({error})") from error


def release_target(manifest: Manifest, raw: bytes) -> TargetFile:
    """Return the TUF target of the manifest with the bytes `raw`."""
    target = TargetFile.from_data(manifest.target, raw, ["sha256"])
    target.unrecognized_fields["custom"] = {"release": manifest.release}
    return target


def describe(target: TargetFile, role: str) -> ReleaseTarget:
    """Return what a target of a release role says. Raises MetadataRefused when it is not one of ours."""
    custom = target.custom
    release = custom.get("release") if isinstance(custom, dict) else None
    digest = target.hashes.get("sha256")
    if type(release) is not int or release < 1 or digest is None:
        raise MetadataRefused(role, f"{target.path} lacks a release counter or a SHA-256")
    return ReleaseTarget(target.path, ids.sha256(digest), target.length, release)


def check_releases(role: str, targets: Targets, delegator: Targets) -> tuple[ReleaseTarget, ...]:
    """Return the releases in `targets`, by path.

    Raises:
        MetadataRefused: it delegates further, names a path that is not its own, or two releases share a counter.
    """
    if targets.delegations is not None:
        raise MetadataRefused(role, "release roles do not delegate any further")
    roles = (delegator.delegations.roles if delegator.delegations is not None else None) or {}
    delegated = roles.get(role)
    releases = tuple(describe(targets.targets[path], role) for path in sorted(targets.targets))
    for release in releases:
        parts = release.path.split("/")
        if delegated is None or not delegated.is_delegated_path(release.path) or parts[-1] != "bundle.json":
            raise MetadataRefused(role, f"{release.path} is not a release that {role} may sign")
    if len({release.release for release in releases}) != len(releases):
        raise MetadataRefused(role, "two releases have one release counter")
    return releases


def path_of(model: ModelName, version: str) -> str:
    return bundle.target_path(model, ids.version(version))
