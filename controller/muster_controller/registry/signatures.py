"""Who signed what: the roles of the metadata in force, their keys, and how a model's releases came and went. Pure.

Nothing is decided here: what is looked at was verified when it was taken (`tuf_repository`), and is by devices again.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp

from muster_controller.registry.metadata import ReleaseTarget, S, describe, parse
from muster_shared.messages import TrustFiles

ONLINE = ("snapshot", "timestamp")
"""Roles that a controller signs by itself; the others need people."""


@dataclass(frozen=True)
class RoleKey:
    """A key that may sign for a role. TUF metadata names keys, not people: those know their own (`muster key list`)."""

    keyid: str
    has_signed: bool


@dataclass(frozen=True)
class RoleTrust:
    """One role as the metadata in force has it.

    Attributes:
        delegated_by: the role whose metadata says which keys count.
        version, expires_at: of what is in force (Unix seconds); None: delegated, but nothing is signed yet.
    """

    role: str
    delegated_by: str
    threshold: int
    keys: tuple[RoleKey, ...]
    version: int | None = None
    expires_at: float | None = None

    @property
    def signed(self) -> int:
        return sum(key.has_signed for key in self.keys)

    @property
    def is_online(self) -> bool:
        return self.role in ONLINE


@dataclass(frozen=True)
class RoleStep:
    """One version of a release role: what it brought and took.

    Attributes:
        signed_by: ids of keys that may sign now and signed then.
        others: signatures of keys that may not sign any more.
    """

    version: int
    added: tuple[str, ...]
    """Target paths."""
    removed: tuple[str, ...]
    signed_by: tuple[str, ...]
    others: int


def role_trusts(messages: Sequence[TrustFiles]) -> tuple[RoleTrust, ...]:
    """Return every role, in the order in which one vouches for the next. `messages`: all of a repository's.

    Raises:
        MetadataRefused: one does not parse.
    """
    newest = {message.role: _newest(message) for message in messages}
    if not {"root", "targets", *ONLINE} <= newest.keys():
        return ()
    root = parse(Root, newest["root"], "root")
    targets = parse(Targets, newest["targets"], "targets")
    found = [
        _trust(root.signed, "root", "root", root),
        _trust(root.signed, "root", "targets", targets),
    ]
    delegations = targets.signed.delegations
    for role in (delegations.roles if delegations is not None else None) or {}:
        raw = newest.get(role)
        found.append(_trust(targets.signed, "targets", role, None if raw is None else parse(Targets, raw, role)))
    found.append(_trust(root.signed, "root", "snapshot", parse(Snapshot, newest["snapshot"], "snapshot")))
    found.append(_trust(root.signed, "root", "timestamp", parse(Timestamp, newest["timestamp"], "timestamp")))
    return tuple(found)


def role_steps(role: str, targets: bytes, versions: Sequence[bytes]) -> tuple[RoleStep, ...]:
    """Return what each version of a release role brought, the newest first.

    Args:
        targets: the metadata that delegates to `role` now.
        versions: ascending; of the first, all that is in it counts as brought.
    Raises:
        MetadataRefused: one does not parse.
    """
    delegator = parse(Targets, targets, "targets").signed
    parsed = [parse(Targets, raw, role) for raw in versions]
    none: Mapping[str, object] = {}
    before_and_after = pairwise([none, *(each.signed.targets for each in parsed)])
    return tuple(
        _step(delegator, role, metadata, before, after)
        for metadata, (before, after) in reversed(list(zip(parsed, before_and_after, strict=True)))
    )


def past_target(role: str, path: str, versions: Sequence[bytes]) -> ReleaseTarget | None:
    """Return a release as the newest of `versions` that has it says, revoked or not. Raises MetadataRefused."""
    for raw in reversed(versions):
        target = parse(Targets, raw, role).signed.targets.get(path)
        if target is not None:
            return describe(target, role)
    return None


def newest_targets(messages: Sequence[TrustFiles]) -> bytes | None:
    """Return the targets metadata in force."""
    return next((_newest(message) for message in messages if message.role == "targets"), None)


def _step(
    delegator: Targets,
    role: str,
    metadata: Metadata[Targets],
    before: Mapping[str, object],
    after: Mapping[str, object],
) -> RoleStep:
    signed = tuple(key.keyid for key in _keys(delegator, role, metadata) if key.has_signed)
    return RoleStep(
        version=metadata.signed.version,
        added=tuple(sorted(after.keys() - before.keys())),
        removed=tuple(sorted(before.keys() - after.keys())),
        signed_by=signed,
        others=len(metadata.signatures.keys() - set(signed)),
    )


def _trust(delegator: Root | Targets, delegated_by: str, role: str, metadata: Metadata[S] | None) -> RoleTrust:
    named = delegator.get_delegated_role(role)
    if metadata is None:
        keys = tuple(RoleKey(keyid, has_signed=False) for keyid in named.keyids)
        return RoleTrust(role, delegated_by, named.threshold, keys)
    return RoleTrust(
        role,
        delegated_by,
        named.threshold,
        tuple(_keys(delegator, role, metadata)),
        metadata.signed.version,
        metadata.signed.expires.timestamp(),
    )


def _keys(delegator: Root | Targets, role: str, metadata: Metadata[S]) -> Iterator[RoleKey]:
    result = delegator.get_verification_result(role, metadata.signed_bytes, metadata.signatures)
    for keyid in delegator.get_delegated_role(role).keyids:
        yield RoleKey(keyid, keyid in result.signed)


def _newest(message: TrustFiles) -> bytes:
    """Return the file of the highest version; a message of roots has all of them."""

    def version(name: str) -> int:
        first = name.partition(".")[0]
        return int(first) if first.isdecimal() else 0

    return message.files[max(message.files, key=version)].encode()
