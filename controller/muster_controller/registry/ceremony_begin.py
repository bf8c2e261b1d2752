"""How a key ceremony begins: from the metadata in force and what somebody wants changed, to a ceremony file.

No private key is needed for it, and none is used.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import msgspec
from tuf.api.metadata import Role, Root, Targets

from muster_controller.registry.ceremony_draft import draft
from muster_controller.registry.ceremony_file import (
    Ceremony,
    Change,
    Purpose,
    Trust,
    awaited,
    mixers_in_force,
    open_trust,
)
from muster_controller.registry.errors import CeremonyRefused
from muster_controller.registry.keys import OnlinePublicKeys, encode_online_keys, list_keys, role_of
from muster_controller.registry.keys import Role as KeyRole
from muster_controller.registry.metadata import parse, release_role, require_signatures
from muster_controller.registry.operator import (
    KEYS_FOLDER,
    THRESHOLD,
    load_offline,
    newest,
    next_mixers,
    revoke_release,
    sign_release,
)
from muster_shared.ids import ModelName

FORMER_FOLDER = "former"
"""In the folder of keys: the public halves of those that are no longer named, for their names."""
KEYID_PREFIX_MIN = 8


@dataclass(frozen=True)
class Rotation:
    """What a rotation is to change. Names are of keys, such as `root-anna`; ids may stand for those to remove."""

    add: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()
    thresholds: Mapping[str, int] = field(default_factory=dict)
    renew: tuple[str, ...] = ()
    online: OnlinePublicKeys | None = None
    mixers: Mapping[str, bytes] = field(default_factory=dict)
    """Keys to which devices are to seal their metrics, beside those in force; by `key_id`."""
    remove_mixers: tuple[str, ...] = ()


def begin_create(
    identity: str,
    names: Sequence[str],
    thresholds: Mapping[str, int],
    online: OnlinePublicKeys,
    now: datetime,
    mixers: Mapping[str, bytes] | None = None,
) -> Ceremony:
    """Begin the first keys of a fleet.

    Args:
        identity: Random and never used before.
        names: The keys that holders will make: `root-anna`, `targets-anna`, `release-digits-ben`…
        thresholds: By role; 2 where it is not named.
        mixers: To which devices are to seal their metrics, by `key_id`.
    Raises:
        CeremonyRefused: root or targets have no key, or fewer than must sign.
        WireError: a name is no key name.
    """
    changes = _changes({}, names, (), thresholds)
    for role in (Root.type, Targets.type):
        if role not in {change.role for change in changes}:
            raise CeremonyRefused(f"nobody holds a {role} key; name some, such as --key {role}-anna")
    return Ceremony(
        id=identity,
        purpose=Purpose.CREATE,
        begun_at=now.timestamp(),
        changes=changes,
        online=encode_online_keys(online).decode(),
        mixers=next_mixers({}, mixers, ()) if mixers else None,
    )


def begin_rotate(
    identity: str, folder: Path, rotation: Rotation, current: Mapping[str, bytes], now: datetime
) -> Ceremony:
    """Begin a change of keys: rotation, loss, compromise, renewal, another threshold, another model.

    Args:
        folder: With the metadata in force.
        current: By role: releases as the controller has them, where they are newer than in the folder.
    Raises:
        CeremonyRefused: there is no such key to remove, a name was used before, a role would have too few keys, or
            nothing would change.
        FolderInvalid, MetadataRefused, ThresholdNotMet, WireError
    """
    base = survey(identity, folder, current, now)
    names = base.names
    held = key_roles(base)
    used = sorted(set(names.values()) & set(rotation.add))
    if used:
        raise CeremonyRefused(f"there was a key {used[0]} before; give the new one a name of its own, as {used[0]}_2")
    removed = tuple(find_key(held, names, each) for each in rotation.remove)
    unknown = sorted(set(rotation.renew) - set(held))
    if unknown:
        raise CeremonyRefused(f"{unknown[0]} has nothing to renew; roles are {', '.join(sorted(held))}")
    try:
        mixers = next_mixers(mixers_in_force(base), rotation.mixers, rotation.remove_mixers)
    except LookupError as error:
        there = ", ".join(mixers_in_force(base)) or "none"
        raise CeremonyRefused(f"no mixer key {error.args[0]!r} is in force; there are {there}") from error
    ceremony = msgspec.structs.replace(
        base,
        mixers=mixers if mixers != mixers_in_force(base) else None,
        changes=_changes(held, rotation.add, removed, rotation.thresholds),
        renew=rotation.renew,
        online=encode_online_keys(rotation.online).decode() if rotation.online is not None else "",
    )
    return ceremony if awaited(ceremony) else draft(ceremony, now)


def survey(identity: str, folder: Path, current: Mapping[str, bytes], now: datetime) -> Ceremony:
    """Return a rotation that changes nothing yet: what is in force. Arguments and errors as `begin_rotate`."""
    trust, names = begin_from(folder, current)
    return Ceremony(id=identity, purpose=Purpose.ROTATE, begun_at=now.timestamp(), trust=trust, names=names)


def begin_release(identity: str, folder: Path, bundle: Path, current: bytes | None, now: datetime) -> Ceremony:
    """Begin the signing of a bundle by its model's key holders. Arguments and errors as `sign_release`."""
    signed = sign_release(folder, bundle, current, now, with_keys=None, partial=True)
    return _of_release(identity, Purpose.RELEASE, folder, signed.role, signed.metadata, current, now)


def begin_revoke(
    identity: str, folder: Path, model: ModelName, version: str, current: bytes | None, now: datetime
) -> Ceremony:
    """Begin the revocation of one release. Arguments and errors as `revoke_release`."""
    signed = revoke_release(folder, model, version, current, now, with_keys=None, partial=True)
    return _of_release(identity, Purpose.REVOKE, folder, signed.role, signed.metadata, current, now)


def key_roles(ceremony: Ceremony) -> dict[str, Role]:
    """Return every offline role of the trust that the ceremony starts from: the ids of its keys, and how many sign."""
    trust = open_trust(ceremony)
    if trust.root is None or trust.targets is None:
        return {}
    roles = {role: trust.root.signed.roles[role] for role in (Root.type, Targets.type)}
    for role in trust.roles:
        roles[role] = trust.targets.signed.get_delegated_role(role)
    return roles


def begin_from(folder: Path, current: Mapping[str, bytes]) -> tuple[Trust, dict[str, str]]:
    """Return the trust in force that `folder` knows, and how its keys are called.

    Args:
        current: By role: releases as the controller has them, in place of what the folder has.
    Raises:
        FolderInvalid, MetadataRefused, ThresholdNotMet
    """
    offline = load_offline(folder)
    targets = parse(Targets, offline.targets, Targets.type).signed
    roles = (targets.delegations.roles if targets.delegations is not None else None) or {}
    releases: dict[str, str] = {}
    for role in roles:
        raw = current.get(role) or newest(folder, role)
        if raw is not None:
            require_signatures(targets, role, parse(Targets, raw, role))
            releases[role] = raw.decode()
    trust = Trust(
        root=offline.root.decode(), targets=offline.targets.decode(), keys=offline.keys.decode(), releases=releases
    )
    return trust, _names(folder)


def _names(folder: Path) -> dict[str, str]:
    keys = folder / KEYS_FOLDER
    return {key.keyid: key.name for place in (keys / FORMER_FOLDER, keys) for key in list_keys(place)}


def find_key(held: Mapping[str, Role], names: Mapping[str, str], said: str) -> str:
    """Return the id of the key that `said` means, by its name or the beginning of its id."""
    found = {
        keyid
        for role in held.values()
        for keyid in role.keyids
        if names.get(keyid) == said or (len(said) >= KEYID_PREFIX_MIN and keyid.startswith(said))
    }
    if len(found) != 1:
        there = ", ".join(sorted(names.get(keyid, keyid[:12]) for role in held.values() for keyid in role.keyids))
        raise CeremonyRefused(f"no key {said!r} is in force; there are {there}")
    return found.pop()


def _changes(
    held: Mapping[str, Role], add: Iterable[str], removed: Iterable[str], thresholds: Mapping[str, int]
) -> tuple[Change, ...]:
    """Return the changes by role. `held`: what is in force, by role; thresholds that nobody names stay."""
    wanted: dict[str, list[str]] = {}
    for name in dict.fromkeys(add):
        kind, model = role_of(name)
        if kind not in (KeyRole.ROOT, KeyRole.TARGETS, KeyRole.RELEASE):
            raise CeremonyRefused(f"{name} is the controller's own: `muster key ceremony online-keys` makes its keys")
        wanted.setdefault(release_role(model) if model is not None else kind.value, []).append(name)
    unknown = sorted(set(thresholds) - {*held, *wanted})
    if unknown:
        raise CeremonyRefused(f"there is no role {unknown[0]}; roles are {', '.join({**held, **wanted})}")
    gone = set(removed)
    changes: list[Change] = []
    for role in {**held, **wanted, **thresholds}:
        before = tuple(held[role].keyids) if role in held else ()
        keep = tuple(keyid for keyid in before if keyid not in gone)
        names = tuple(wanted.get(role, ()))
        if keep == before and not names and role not in thresholds:
            continue
        threshold = thresholds.get(role, held[role].threshold if role in held else THRESHOLD)
        if not 1 <= threshold <= len(keep) + len(names):
            raise CeremonyRefused(
                f"{role} would have {len(keep) + len(names)} keys, of which {threshold} must sign; "
                f"add keys (--key {role}-NAME), or change how many must sign (--threshold {role}=N)"
            )
        changes.append(Change(role=role, threshold=threshold, keep=keep, wanted=names))
    return tuple(changes)


def _of_release(
    identity: str,
    purpose: Purpose,
    folder: Path,
    role: str,
    metadata: bytes,
    current: bytes | None,
    now: datetime,
) -> Ceremony:
    trust, names = begin_from(folder, {role: current} if current is not None else {})
    return Ceremony(
        id=identity,
        purpose=purpose,
        begun_at=now.timestamp(),
        trust=trust,
        names=names,
        parts={role: metadata.decode()},
    )
