"""What an attacker makes with the keys that he has: TUF metadata by python-tuf, assignments by securesystemslib.

He starts from what everybody hears on the broker, the current trust messages, and changes what he likes; what he has no
key for he signs with a key of his own, or leaves as it was recorded.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from datetime import datetime, timedelta
from pathlib import Path

from securesystemslib.signer import CryptoSigner, Signer
from tuf.api.metadata import Metadata, MetaFile, Snapshot, TargetFile, Targets, Timestamp

from harness.fleet_of_one import Works, now
from muster_controller.registry.keys import load_signer
from muster_shared.ids import ModelName
from muster_shared.messages import TrustFiles

DAY = timedelta(days=1)
Messages = Sequence[TrustFiles]


def online_key(works: Works, role: str) -> Signer:
    """Return the key that lies on the controller's disk: snapshot, timestamp or assignment."""
    return load_signer(works.folder / "controller/keys" / f"{role}.pem")


def offline_keys(works: Works, role: str, count: int) -> list[Signer]:
    """Return keys of that many holders of an offline role."""
    folder: Path = works.folder / "operator/keys"
    return [load_signer(folder / f"{role}-{holder}.pem") for holder in range(1, count + 1)]


def own_keys(count: int = 1) -> list[Signer]:
    return [CryptoSigner.generate_ed25519() for _ in range(count)]


def recorded(works: Works) -> Messages:
    """Return what is published now, as somebody records it for later."""
    return works.repository.trust_messages()


def text_of(messages: Messages, role: str) -> str:
    """Return the text of the only, or newest, file of `role`."""
    files = next(message.files for message in messages if message.role == role)
    return files[max(files)]


def replaced(messages: Messages, *changes: TrustFiles) -> tuple[TrustFiles, ...]:
    """Return `messages` with those of the roles in `changes` replaced, or added, at their place in the order."""
    by_role = {change.role: change for change in changes}
    kept = tuple(by_role.pop(message.role, message) for message in messages)
    return (*by_role.values(), *kept)


def release_role(
    messages: Messages, model: ModelName, adds: Mapping[str, bytes], signers: Sequence[Signer], *, skip: int = 1
) -> TrustFiles:
    """Return the next version of a model's release role, with targets more, signed by whoever signs.

    Args:
        adds: Manifest bytes by target path.
        skip: By how much the version rises.
    """
    role = f"release-{model}"
    if any(message.role == role for message in messages):
        targets = Metadata[Targets].from_bytes(text_of(messages, role).encode()).signed
        targets.version += skip
    else:
        targets = Targets(version=skip, expires=now() + 30 * DAY)
    for path, raw in adds.items():
        targets.targets[path] = TargetFile.from_data(path, raw, ["sha256"])
    return _file(role, Metadata(targets), signers)


def expiring_role(messages: Messages, model: ModelName, signers: Sequence[Signer], expires: datetime) -> TrustFiles:
    """Return the next version of a release role with the same targets and another date."""
    role = f"release-{model}"
    targets = Metadata[Targets].from_bytes(text_of(messages, role).encode()).signed
    targets.version += 1
    targets.expires = expires.replace(microsecond=0)
    return _file(role, Metadata(targets), signers)


def chain(
    messages: Messages,
    *changes: TrustFiles,
    snapshot: Signer | None,
    timestamp: Signer,
    ahead: int = 1,
    snapshot_expires: datetime | None = None,
    timestamp_expires: datetime | None = None,
) -> tuple[TrustFiles, ...]:
    """Return the messages with `changes`, under a snapshot and a timestamp that name them.

    Args:
        snapshot: None: the snapshot stays as it is, and only the timestamp is newer.
        ahead: By how much the versions of both rise.
    """
    messages = replaced(messages, *changes)
    named = Metadata[Snapshot].from_bytes(text_of(messages, "snapshot").encode())
    snapshot_text = text_of(messages, "snapshot")
    if snapshot is not None:
        named.signed.version += ahead
        named.signed.expires = (snapshot_expires or now() + 30 * DAY).replace(microsecond=0)
        for change in changes:
            data = text_of((change,), change.role).encode()
            version = Metadata[Targets].from_bytes(data).signed.version
            named.signed.meta[f"{change.role}.json"] = MetaFile.from_data(version, data, ["sha256"])
        snapshot_text = _file("snapshot", Metadata(named.signed), [snapshot]).files[
            f"{named.signed.version}.snapshot.json"
        ]
    stamp = Metadata[Timestamp].from_bytes(text_of(messages, "timestamp").encode())
    stamp.signed.version += ahead
    stamp.signed.expires = (timestamp_expires or now() + DAY).replace(microsecond=0)
    stamp.signed.snapshot_meta = MetaFile.from_data(named.signed.version, snapshot_text.encode(), ["sha256"])
    return replaced(
        messages,
        TrustFiles(role="snapshot", files={f"{named.signed.version}.snapshot.json": snapshot_text}),
        _file("timestamp", Metadata(stamp.signed), [timestamp]),
    )


def rooted(messages: Messages, signers: Sequence[Signer], own: Signer) -> TrustFiles:
    """Return the root's message with one version more, in which every role is `own`, signed by `signers` and `own`."""
    files = dict(next(message.files for message in messages if message.role == "root"))
    newest = max(files, key=lambda name: int(name.split(".")[0]))
    root = deepcopy(Metadata.from_bytes(files[newest].encode()).signed)
    root.version += 1
    for role in ("root", "targets", "snapshot", "timestamp"):
        for keyid in list(root.roles[role].keyids):
            root.revoke_key(keyid, role)
        root.add_key(own.public_key, role)
        root.roles[role].threshold = 1
    signed = Metadata(root)
    for signer in (*signers, own):
        signed.sign(signer, append=True)
    return TrustFiles(role="root", files={**files, f"{root.version}.root.json": signed.to_bytes().decode()})


def own_targets(messages: Messages, model: ModelName, own: Signer) -> TrustFiles:
    """Return the next version of the targets, in which `own` alone signs the releases of `model`; signed by `own`."""
    targets = Metadata[Targets].from_bytes(text_of(messages, "targets").encode()).signed
    targets.version += 1
    role = f"release-{model}"
    assert targets.delegations is not None
    assert targets.delegations.roles is not None
    for keyid in list(targets.delegations.roles[role].keyids):
        targets.revoke_key(keyid, role)
    targets.add_key(own.public_key, role)
    targets.delegations.roles[role].threshold = 1
    return _file("targets", Metadata(targets), [own])


def _file(role: str, metadata: Metadata, signers: Sequence[Signer]) -> TrustFiles:  # type: ignore[type-arg]  # Any role.
    for signer in signers:
        metadata.sign(signer, append=True)
    name = "timestamp.json" if role == "timestamp" else f"{metadata.signed.version}.{role}.json"
    return TrustFiles(role=role, files={name: metadata.to_bytes().decode()})
