"""The controller's TUF repository on disk: what the operator signed, made current by the two online keys.

    <data>/keys/    snapshot, timestamp, assignment            (.pem, .pub)
                    next/  the same three, until the operator's metadata names them: they take their place then
    <data>/trust/   N.root.json  N.targets.json  N.release-<model>.json  <sha256>.assignment-keys.json
                    N.snapshot.json  timestamp.json  incoming/

What is current is what `timestamp.json` leads to. A change is written to `incoming.tmp/`, committed by renaming that to
`incoming/`, and moved into place with the timestamp last; opening the repository finishes a move that was cut short. So
power may fail at any byte and the old state or the new one is there, whole.

A controller holds no key that could sign a model: everything offline is verified here before it is published, as every
device verifies it again.
"""

import shutil
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import LengthOrHashMismatchError
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, Targets, Timestamp

from muster_controller.mixer_card import check_keys
from muster_controller.registry import durable
from muster_controller.registry.errors import MetadataRefused, RepositoryEmpty, ThresholdNotMet, VersionConflict
from muster_controller.registry.keys import (
    OnlinePublicKeys,
    Passphrase,
    Role,
    create_key,
    load_key,
    load_signer,
    passphrase_from_environment,
)
from muster_controller.registry.metadata import (
    SNAPSHOT_LIFETIME,
    TIMESTAMP_LIFETIME,
    ReleaseTarget,
    S,
    check_releases,
    describe,
    expiry,
    parse,
    release_target,
    require_fresh,
    require_keys_target,
    require_message,
    require_signatures,
)
from muster_controller.registry.signing import sign_all
from muster_shared import assignment as assignments
from muster_shared.assignment import KEYS_ROLE, KEYS_TARGET, Assignment
from muster_shared.bundle import parse_manifest
from muster_shared.call import Call, sign_call
from muster_shared.errors import WireError
from muster_shared.messages import TrustFiles

KEYS_FOLDER = "keys"
NEXT_FOLDER = "next"
TRUST_FOLDER = "trust"
TIMESTAMP_FILE = "timestamp.json"
VERSIONS_SHOWN = 32  # Of a release role: enough for people, and read in a moment.
ROOTS_MAX = 64  # What fits into the root message; at one ceremony a year nobody gets there.

ONLINE_ROLES = (Role.SNAPSHOT, Role.TIMESTAMP, Role.ASSIGNMENT)

_INCOMING = "incoming"


@dataclass(frozen=True)
class RoleExpiry:
    """When the metadata of a role runs out; offline roles need their operator before that."""

    role: str
    version: int
    expires: datetime


@dataclass(frozen=True)
class ReleaseChange:
    """What metadata of a release role would change. `added`, `removed`: target paths."""

    is_new: bool
    added: tuple[str, ...]
    removed: tuple[str, ...]


@dataclass(frozen=True)
class _State:
    """The committed repository, parsed once."""

    roots: tuple[bytes, ...]
    """Ascending and contiguous; the last is current."""
    root: Metadata[Root]
    targets_data: bytes
    targets: Metadata[Targets]
    snapshot_data: bytes
    snapshot: Metadata[Snapshot]
    timestamp_data: bytes
    timestamp: Metadata[Timestamp]
    releases_data: Mapping[str, bytes]
    releases: Mapping[str, Metadata[Targets]]
    """By role, in the order of delegation; only those that the snapshot names."""
    keys: bytes


def create_online_keys(data: Path, passphrase: Passphrase = passphrase_from_environment) -> OnlinePublicKeys:
    """Return the public halves of the controller's keys, which are made if they are not there."""
    return _create_online_keys(data / KEYS_FOLDER, passphrase)


def create_next_online_keys(data: Path, passphrase: Passphrase = passphrase_from_environment) -> OnlinePublicKeys:
    """Return the keys that will take the place of the controller's, made once, while it goes on with those it has.

    They do so by themselves in the moment in which `TufRepository.accept_offline` takes metadata that names them.
    """
    return _create_online_keys(data / KEYS_FOLDER / NEXT_FOLDER, passphrase)


def _create_online_keys(folder: Path, passphrase: Passphrase) -> OnlinePublicKeys:
    for role in ONLINE_ROLES:
        path = folder / f"{role.value}.pem"
        if not path.is_file():
            path.with_suffix(".pub").unlink(missing_ok=True)  # Of a key that is lost.
            create_key(folder, role.value, passphrase(path))
    snapshot, timestamp, signing = (load_key(folder / f"{role.value}.pem", passphrase).public for role in ONLINE_ROLES)
    return OnlinePublicKeys(snapshot, timestamp, signing)


class TufRepository:
    """The repository below `data`. Safe to use from several threads of one process; not from two processes."""

    def __init__(self, data: Path, passphrase: Passphrase = passphrase_from_environment) -> None:
        """Open what is there and finish what was committed.

        Raises:
            MetadataRefused: a file is damaged; restore the data folder from a backup.
        """
        self._folder = data / TRUST_FOLDER
        self._keys_folder = data / KEYS_FOLDER
        self._passphrase = passphrase
        self._lock = threading.RLock()
        durable.make_folder(self._folder)
        self._finish_commit()
        self._state = self._load()
        self._promote()

    @property
    def is_ready(self) -> bool:
        """Whether an operator's metadata is here."""
        return self._state is not None

    # -- what the operator brings ------------------------------------------------------------------------------------

    def accept_offline(
        self,
        root: bytes,
        targets: bytes,
        keys: bytes,
        now: datetime,
        *,
        between: Sequence[bytes] = (),
        releases: Mapping[str, bytes] | None = None,
    ) -> bool:
        """Take root, targets and the bytes of `keys/assignment.json`; return whether anything is new.

        The first root is trusted as it comes (whoever initialises the controller says which); after it, root N+1 needs
        the thresholds of N and of itself. All of it becomes current at once, or none of it.

        Args:
            between: The roots between the current one and `root`, ascending; those that are here are passed over. They
                may have run out: only the last has to hold.
            releases: By role, the same releases signed with other keys. Used where what is current would no longer
                verify under `targets`, and passed over elsewhere.
        Raises:
            ThresholdNotMet: root, targets, or (under new delegations) a release that is current.
            VersionConflict: not the next root, or targets that do not follow the current ones.
            MetadataRefused: expired, too large, or naming other online keys than this controller has.
            KeyMissing: this controller has no online keys yet.
        """
        with self._lock:
            self._settle()
            state = self._state
            new_root = parse(Root, root, Root.type)
            new_targets = parse(Targets, targets, Targets.type)
            chain = self._check_roots((*between, root), now)
            again = self._check_targets(new_root.signed, new_targets, targets, keys, releases or {}, now)
            if state is not None and (root, targets, keys) == (state.roots[-1], state.targets_data, state.keys):
                return False
            _require_roots((*(() if state is None else state.roots), *chain.values()))

            files = {
                **{f"{version}.root.json": data for version, data in chain.items()},
                f"{new_targets.signed.version}.targets.json": targets,
                _keys_file(new_targets.signed): keys,
            }
            meta = {"targets.json": MetaFile.from_data(new_targets.signed.version, targets, ["sha256"])}
            for role, (version, data) in again.items():
                files[f"{version}.{role}.json"] = data
                meta[f"{role}.json"] = MetaFile.from_data(version, data, ["sha256"])
            self._commit(files, meta, new_root.signed, now)
            self._promote()
            return True

    def accept_release(self, role: str, metadata: bytes, manifest: bytes | None, now: datetime) -> bool:
        """Take the next metadata of a release role; return whether it is new (the same bytes again are not).

        Args:
            manifest: The bytes of the `bundle.json` that is added; None when releases are only revoked or renewed.

        Raises:
            ThresholdNotMet: too few of the model's release keys signed it.
            VersionConflict: it does not follow the current version: somebody else published meanwhile.
            MetadataRefused: expired, or it says something that a release may not.
            ManifestInvalid: `manifest` does not parse.
        """
        with self._lock:
            self._settle()
            state = self._ready()
            offered = self._judge_release(state, role, metadata, manifest, now)
            if offered is None:
                return False
            name = f"{offered.signed.version}.{role}.json"
            meta = {f"{role}.json": MetaFile.from_data(offered.signed.version, metadata, ["sha256"])}
            self._commit({name: metadata}, meta, state.root.signed, now)
            return True

    def check_release(self, role: str, metadata: bytes, manifest: bytes | None, now: datetime) -> ReleaseChange:
        """Return what `accept_release` would change, and change nothing. Arguments, errors: the same."""
        with self._lock:
            self._settle()
            state = self._ready()
            offered = self._judge_release(state, role, metadata, manifest, now)
        before = state.releases[role].signed.targets if role in state.releases else {}
        after = before if offered is None else offered.signed.targets
        added, removed = sorted(after.keys() - before.keys()), sorted(before.keys() - after.keys())
        return ReleaseChange(offered is not None, tuple(added), tuple(removed))

    # -- what the online keys do -------------------------------------------------------------------------------------

    def refresh_online(self, now: datetime) -> bool:
        """Sign timestamp and snapshot again when half their life is over, or when the root names newer keys.

        Harmless at any moment; returns whether `trust_messages` changed. Raises RepositoryEmpty, KeyMissing.
        """
        with self._lock:
            self._settle()
            state = self._ready()
            root = state.root.signed
            stale_snapshot = _is_stale(root, state.snapshot, SNAPSHOT_LIFETIME, now)
            if not stale_snapshot and not _is_stale(root, state.timestamp, TIMESTAMP_LIFETIME, now):
                return False
            self._commit({}, {}, root, now, renew_snapshot=stale_snapshot)
            return True

    def sign_assignment(self, assignment: Assignment) -> bytes:
        """Return the envelope of `assignment`, as it is published. Raises KeyMissing, KeyUnreadable."""
        return assignments.sign(assignment, self._assignment_signer())

    def sign_call(self, call: Call) -> bytes:
        """Return the envelope of `call`, as it is published. Raises KeyMissing, KeyUnreadable."""
        return sign_call(call, self._assignment_signer())

    def sign_assignments(self, documents: Sequence[Assignment]) -> list[bytes]:
        """Return the envelopes of `documents`, in order: on all processors.

        Raises:
            KeyMissing, KeyUnreadable
        """
        return sign_all(documents, self._assignment_signer())

    # -- what is current ---------------------------------------------------------------------------------------------

    def trust_messages(self) -> tuple[TrustFiles, ...]:
        """Return one message for each retained trust topic, in the order in which a device can use them best."""
        state = self._ready()
        snapshot = state.snapshot.signed
        first = state.root.signed.version - len(state.roots) + 1
        messages = [
            ("root", {f"{first + index}.root.json": root for index, root in enumerate(state.roots)}),
            (KEYS_ROLE, {KEYS_TARGET: state.keys}),
            ("targets", {f"{state.targets.signed.version}.targets.json": state.targets_data}),
            *(
                (role, {f"{state.releases[role].signed.version}.{role}.json": data})
                for role, data in state.releases_data.items()
            ),
            ("snapshot", {f"{snapshot.version}.snapshot.json": state.snapshot_data}),
            ("timestamp", {TIMESTAMP_FILE: state.timestamp_data}),
        ]
        return tuple(require_message(role, files) for role, files in messages)

    def releases(self) -> tuple[ReleaseTarget, ...]:
        """Return every release that devices accept now, by path."""
        state = self._state
        if state is None:
            return ()
        found = [
            describe(target, role)
            for role, metadata in state.releases.items()
            for target in metadata.signed.targets.values()
        ]
        return tuple(sorted(found, key=lambda release: release.path))

    def role_metadata(self, role: str) -> bytes | None:
        """Return the current metadata of a release role, which the next version is made from; None before the first."""
        return self._ready().releases_data.get(role)

    def role_versions(self, role: str, most: int = VERSIONS_SHOWN) -> tuple[bytes, ...]:
        """Return the newest versions of a release role's metadata that are still here, ascending; the last is current.

        They were verified when they were taken, with the keys of their time.
        """
        recorded = self._ready().snapshot.signed.meta.get(f"{role}.json")
        last = 0 if recorded is None else recorded.version
        paths = (self._folder / f"{version}.{role}.json" for version in range(max(1, last - most + 1), last + 1))
        return tuple(path.read_bytes() for path in paths if path.is_file())

    def roles(self) -> tuple[str, ...]:
        """Return every release role that is delegated, with releases or without."""
        return tuple(_delegated(self._ready().targets.signed))

    def assignment_keys(self) -> frozenset[str]:
        """Return the ids of the keys whose assignments devices accept; none before the operator's metadata is here."""
        return frozenset() if self._state is None else frozenset(assignments.parse_keys(self._state.keys).keys)

    def mixer_keys(self) -> frozenset[str]:
        """Return the ids of the keys to which devices seal metrics; none before the operator's metadata is here."""
        return frozenset() if self._state is None else frozenset(assignments.parse_keys(self._state.keys).mixers)

    def bootstrap_root(self) -> bytes:
        """Return the oldest root that is here: what a device is provisioned with."""
        return self._ready().roots[0]

    def expiries(self) -> tuple[RoleExpiry, ...]:
        """Return when each role runs out, the nearest first."""
        state = self._ready()
        signed: dict[str, Root | Targets | Snapshot | Timestamp] = {
            "root": state.root.signed,
            "targets": state.targets.signed,
            "snapshot": state.snapshot.signed,
            "timestamp": state.timestamp.signed,
            **{role: metadata.signed for role, metadata in state.releases.items()},
        }
        found = [RoleExpiry(role, one.version, one.expires) for role, one in signed.items()]
        return tuple(sorted(found, key=lambda entry: (entry.expires, entry.role)))

    # -- judging -----------------------------------------------------------------------------------------------------

    def _check_roots(self, offered: Sequence[bytes], now: datetime) -> dict[int, bytes]:
        """Return the roots that are new, by version: each signed as the one before it and as itself demand."""
        state = self._state
        chain: dict[int, bytes] = {}
        current = state.root.signed if state is not None else None
        last = state.root if state is not None else None
        for data in offered:
            if state is not None and data in state.roots and data != offered[-1]:
                continue
            metadata = parse(Root, data, Root.type)
            if state is None or data != state.roots[-1]:
                if current is not None:
                    if metadata.signed.version != current.version + 1:
                        raise VersionConflict(Root.type, current.version, metadata.signed.version)
                    require_signatures(current, Root.type, metadata)
                require_signatures(metadata.signed, Root.type, metadata)
                chain[metadata.signed.version] = data
            current, last = metadata.signed, metadata
        if last is None:
            raise AssertionError("at least one root is offered")
        self._check_root(last, now)
        return chain

    def _check_root(self, offered: Metadata[Root], now: datetime) -> None:
        require_signatures(offered.signed, Root.type, offered)
        require_fresh(Root.type, offered, now)
        if not offered.signed.consistent_snapshot:
            raise MetadataRefused(Root.type, "it does not ask for consistent snapshots, which devices rely on")
        for role in (Role.SNAPSHOT, Role.TIMESTAMP):
            named = offered.signed.roles[role.value]
            if not self._holds(role, named.keyids) or named.threshold != 1:
                raise MetadataRefused(
                    Root.type, f"its {role.value} key is not this controller's; name its online keys with `muster init`"
                )

    def _check_targets(
        self,
        root: Root,
        offered: Metadata[Targets],
        data: bytes,
        keys: bytes,
        releases: Mapping[str, bytes],
        now: datetime,
    ) -> dict[str, tuple[int, bytes]]:
        """Return the releases that have to be replaced with these targets: version and bytes by role."""
        state = self._state
        version = offered.signed.version
        require_signatures(root, Targets.type, offered)
        require_fresh(Targets.type, offered, now)
        require_keys_target(offered.signed, keys)
        require_message(Targets.type, {f"{version}.targets.json": data})
        require_message(KEYS_ROLE, {KEYS_TARGET: keys})
        try:
            named = assignments.parse_keys(keys)
            check_keys(named.mixers)
            trusted = named.keys
        except WireError as error:
            raise MetadataRefused(Targets.type, str(error)) from error
        if not self._holds(Role.ASSIGNMENT, trusted):
            raise MetadataRefused(
                Targets.type, f"{KEYS_TARGET} lacks this controller's assignment key; name its online keys again"
            )
        if state is None or data == state.targets_data:
            return {}
        if version <= state.targets.signed.version:
            raise VersionConflict(Targets.type, state.targets.signed.version, version)
        again: dict[str, tuple[int, bytes]] = {}
        for role in _delegated(offered.signed):
            release = state.releases.get(role)
            if release is None or _is_signed(offered.signed, role, release):
                continue
            # A release that stops verifying would stop every device: it must come with the targets, signed anew.
            if role not in releases:
                require_signatures(offered.signed, role, release)
            again[role] = self._check_again(state, offered.signed, role, releases[role], now)
        return again

    def _check_again(
        self, state: _State, delegator: Targets, role: str, data: bytes, now: datetime
    ) -> tuple[int, bytes]:
        """Judge the same releases, signed with other keys: none is added or changed; some may be gone."""
        release = parse(Targets, data, role)
        require_signatures(delegator, role, release)
        require_fresh(role, release, now)
        if release.signed.version <= state.releases[role].signed.version:
            raise VersionConflict(role, state.releases[role].signed.version, release.signed.version)
        check_releases(role, release.signed, delegator)
        before = state.releases[role].signed.targets
        other = [path for path, target in release.signed.targets.items() if target != before.get(path)]
        if other:
            raise MetadataRefused(role, f"{min(other)} is not as published; publish it when the new keys are in force")
        require_message(role, {f"{release.signed.version}.{role}.json": data})
        return release.signed.version, data

    def _judge_release(
        self, state: _State, role: str, metadata: bytes, manifest: bytes | None, now: datetime
    ) -> Metadata[Targets] | None:
        """Return what is offered, which may be taken; None: it is here already. Errors as `accept_release`."""
        offered = parse(Targets, metadata, role)
        require_signatures(state.targets.signed, role, offered)
        require_fresh(role, offered, now)
        if state.releases_data.get(role) == metadata:
            return None
        recorded = state.snapshot.signed.meta.get(f"{role}.json")
        current = recorded.version if recorded is not None else 0
        if offered.signed.version != current + 1:
            raise VersionConflict(role, current, offered.signed.version)
        self._check_release(state, role, offered.signed, manifest)
        require_message(role, {f"{offered.signed.version}.{role}.json": metadata})
        return offered

    def _check_release(self, state: _State, role: str, offered: Targets, manifest: bytes | None) -> None:
        check_releases(role, offered, state.targets.signed)
        before = state.releases[role].signed.targets if role in state.releases else {}
        added = {path for path in offered.targets if path not in before}
        if any(target != before[path] for path, target in offered.targets.items() if path in before):
            raise MetadataRefused(role, "a release that is published never changes; give the new content a new version")
        if manifest is None:
            if added:
                raise MetadataRefused(role, f"the bundle.json of {min(added)} was not sent with it")
            return
        parsed = parse_manifest(manifest)
        if added != {parsed.target}:
            raise MetadataRefused(role, f"it must add {parsed.target} and nothing else")
        target = offered.targets[parsed.target]
        try:
            target.verify_length_and_hashes(manifest)
        except LengthOrHashMismatchError as error:
            raise MetadataRefused(role, f"the bundle.json that was sent is not the signed one ({error})") from error
        if target.custom != release_target(parsed, manifest).custom:
            raise MetadataRefused(role, "its release counter is not the manifest's")
        others = (describe(one, role).release for path, one in offered.targets.items() if path != parsed.target)
        if parsed.release <= max(others, default=0):
            raise MetadataRefused(role, f"release {parsed.release} is not above those before it")

    # -- disk --------------------------------------------------------------------------------------------------------

    def _commit(
        self,
        files: dict[str, bytes],
        meta: Mapping[str, MetaFile],
        root: Root,
        now: datetime,
        *,
        renew_snapshot: bool = False,
    ) -> None:
        """Write `files`, a snapshot that names `meta` (if anything changed in it) and a new timestamp, all or none."""
        state = self._state
        files = dict(files)
        timestamp_version = 1 if state is None else state.timestamp.signed.version + 1
        if state is None or meta or renew_snapshot:
            known = {} if state is None else state.snapshot.signed.meta
            snapshot = Snapshot(
                version=1 if state is None else state.snapshot.signed.version + 1,
                expires=expiry(now, SNAPSHOT_LIFETIME),
                meta={**known, **meta},  # Nothing ever leaves it: clients take a missing entry for an attack.
            )
            snapshot_data = self._sign(root, Role.SNAPSHOT, Metadata(snapshot))
            files[f"{snapshot.version}.snapshot.json"] = snapshot_data
            require_message("snapshot", {f"{snapshot.version}.snapshot.json": snapshot_data})
            snapshot_meta = MetaFile.from_data(snapshot.version, snapshot_data, ["sha256"])
        else:
            snapshot_meta = state.timestamp.signed.snapshot_meta
        timestamp = Timestamp(
            version=timestamp_version, expires=expiry(now, TIMESTAMP_LIFETIME), snapshot_meta=snapshot_meta
        )
        files[TIMESTAMP_FILE] = self._sign(root, Role.TIMESTAMP, Metadata(timestamp))

        work = self._folder / f"{_INCOMING}{durable.TEMPORARY}"
        shutil.rmtree(work, ignore_errors=True)
        for name, data in files.items():
            durable.write(work / name, data)
        work.rename(self._folder / _INCOMING)
        durable.sync_folder(self._folder)
        self._finish_commit()
        self._state = self._load()

    def _settle(self) -> None:
        """Finish what an error of the disk cut short after its commit."""
        if (self._folder / _INCOMING).is_dir():
            self._finish_commit()
            self._state = self._load()

    def _finish_commit(self) -> None:
        """Move what is committed into place; what is not committed is forgotten."""
        shutil.rmtree(self._folder / f"{_INCOMING}{durable.TEMPORARY}", ignore_errors=True)
        incoming = self._folder / _INCOMING
        if not incoming.is_dir():
            return
        names = sorted((path.name for path in incoming.iterdir()), key=lambda name: (name == TIMESTAMP_FILE, name))
        for name in names:
            if not name.endswith(durable.TEMPORARY):
                (incoming / name).replace(self._folder / name)
                durable.sync_folder(self._folder)  # The timestamp must not be durable before what it leads to.
        shutil.rmtree(incoming)
        durable.sync_folder(self._folder)

    def _load(self) -> _State | None:
        if not (self._folder / TIMESTAMP_FILE).is_file():
            return None
        timestamp_data = self._read(TIMESTAMP_FILE)
        timestamp = parse(Timestamp, timestamp_data, Timestamp.type)
        snapshot_data = self._read(f"{timestamp.signed.snapshot_meta.version}.snapshot.json")
        snapshot = parse(Snapshot, snapshot_data, Snapshot.type)
        meta = snapshot.signed.meta
        targets_data = self._read(f"{meta['targets.json'].version}.targets.json")
        targets = parse(Targets, targets_data, Targets.type)
        roles = [role for role in _delegated(targets.signed) if f"{role}.json" in meta]
        releases_data = {role: self._read(f"{meta[f'{role}.json'].version}.{role}.json") for role in roles}
        versions = sorted(int(path.name.split(".")[0]) for path in self._folder.glob("[1-9]*.root.json"))
        roots = tuple(self._read(f"{version}.root.json") for version in versions)
        if not roots or versions != list(range(versions[0], versions[-1] + 1)):
            raise MetadataRefused(Root.type, f"{self._folder} lacks a root version; restore it from a backup")
        return _State(
            roots=roots,
            root=parse(Root, roots[-1], Root.type),
            targets_data=targets_data,
            targets=targets,
            snapshot_data=snapshot_data,
            snapshot=snapshot,
            timestamp_data=timestamp_data,
            timestamp=timestamp,
            releases_data=releases_data,
            releases={role: parse(Targets, data, role) for role, data in releases_data.items()},
            keys=self._read(_keys_file(targets.signed)),
        )

    def _read(self, name: str) -> bytes:
        try:
            return (self._folder / name).read_bytes()
        except OSError as error:
            raise MetadataRefused(
                name, f"it cannot be read from {self._folder} ({error}); restore the folder from a backup"
            ) from error

    def _ready(self) -> _State:
        state = self._state
        if state is None:
            raise RepositoryEmpty(self._folder)
        return state

    def _signer(self, role: Role, keyids: Collection[str]) -> CryptoSigner:
        """Return the signer of this role that `keyids` name, of those in use and those that come next."""
        path = self._keys_folder / f"{role.value}.pem"
        following = self._keys_folder / NEXT_FOLDER / path.name
        if following.is_file() and load_key(following, self._passphrase).keyid in keyids:
            return load_signer(following, self._passphrase)
        return load_signer(path, self._passphrase)

    def _assignment_signer(self) -> CryptoSigner:
        return self._signer(Role.ASSIGNMENT, assignments.parse_keys(self._ready().keys).keys)

    def _holds(self, role: Role, keyids: Collection[str]) -> bool:
        return self._signer(role, keyids).public_key.keyid in keyids

    def _promote(self) -> None:
        """Let the next online keys take the place of those before, once what is in force names them."""
        state, folder = self._state, self._keys_folder / NEXT_FOLDER
        if state is None or not folder.is_dir():
            return
        named = {role: state.root.signed.roles[role.value].keyids for role in (Role.SNAPSHOT, Role.TIMESTAMP)}
        named[Role.ASSIGNMENT] = list(assignments.parse_keys(state.keys).keys)
        for role, keyids in named.items():
            path = folder / f"{role.value}.pem"
            if path.is_file() and load_key(path, self._passphrase).keyid in keyids:
                # The public half first: a private key without its public half is whole, the other way round is not.
                target = self._keys_folder / path.name
                target.with_suffix(".pub").unlink(missing_ok=True)
                path.replace(target)
                durable.sync_folder(self._keys_folder)
                path.with_suffix(".pub").replace(target.with_suffix(".pub"))
                durable.sync_folder(self._keys_folder)
                durable.sync_folder(folder)
        if not any(folder.iterdir()):
            folder.rmdir()
            durable.sync_folder(self._keys_folder)

    def _sign(self, root: Root, role: Role, metadata: Metadata[S]) -> bytes:
        metadata.sign(self._signer(role, root.roles[role.value].keyids))
        require_signatures(root, role.value, metadata)
        return metadata.to_bytes()


def _delegated(targets: Targets) -> list[str]:
    delegations = targets.delegations
    return list(delegations.roles or {}) if delegations is not None else []


def _keys_file(targets: Targets) -> str:
    return f"{targets.targets[KEYS_TARGET].hashes['sha256']}.{KEYS_ROLE}.json"


def _require_roots(roots: tuple[bytes, ...]) -> None:
    if len(roots) > ROOTS_MAX:
        raise MetadataRefused(Root.type, f"there are more than {ROOTS_MAX} versions; provision devices anew")
    require_message(Root.type, {f"{index}.root.json": root for index, root in enumerate(roots)})


def _is_signed(delegator: Targets, role: str, metadata: Metadata[Targets]) -> bool:
    try:
        require_signatures(delegator, role, metadata)
    except ThresholdNotMet:
        return False
    return True


def _is_stale(root: Root, metadata: Metadata[S], lifetime: timedelta, now: datetime) -> bool:
    """Return whether half of the life of `metadata` is over, or `root` would not accept its signature."""
    try:
        require_signatures(root, metadata.signed.type, metadata)
    except ThresholdNotMet:
        return True
    return metadata.signed.expires - now.astimezone(UTC) < lifetime / 2
