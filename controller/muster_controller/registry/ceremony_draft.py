"""What a ceremony has to sign: the next root, targets and releases that follow from the trust and the changes.

Pure: no files, no private keys; the date is an argument.
"""

from copy import deepcopy
from datetime import datetime
from typing import Any

import msgspec
from securesystemslib.signer import SSlibKey
from tuf.api.metadata import DelegatedRole, Delegations, Metadata, Root, TargetFile, Targets

from muster_controller.registry.ceremony_file import Ceremony, Change, mixers_in_force, open_trust, public_key
from muster_controller.registry.errors import CeremonyRefused, ThresholdNotMet
from muster_controller.registry.keys import OnlinePublicKeys, parse_online_keys
from muster_controller.registry.metadata import (
    OFFLINE_LIFETIME,
    RELEASE_PREFIX,
    S,
    expiry,
    release_paths,
    require_keys_target,
    require_signatures,
)
from muster_controller.registry.operator import assignment_file, name_online_keys
from muster_shared.assignment import KEYS_TARGET, AssignmentKeys, encode_keys, parse_keys
from muster_shared.ids import ModelName


def draft(ceremony: Ceremony, now: datetime) -> Ceremony:
    """Return the ceremony with its parts, unsigned; everybody who is awaited has joined.

    Raises:
        CeremonyRefused: nothing would change.
    """
    before = open_trust(ceremony)
    keys = {each.name: public_key(ceremony, each) for each in ceremony.joined}
    online = parse_online_keys(ceremony.online.encode()) if ceremony.online else None
    changes = {change.role: change for change in ceremony.changes}

    root = deepcopy(before.root.signed) if before.root is not None else Root(consistent_snapshot=True)
    for role in (Root.type, Targets.type):
        if role in changes:
            _change(root, role, changes[role], keys)
    targets = deepcopy(before.targets.signed) if before.targets is not None else Targets()
    if targets.delegations is None:
        targets.delegations = Delegations({}, {})
    delegations = targets.delegations.roles
    if delegations is None:
        raise CeremonyRefused("the targets delegate by hashes, which no ceremony here does")
    for role, change in changes.items():
        if role.startswith(RELEASE_PREFIX):
            model = ModelName(role.removeprefix(RELEASE_PREFIX))
            delegated = DelegatedRole(role, [], change.threshold, terminating=True, paths=[release_paths(model)])
            delegations.setdefault(role, delegated)
            _change(targets, role, change, keys)
    keys_text = ceremony.keys
    if online is not None:
        name_online_keys(root, online)
    if online is not None or ceremony.mixers is not None:
        raw = _keys_file(ceremony, online)
        targets.targets[KEYS_TARGET] = TargetFile.from_data(KEYS_TARGET, raw, ["sha256"])
        keys_text = raw.decode()

    parts: dict[str, str] = {}
    old_root = before.root.signed if before.root is not None else None
    if old_root is None or Root.type in ceremony.renew or _differ(old_root, root):
        parts[Root.type] = _next(root, old_root, now)
    kept = before.targets
    if (
        kept is None
        or Targets.type in ceremony.renew
        or _differ(kept.signed, targets)
        or not _verifies(root, Targets.type, kept)
    ):
        parts[Targets.type] = _next(targets, kept.signed if kept is not None else None, now)
    for role, release in before.releases.items():
        if role in ceremony.renew or not _verifies(targets, role, release):
            parts[role] = _next(deepcopy(release.signed), release.signed, now)
    if not parts:
        raise CeremonyRefused("nothing would change; say what to add, remove or renew")
    require_keys_target(targets, (keys_text or ceremony.trust.keys).encode())
    return msgspec.structs.replace(ceremony, parts=parts, keys=keys_text)


def _keys_file(ceremony: Ceremony, online: OnlinePublicKeys | None) -> bytes:
    """Return the next content of `keys/assignment.json`: assignment key and mixers, each as they were or new."""
    mixers = mixers_in_force(ceremony) if ceremony.mixers is None else ceremony.mixers
    if online is not None:
        return assignment_file(online, mixers)
    return encode_keys(AssignmentKeys(keys=parse_keys(ceremony.trust.keys.encode()).keys, mixers=mixers))


def _change(signed: Root | Targets, role: str, change: Change, keys: dict[str, SSlibKey]) -> None:
    delegated = signed.get_delegated_role(role)
    for keyid in [each for each in delegated.keyids if each not in change.keep]:
        signed.revoke_key(keyid, role)
    for name in change.wanted:
        signed.add_key(keys[name], role)
    delegated.threshold = change.threshold


def _differ(before: Root | Targets, after: Root | Targets) -> bool:
    return _content(before) != _content(after)


def _content(signed: Root | Targets) -> dict[str, Any]:
    return {name: value for name, value in signed.to_dict().items() if name not in ("version", "expires")}


def _verifies(delegator: Root | Targets, role: str, metadata: Metadata[S]) -> bool:
    try:
        require_signatures(delegator, role, metadata)
    except ThresholdNotMet:
        return False
    return True


def _next(signed: S, before: S | None, now: datetime) -> str:
    signed.version = before.version + 1 if before is not None else 1
    signed.expires = expiry(now, OFFLINE_LIFETIME)
    return Metadata(signed).to_bytes().decode()
