"""What a ceremony says to people: in plain words what would be signed, and a digest to compare aloud.

Every word comes from the bytes that are signed, compared with the metadata in force: never from what the file's plan
says. Nothing is signed or written here.
"""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from tuf.api.metadata import Metadata, Role, Root, TargetFile, Targets

from muster_controller.mixer_card import check_keys
from muster_controller.registry.ceremony_file import Ceremony, call, mixers_in_force, open_parts, open_trust
from muster_controller.registry.errors import CeremonyRefused, MetadataRefused
from muster_controller.registry.keys import parse_online_keys
from muster_controller.registry.metadata import S, describe, release_paths
from muster_shared.assignment import KEYS_TARGET, AssignmentKeys, encode_keys, parse_keys
from muster_shared.errors import WireError
from muster_shared.ids import ModelName

DIGEST_GROUPS = 5  # Of four hex digits: 80 bits, which nobody finds a second file for while people read them aloud.


def digest(ceremony: Ceremony) -> str:
    """Return what holders compare aloud before they sign: five groups of four hex digits, the same on every machine.

    It covers what is signed, and not the signatures.
    """
    after = open_parts(ceremony)
    signed: list[bytes] = [each.signed_bytes for each in (after.root,) if each is not None]
    signed += [each.signed_bytes for each in (after.targets,) if each is not None]
    signed += [after.releases[role].signed_bytes for role in sorted(after.releases)]
    return _groups(b"".join(hashlib.sha256(each).digest() for each in signed))


def joined_digest(ceremony: Ceremony) -> str:
    """Return what holders compare aloud while they join: over the names and ids of the keys so far."""
    lines = sorted(f"{each.name} {each.keyid}" for each in ceremony.joined)
    return _groups("\n".join([ceremony.id, *lines]).encode())


def explain(ceremony: Ceremony) -> dict[str, list[str]]:
    """Return what signing would change, in sentences, by part; each part begins with its versions and dates.

    Raises:
        CeremonyRefused: a part does something that no ceremony does; sign nothing.
    """
    before, after = open_trust(ceremony), open_parts(ceremony)
    said: dict[str, list[str]] = {}
    if after.root is not None:
        old_root = before.root.signed if before.root is not None else None
        said[Root.type] = [_dates(before.root, after.root), *_root(ceremony, old_root, after.root.signed)]
    if after.targets is not None:
        old = before.targets.signed if before.targets is not None else None
        said[Targets.type] = [_dates(before.targets, after.targets), *_targets(ceremony, old, after.targets.signed)]
    for role, release in after.releases.items():
        previous = before.releases.get(role)
        old = previous.signed if previous is not None else None
        said[role] = [_dates(previous, release), *_release(role, old, release.signed)]
    return {part: [*lines, *(["Nothing else changes."] if len(lines) == 1 else [])] for part, lines in said.items()}


def plan(ceremony: Ceremony) -> list[str]:
    """Return what the ceremony is about to draft once everybody has joined."""
    said: list[str] = []
    for change in ceremony.changes:
        keep = ", ".join(call(ceremony, keyid) for keyid in change.keep)
        wanted = ", ".join(change.wanted)
        parts = [f"{keep} stay" if keep else "", f"{wanted} are new" if wanted else ""]
        total = len(change.keep) + len(change.wanted)
        said.append(f"{change.role}: {'; '.join(filter(None, parts))}; {change.threshold} of {total} sign")
    if ceremony.online:
        said.append("the controller's snapshot, timestamp and assignment keys are named")
    return said + ([] if ceremony.mixers is None else _mixers(mixers_in_force(ceremony), ceremony.mixers))


def _root(ceremony: Ceremony, before: Root | None, after: Root) -> list[str]:
    said: list[str] = []
    for role in (Root.type, Targets.type):
        said += _role(ceremony, role, before.roles[role] if before is not None else None, after.roles[role])
    for role in ("snapshot", "timestamp"):
        keys, threshold = after.roles[role].keyids, after.roles[role].threshold
        if len(keys) != 1 or threshold != 1:
            raise CeremonyRefused(f"the root names {len(keys)} {role} keys, and a controller has one; sign nothing")
        old = before.roles[role].keyids if before is not None else []
        if keys != old:
            instead = f" instead of {old[0][:12]}" if old else ""
            said.append(f"The controller's {role} key is {keys[0][:12]}{instead}.")
    if not after.consistent_snapshot or set(after.roles) != {"root", "targets", "snapshot", "timestamp"}:
        raise CeremonyRefused("the root has roles or settings that no ceremony gives it; sign nothing")
    _refuse_extras("root", before.unrecognized_fields if before is not None else {}, after.unrecognized_fields)
    return said


def _targets(ceremony: Ceremony, before: Targets | None, after: Targets) -> list[str]:
    said: list[str] = []
    old_targets, old_roles = _parts_of(before)
    new_targets, new_roles = _parts_of(after)
    if set(new_targets) != {KEYS_TARGET}:
        raise CeremonyRefused(f"targets would name files other than {KEYS_TARGET}; sign nothing")
    if new_targets != old_targets:
        said += _keys_file(ceremony, new_targets[KEYS_TARGET])
    for role, delegated in new_roles.items():
        if list(delegated.paths or []) != [release_paths(ModelName(role.removeprefix("release-")))]:
            raise CeremonyRefused(f"{role} would sign more than releases of its model; sign nothing")
        said += _role(ceremony, role, old_roles.get(role), delegated)
    said += [f"{role} signs nothing any more: its model is gone." for role in old_roles if role not in new_roles]
    _refuse_extras("targets", before.unrecognized_fields if before is not None else {}, after.unrecognized_fields)
    return said


def _release(role: str, before: Targets | None, after: Targets) -> list[str]:
    old = before.targets if before is not None else {}
    said: list[str] = []
    for path in sorted({*old, *after.targets}):
        if path not in after.targets:
            said.append(f"{path} is revoked: no device runs it any more.")
        elif path not in old:
            found = describe(after.targets[path], role)
            said.append(f"{path} is added: release {found.release}, bundle SHA-256 {found.sha256}.")
        elif old[path] != after.targets[path]:
            raise MetadataRefused(role, f"{path} would get another content, and a release never changes; sign nothing")
    return said


def _role(ceremony: Ceremony, role: str, before: Role | None, after: Role) -> list[str]:
    old = before.keyids if before is not None else []
    said = [f"{role}: {call(ceremony, keyid)} is added." for keyid in after.keyids if keyid not in old]
    said += [f"{role}: {call(ceremony, keyid)} is removed." for keyid in old if keyid not in after.keyids]
    if before is None or (before.threshold, len(old)) != (after.threshold, len(after.keyids)):
        earlier = f", before it was {before.threshold} of {len(old)}" if before is not None and old else ""
        said.append(f"{role}: {after.threshold} of {len(after.keyids)} keys must sign{earlier}.")
    if said and after.threshold == 1:
        said.append(f"{role}: one key alone decides. Whoever steals it does, too.")
    if said and after.threshold == len(after.keyids):
        said.append(f"{role}: no key may be lost, since all of them must sign.")
    return said


def _keys_file(ceremony: Ceremony, target: TargetFile) -> list[str]:
    """Say what `keys/assignment.json` would become, from its own bytes, whose hash `target` has."""
    raw, old = ceremony.keys.encode(), ceremony.trust.keys.encode()
    if target != TargetFile.from_data(KEYS_TARGET, raw, ["sha256"]):
        raise CeremonyRefused("the assignment key that targets would name is not the one in the file; sign nothing")
    try:
        after = parse_keys(raw)
        before = parse_keys(old) if old else AssignmentKeys(keys={})
        check_keys(after.mixers)
    except WireError as error:
        raise CeremonyRefused(f"the keys that targets would name are none ({error}); sign nothing") from error
    if encode_keys(after) != raw:
        raise CeremonyRefused(f"{KEYS_TARGET} would say more than these words can tell; sign nothing")
    said: list[str] = []
    if after.keys != before.keys:
        online = parse_online_keys(ceremony.online.encode()) if ceremony.online else None
        if online is None or after.keys != {online.assignment.keyid: online.assignment.to_dict()}:
            raise CeremonyRefused("the assignment key that targets would name is not the one in the file; sign nothing")
        said.append(f"The controller's assignment key is {online.assignment.keyid[:12]}.")
    return said + _mixers(before.mixers, after.mixers)


def _mixers(before: Mapping[str, bytes], after: Mapping[str, bytes]) -> list[str]:
    said = [f"Devices seal their metrics to mixer key {name}." for name in sorted(after) if name not in before]
    said += [f"Devices seal nothing to mixer key {name} any more." for name in sorted(before) if name not in after]
    if before and not after:
        said.append("No mixer is left: no metric of what models see leaves a device.")
    return said


def _parts_of(targets: Targets | None) -> tuple[Mapping[str, TargetFile], Mapping[str, Any]]:
    delegations = targets.delegations if targets is not None else None
    roles = (delegations.roles if delegations is not None else None) or {}
    return (targets.targets if targets is not None else {}), roles


def _refuse_extras(part: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    if before != after:
        raise CeremonyRefused(f"{part} would carry {_list(after)}, which no ceremony writes; sign nothing")


def _list(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "less than before"


def _dates(before: Metadata[S] | None, after: Metadata[S]) -> str:
    new = f"version {after.signed.version}, good until {after.signed.expires:%Y-%m-%d}"
    if before is None:
        return f"The first: {new}."
    return f"From version {before.signed.version} (good until {before.signed.expires:%Y-%m-%d}) to {new}."


def _groups(raw: bytes) -> str:
    text = hashlib.sha256(raw).hexdigest()
    return " ".join(text[4 * index : 4 * index + 4] for index in range(DIGEST_GROUPS))
