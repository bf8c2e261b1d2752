"""The operator's offline folder: the keys that say what a model is, and the metadata they sign.

    keys/       root-1..3, targets-1..3, release-<model>-1..3  (.pem guarded by its holder, .pub stays)
    metadata/   N.root.json, N.targets.json, N.assignment.json (of targets N), N.release-<model>.json

Nothing here talks to a controller: bytes come in, are verified against what this folder itself holds for true, and go
out signed. Holders may sign one after the other (`add_signature`), each on a machine of his own.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from securesystemslib.signer import Signer
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import DelegatedRole, Delegations, Metadata, Root, TargetFile, Targets

from muster_controller.mixer_card import check_keys
from muster_controller.registry import durable
from muster_controller.registry.bundles import MANIFEST, check_bundle_folder
from muster_controller.registry.errors import (
    FolderInvalid,
    KeyMissing,
    MetadataRefused,
    ThresholdNotMet,
    VersionConflict,
)
from muster_controller.registry.keys import (
    PRIVATE_SUFFIX,
    KeyFile,
    OnlinePublicKeys,
    Passphrase,
    Role,
    create_key,
    list_keys,
    load_signer,
    passphrase_from_environment,
)
from muster_controller.registry.metadata import (
    OFFLINE_LIFETIME,
    RELEASE_PREFIX,
    OfflineMetadata,
    S,
    check_releases,
    expiry,
    parse,
    path_of,
    release_paths,
    release_role,
    release_target,
    require_fresh,
    require_keys_target,
    require_signatures,
)
from muster_shared.assignment import KEYS_TARGET, AssignmentKeys, encode_keys, parse_keys
from muster_shared.ids import ModelName

HOLDERS = 3
THRESHOLD = 2
KEYS_FOLDER = "keys"
METADATA_FOLDER = "metadata"
KEYS_FILE = "assignment.json"
MIXER_PREFIX_MIN = 8

_VERSIONED = re.compile(r"([1-9]\d*)\.(.+)\.json")


@dataclass(frozen=True)
class SignedRelease:
    """A delegated role's next metadata."""

    role: str
    metadata: bytes
    have: int
    need: int

    @property
    def is_complete(self) -> bool:
        return self.have >= self.need


def init_operator(
    folder: Path,
    models: Sequence[ModelName],
    online: OnlinePublicKeys,
    now: datetime,
    *,
    root_threshold: int = THRESHOLD,
    targets_threshold: int = THRESHOLD,
    release_threshold: int = THRESHOLD,
    mixers: Mapping[str, bytes] | None = None,
    passphrase: Passphrase = passphrase_from_environment,
) -> OfflineMetadata:
    """Make the folder: three keys for each offline role, root and targets for a year.

    Keys that are in `keys/` already are used as they are. Afterwards the `.pem` files go to their holders.

    Args:
        mixers: X25519 keys to which devices seal their metrics, by `key_id`; without any, none leaves a device.
    Raises:
        FolderInvalid: the folder has metadata already.
        ThresholdNotMet: too few private halves are here.
    """
    if versions(folder, Root.type):
        raise FolderInvalid(folder, "it is an operator folder already; use another one, or `muster model add`")
    for model in models:
        release_role(model)  # A name that cannot be a topic must fail before any key is made.
    roots = _ensure_keys(folder, Root.type, passphrase)
    holders = _ensure_keys(folder, Targets.type, passphrase)

    root = Root(version=1, expires=expiry(now, OFFLINE_LIFETIME), consistent_snapshot=True)
    for role, keys, threshold in ((Root.type, roots, root_threshold), (Targets.type, holders, targets_threshold)):
        for key in keys:
            root.add_key(key.public, role)
        root.roles[role].threshold = threshold
    name_online_keys(root, online)

    assignment_keys = assignment_file(online, mixers or {})
    targets = Targets(version=1, expires=expiry(now, OFFLINE_LIFETIME), delegations=Delegations({}, {}))
    targets.targets[KEYS_TARGET] = TargetFile.from_data(KEYS_TARGET, assignment_keys, ["sha256"])
    for model in models:
        _delegate(targets, model, _ensure_keys(folder, release_role(model), passphrase), release_threshold)
    return _publish(folder, root, targets, assignment_keys, passphrase)


def load_offline(folder: Path) -> OfflineMetadata:
    """Return the newest metadata in the folder, verified. Raises FolderInvalid, ThresholdNotMet, MetadataRefused."""
    root_data, targets_data = newest(folder, Root.type), newest(folder, Targets.type)
    if root_data is None or targets_data is None:
        raise FolderInvalid(folder, "it is not an operator folder; make one with `muster init`")
    root = parse(Root, root_data, Root.type)
    targets = parse(Targets, targets_data, Targets.type)
    try:
        keys = keys_path(folder, targets.signed.version).read_bytes()
    except OSError as error:
        raise FolderInvalid(folder, f"the assignment keys cannot be read ({error}); restore the folder") from error
    require_signatures(root.signed, Root.type, root)
    require_signatures(root.signed, Targets.type, targets)
    require_keys_target(targets.signed, keys)
    return OfflineMetadata(root_data, targets_data, keys)


def add_model(
    folder: Path,
    model: ModelName,
    now: datetime,
    *,
    release_threshold: int = THRESHOLD,
    passphrase: Passphrase = passphrase_from_environment,
) -> OfflineMetadata:
    """Give `model` release keys and a delegation in the next targets version; the controller takes the result.

    Raises:
        FolderInvalid: the model is there already.
        ThresholdNotMet: too few private targets keys are here.
    """
    role, offline = release_role(model), load_offline(folder)
    targets = parse(Targets, offline.targets, Targets.type).signed
    if targets.delegations is None or targets.delegations.roles is None:
        targets.delegations = Delegations({}, {})
    if role in (targets.delegations.roles or {}):
        raise FolderInvalid(folder, f"model {model} is there already")
    _delegate(targets, model, _ensure_keys(folder, role, passphrase), release_threshold)
    _next(targets, now)
    return _publish(folder, parse(Root, offline.root, Root.type).signed, targets, offline.keys, passphrase)


def rotate_online_keys(
    folder: Path,
    online: OnlinePublicKeys,
    now: datetime,
    *,
    passphrase: Passphrase = passphrase_from_environment,
) -> OfflineMetadata:
    """Name other online keys in the next root and targets: after a controller was lost, stolen or replaced.

    With the same keys it renews what is about to expire. Root N+1 is signed by the root keys, which stay, so it has
    the thresholds of both versions. The mixers stay.
    """
    offline = load_offline(folder)
    root = parse(Root, offline.root, Root.type).signed
    targets = parse(Targets, offline.targets, Targets.type).signed
    name_online_keys(root, online)
    assignment_keys = assignment_file(online, parse_keys(offline.keys).mixers)
    targets.targets[KEYS_TARGET] = TargetFile.from_data(KEYS_TARGET, assignment_keys, ["sha256"])
    _next(root, now)
    _next(targets, now)
    return _publish(folder, root, targets, assignment_keys, passphrase)


def change_mixers(
    folder: Path,
    add: Mapping[str, bytes],
    remove: Collection[str],
    now: datetime,
    *,
    passphrase: Passphrase = passphrase_from_environment,
) -> OfflineMetadata:
    """Name other mixer keys in the next targets; those that neither argument names stay, and so does all else.

    Args:
        add: X25519 keys by `key_id`.
        remove: ids of keys in force, or their first 8 characters and more.
    Raises:
        FolderInvalid: nothing would change, or no such key is in force.
        ThresholdNotMet: too few private targets keys are here.
        WireError: a key is none, or there would be too many.
    """
    offline = load_offline(folder)
    before = parse_keys(offline.keys)
    try:
        mixers = next_mixers(before.mixers, add, remove)
    except LookupError as error:
        raise FolderInvalid(folder, f"no mixer key {error.args[0]!r} is in force") from error
    if mixers == before.mixers:
        raise FolderInvalid(folder, "these mixer keys are in force already")
    targets = parse(Targets, offline.targets, Targets.type).signed
    keys = encode_keys(AssignmentKeys(keys=before.keys, mixers=mixers))
    targets.targets[KEYS_TARGET] = TargetFile.from_data(KEYS_TARGET, keys, ["sha256"])
    _next(targets, now)
    return _publish(folder, parse(Root, offline.root, Root.type).signed, targets, keys, passphrase)


def next_mixers(before: Mapping[str, bytes], add: Mapping[str, bytes], remove: Collection[str]) -> dict[str, bytes]:
    """Return which mixer keys follow. Raises LookupError with what names no key in force, WireError."""
    mixers = dict(before)
    for said in remove:
        found = [name for name in before if name == said or (len(said) >= MIXER_PREFIX_MIN and name.startswith(said))]
        if len(found) != 1:
            raise LookupError(said)
        mixers.pop(found[0], None)
    mixers |= add
    check_keys(mixers)
    return mixers


def sign_release(
    folder: Path,
    bundle_folder: Path,
    current: bytes | None,
    now: datetime,
    *,
    with_keys: Sequence[str] | None = (),
    partial: bool = False,
    passphrase: Passphrase = passphrase_from_environment,
) -> SignedRelease:
    """Add the bundle to the next version of its model's role and sign it.

    Args:
        current: The role's metadata as the controller has it; None means what this folder signed last, if anything.
            It is verified here, because whoever stole a controller would love to have his own targets signed.
        with_keys: Names such as `release-digits-1`; empty means every private key that is here, None means none.
        partial: Accept fewer signatures than the threshold: other holders `add_signature` to the result.

    Raises:
        BundleBroken, FileTampered, ManifestInvalid: the folder is not what its manifest says.
        VersionConflict: `current` is older than what this folder has signed.
        ThresholdNotMet: `current`, or (unless `partial`) the result, has too few signatures.
        MetadataRefused: the version or its release counter is not newer than what is signed.
    """
    manifest = check_bundle_folder(bundle_folder)
    raw = (bundle_folder / MANIFEST).read_bytes()

    def add(targets: Targets) -> None:
        role = release_role(manifest.model)
        if manifest.target in targets.targets:
            raise MetadataRefused(role, f"{manifest.version} is signed already and never changes; choose a new version")
        delegator = parse(Targets, load_offline(folder).targets, Targets.type).signed
        highest = max((release.release for release in check_releases(role, targets, delegator)), default=0)
        if manifest.release <= highest:
            raise MetadataRefused(role, f"release {manifest.release} must be above {highest}; raise it in the spec")
        targets.targets[manifest.target] = release_target(manifest, raw)

    return _sign_role(folder, manifest.model, add, current, now, with_keys, partial, passphrase)


def revoke_release(
    folder: Path,
    model: ModelName,
    version: str,
    current: bytes | None,
    now: datetime,
    *,
    with_keys: Sequence[str] | None = (),
    partial: bool = False,
    passphrase: Passphrase = passphrase_from_environment,
) -> SignedRelease:
    """Take one release out of the next version of its role: devices will refuse it. Arguments as in `sign_release`."""

    def remove(targets: Targets) -> None:
        if targets.targets.pop(path_of(model, version), None) is None:
            raise MetadataRefused(release_role(model), f"{version} is not among its releases")

    return _sign_role(folder, model, remove, current, now, with_keys, partial, passphrase)


def add_signature(metadata: bytes, signer: Signer) -> bytes:
    """Return `metadata` (of whatever role) with one more signature; an older one of the same key is replaced.

    Raises:
        MetadataRefused: it does not parse.
    """
    try:
        document: Metadata[Targets] = Metadata.from_bytes(metadata)
    except RepositoryError as error:
        raise MetadataRefused("the file", f"it does not parse ({error})") from error
    document.sign(signer, append=True)
    return document.to_bytes()


def co_sign(
    folder: Path,
    metadata: bytes,
    role: str,
    *,
    with_keys: Sequence[str] = (),
    passphrase: Passphrase = passphrase_from_environment,
) -> SignedRelease:
    """Add this folder's signatures to a release that another holder began; remember it once the threshold is met.

    Raises:
        MetadataRefused, VersionConflict: it is not a next version that this folder could have begun itself.
    """
    delegator = parse(Targets, load_offline(folder).targets, Targets.type).signed
    document = parse(Targets, metadata, role)
    check_releases(role, document.signed, delegator)
    known = max(versions(folder, role), default=0)
    if document.signed.version < known:
        raise VersionConflict(role, known, document.signed.version)
    for signer in _signers(folder, role, with_keys, passphrase):
        metadata = add_signature(metadata, signer)
    return _finish(folder, role, parse(Targets, metadata, role), delegator, partial=True)


def signatures(folder: Path, role: str, metadata: bytes) -> tuple[int, int]:
    """Return how many keys of `role` signed `metadata`, and how many must."""
    delegator = parse(Targets, load_offline(folder).targets, Targets.type).signed
    document = parse(Targets, metadata, role)
    result = delegator.get_verification_result(role, document.signed_bytes, document.signatures)
    return len(result.signed), result.threshold


def _sign_role(
    folder: Path,
    model: ModelName,
    change: Callable[[Targets], None],
    current: bytes | None,
    now: datetime,
    with_keys: Sequence[str] | None,
    partial: bool,
    passphrase: Passphrase,
) -> SignedRelease:
    role = release_role(model)
    delegator = parse(Targets, load_offline(folder).targets, Targets.type)
    require_fresh(Targets.type, delegator, now)
    base = current if current is not None else newest(folder, role)
    if base is None:
        targets = Targets(version=1, expires=expiry(now, OFFLINE_LIFETIME))
    else:
        document = parse(Targets, base, role)
        require_signatures(delegator.signed, role, document)
        known = max(versions(folder, role), default=0)
        if document.signed.version < known:
            raise VersionConflict(role, known, document.signed.version)
        targets = deepcopy(document.signed)
        _next(targets, now)
    change(targets)
    signed = Metadata(targets)
    for signer in _signers(folder, role, with_keys, passphrase):
        signed.sign(signer, append=True)
    return _finish(folder, role, signed, delegator.signed, partial)


def _finish(folder: Path, role: str, signed: Metadata[Targets], delegator: Targets, partial: bool) -> SignedRelease:
    try:
        result = delegator.get_verification_result(role, signed.signed_bytes, signed.signatures)
    except ValueError as error:
        raise FolderInvalid(folder, f"no {role} is delegated; add the model with `muster model add`") from error
    release = SignedRelease(role, signed.to_bytes(), len(result.signed), result.threshold)
    if release.is_complete:
        durable.write(folder / METADATA_FOLDER / f"{signed.signed.version}.{role}.json", release.metadata)
    elif not partial:
        raise ThresholdNotMet(role, release.have, release.need)
    return release


def _publish(
    folder: Path, root: Root, targets: Targets, assignment_keys: bytes, passphrase: Passphrase
) -> OfflineMetadata:
    """Sign what is new, check it, then write it: the file that the others need comes first."""
    root_data = _exact(folder, root) or _sign_top(folder, Root.type, root, root, passphrase)
    targets_data = _sign_top(folder, Targets.type, targets, root, passphrase)
    require_keys_target(targets, assignment_keys)
    metadata = folder / METADATA_FOLDER
    durable.write(keys_path(folder, targets.version), assignment_keys)
    durable.write(metadata / f"{targets.version}.{Targets.type}.json", targets_data)
    durable.write(metadata / f"{root.version}.{Root.type}.json", root_data)
    return OfflineMetadata(root_data, targets_data, assignment_keys)


def _exact(folder: Path, root: Root) -> bytes | None:
    """Return the bytes of this root as they were published, if they were."""
    path = folder / METADATA_FOLDER / f"{root.version}.{Root.type}.json"
    return path.read_bytes() if path.is_file() else None


def _sign_top(folder: Path, role: str, signed: S, root: Root, passphrase: Passphrase) -> bytes:
    metadata = Metadata(signed)
    for signer in _signers(folder, role, (), passphrase):
        metadata.sign(signer, append=True)
    require_signatures(root, role, metadata)
    return metadata.to_bytes()


def _signers(folder: Path, role: str, names: Sequence[str] | None, passphrase: Passphrase) -> list[Signer]:
    """Return the signers of `role` by name, or all whose private half is here; none for None."""
    if names is None:
        return []
    keys = {key.name: key for key in _keys_of(folder, role, passphrase)}
    unknown = [name for name in names if name not in keys]
    if unknown:
        raise KeyMissing(unknown[0], folder / KEYS_FOLDER)
    chosen = [keys[name] for name in names] if names else [key for key in keys.values() if key.is_private_here]
    return [load_signer(key.path, passphrase) for key in chosen]


def _keys_of(folder: Path, role: str, passphrase: Passphrase) -> list[KeyFile]:
    model = ModelName(role.removeprefix(RELEASE_PREFIX)) if role.startswith(RELEASE_PREFIX) else None
    kind = Role.RELEASE if model is not None else Role(role)
    return [key for key in list_keys(folder / KEYS_FOLDER, passphrase) if key.role is kind and key.model == model]


def _ensure_keys(folder: Path, role: str, passphrase: Passphrase) -> list[KeyFile]:
    keys = _keys_of(folder, role, passphrase)
    taken = {key.name for key in keys}
    free = [name for name in (f"{role}-{holder}" for holder in range(1, HOLDERS + 1)) if name not in taken]
    for name in free[: max(0, HOLDERS - len(keys))]:
        secret = passphrase(folder / KEYS_FOLDER / f"{name}{PRIVATE_SUFFIX}")
        keys.append(create_key(folder / KEYS_FOLDER, name, secret))
    return keys


def _delegate(targets: Targets, model: ModelName, keys: Iterable[KeyFile], threshold: int) -> None:
    role = release_role(model)
    if targets.delegations is None or targets.delegations.roles is None:
        raise AssertionError("our targets metadata delegates by role")
    targets.delegations.roles[role] = DelegatedRole(role, [], threshold, terminating=True, paths=[release_paths(model)])
    for key in keys:
        targets.add_key(key.public, role)
    have = len(targets.delegations.roles[role].keyids)
    if have < threshold:
        raise ThresholdNotMet(role, have, threshold)


def name_online_keys(root: Root, online: OnlinePublicKeys) -> None:
    """Let `root` name these keys for snapshot and timestamp, and no others."""
    for role, key in (("snapshot", online.snapshot), ("timestamp", online.timestamp)):
        for keyid in list(root.roles[role].keyids):
            root.revoke_key(keyid, role)
        root.add_key(key, role)


def assignment_file(online: OnlinePublicKeys, mixers: Mapping[str, bytes]) -> bytes:
    """Return the content of `keys/assignment.json` that names the assignment key of `online` alone, and these mixers.

    Raises:
        WireError: a mixer's key is none.
    """
    check_keys(mixers)
    named = {online.assignment.keyid: online.assignment.to_dict()}
    return encode_keys(AssignmentKeys(keys=named, mixers=dict(mixers)))


def _next(signed: Root | Targets, now: datetime) -> None:
    signed.version += 1
    signed.expires = expiry(now, OFFLINE_LIFETIME)


def all_roots(folder: Path) -> list[bytes]:
    """Return every root in the folder, ascending, not verified."""
    paths = (folder / METADATA_FOLDER / f"{version}.{Root.type}.json" for version in versions(folder, Root.type))
    return [path.read_bytes() for path in paths]


def newest_releases(folder: Path) -> dict[str, bytes]:
    """Return the newest metadata of every release role that the folder's targets delegate, not verified."""
    delegations = parse(Targets, load_offline(folder).targets, Targets.type).signed.delegations
    roles = (delegations.roles if delegations is not None else None) or {}
    found = {role: newest(folder, role) for role in roles}
    return {role: raw for role, raw in found.items() if raw is not None}


def keys_path(folder: Path, targets_version: int) -> Path:
    """Return where the assignment keys of this version of the targets are."""
    return folder / METADATA_FOLDER / f"{targets_version}.{KEYS_FILE}"


def versions(folder: Path, role: str) -> list[int]:
    """Return which versions of the metadata of `role` are in the folder, ascending."""
    matches = (_VERSIONED.fullmatch(path.name) for path in (folder / METADATA_FOLDER).glob("*.json"))
    return sorted(int(match[1]) for match in matches if match is not None and match[2] == role)


def newest(folder: Path, role: str) -> bytes | None:
    """Return the newest metadata of `role` in the folder, not verified; None where there is none."""
    known = versions(folder, role)
    return (folder / METADATA_FOLDER / f"{known[-1]}.{role}.json").read_bytes() if known else None
