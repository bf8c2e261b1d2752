"""A key ceremony, step by step: join, sign, finish. Each holder is on a machine of his own.

    begin ──> keys are awaited ──(join, by each holder)──> to be signed ──(sign, by each holder)──> signed ──> finish

The ceremony file goes from one to the next; a private key never leaves its holder's folder, and no step needs two
holders' keys. A folder is an operator's (`operator`): `keys/` with what its owner holds, `metadata/` with what he knows
to be in force, against which every step checks the file. What a holder reads before he signs is `ceremony_words`.
"""

from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from pathlib import Path

import msgspec
from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Targets

from muster_controller.registry import durable
from muster_controller.registry.ceremony_begin import FORMER_FOLDER, key_roles
from muster_controller.registry.ceremony_draft import draft
from muster_controller.registry.ceremony_file import (
    Ceremony,
    HolderKey,
    awaited,
    open_parts,
    open_trust,
    proof_payload,
    public_key,
)
from muster_controller.registry.errors import CeremonyRefused, ThresholdNotMet
from muster_controller.registry.keys import (
    PRIVATE_SUFFIX,
    PUBLIC_SUFFIX,
    KeyFile,
    Passphrase,
    create_key,
    list_keys,
    load_key,
    load_signer,
    passphrase_from_environment,
    write_public,
)
from muster_controller.registry.metadata import (
    S,
    check_releases,
    parse,
    require_fresh,
    require_keys_target,
    require_signatures,
)
from muster_controller.registry.operator import (
    KEYS_FOLDER,
    METADATA_FOLDER,
    add_signature,
    keys_path,
    load_offline,
    newest,
)


class Stage(Enum):
    JOINING = "joining"
    SIGNING = "signing"
    SIGNED = "signed"


@dataclass(frozen=True)
class Need:
    """Whose signatures one part needs. A root has two: the root before it and itself."""

    part: str
    version: int
    by: str
    """In whose name: `root 2`, `targets 5`."""
    have: tuple[str, ...]
    """Key ids that have signed."""
    lack: tuple[str, ...]
    """Key ids that may still sign."""
    threshold: int

    @property
    def is_met(self) -> bool:
        return len(self.have) >= self.threshold


# -- the steps of a holder ---------------------------------------------------------------------------------------------


def stage(ceremony: Ceremony) -> Stage:
    if awaited(ceremony) or not ceremony.parts:
        return Stage.JOINING
    return Stage.SIGNED if all(need.is_met for need in needs(ceremony)) else Stage.SIGNING


def join(
    ceremony: Ceremony,
    folder: Path,
    holder: str,
    now: datetime,
    *,
    passphrase: Passphrase = passphrase_from_environment,
) -> tuple[Ceremony, tuple[KeyFile, ...]]:
    """Make the keys that `holder` is asked for, in his own folder, and put their public halves into the ceremony.

    A key that is there already (the file was lost after it was made) is taken as it is. When the last one has joined,
    what is to be signed is drafted.

    Raises:
        CeremonyRefused: no key of this holder is awaited, or the folder knows another root than the ceremony.
    """
    require_known(ceremony, folder)
    mine = [name for name in awaited(ceremony) if name.endswith(f"-{holder}")]
    if not mine:
        waits = ", ".join(awaited(ceremony)) or "nobody"
        raise CeremonyRefused(f"no key of {holder!r} is awaited; the ceremony waits for {waits}")
    made: list[KeyFile] = []
    for name in mine:
        path = folder / KEYS_FOLDER / f"{name}{PRIVATE_SUFFIX}"
        key = load_key(path, passphrase) if path.is_file() else create_key(path.parent, name, passphrase(path))
        proof = load_signer(path, passphrase).sign(proof_payload(ceremony, name)).signature
        joined = HolderKey(name=name, keyid=key.keyid, key=key.public.to_dict(), proof=proof)
        ceremony = msgspec.structs.replace(ceremony, joined=(*ceremony.joined, joined))
        made.append(key)
    return (ceremony if awaited(ceremony) else draft(ceremony, now)), tuple(made)


def can_sign(ceremony: Ceremony, folder: Path, passphrase: Passphrase = passphrase_from_environment) -> list[KeyFile]:
    """Return the keys whose private half is in `folder` and whose signature is asked for and not there yet."""
    wanted = {keyid for need in needs(ceremony) for keyid in need.lack}
    keys = list_keys(folder / KEYS_FOLDER, passphrase)
    return [key for key in keys if key.is_private_here and key.keyid in wanted]


def sign(
    ceremony: Ceremony, folder: Path, *, passphrase: Passphrase = passphrase_from_environment
) -> tuple[Ceremony, tuple[KeyFile, ...]]:
    """Add the signatures of the keys in `folder`. What they sign was shown before: `ceremony_words.explain`.

    Raises:
        CeremonyRefused: keys are still awaited, no key here is asked, the folder knows another root, or the file has
            another key under the name of one that is here.
    """
    waits = awaited(ceremony)
    if waits:
        raise CeremonyRefused(f"nothing can be signed before {', '.join(waits)} joined: `muster key ceremony join`")
    require_known(ceremony, folder)
    mine = {key.name: key.keyid for key in list_keys(folder / KEYS_FOLDER, passphrase) if key.is_private_here}
    for each in ceremony.joined:
        if mine.get(each.name, each.keyid) != each.keyid:
            raise CeremonyRefused(
                f"the file has another key as {each.name} than the one here: it was exchanged on the way. Sign "
                "nothing, and begin the ceremony anew with a file that comes from its holders"
            )
    keys = can_sign(ceremony, folder, passphrase)
    if not keys:
        done = {keyid for need in needs(ceremony) for keyid in need.have} & set(mine.values())
        raise CeremonyRefused(
            "the keys here have signed already; take the file to the next holder"
            if done
            else f"no key in {folder / KEYS_FOLDER} is asked to sign; `muster key ceremony status` says whose are"
        )
    for key in keys:
        ceremony = _signed_by(ceremony, load_signer(key.path, passphrase))
    return ceremony, tuple(keys)


def needs(ceremony: Ceremony) -> tuple[Need, ...]:
    """Return whose signatures the parts need and have. Raises MetadataRefused, CeremonyRefused."""
    before, after = open_trust(ceremony), open_parts(ceremony)
    root, targets = after.root or before.root, after.targets or before.targets
    found: list[Need] = []
    if after.root is not None:
        judges = [each for each in (before.root, after.root) if each is not None]
        found += [_need(judge.signed, Root.type, after.root) for judge in judges]
    if after.targets is not None and root is not None:
        found.append(_need(root.signed, Targets.type, after.targets))
    if targets is not None:
        found += [_need(targets.signed, role, release) for role, release in after.releases.items()]
    return tuple(found)


def require_known(ceremony: Ceremony, folder: Path) -> None:
    """Raise CeremonyRefused unless the ceremony starts from the root that `folder` knows, or one that it signed."""
    raw = newest(folder, Root.type)
    if raw is None:
        return
    known = parse(Root, raw, Root.type)
    before, after = open_trust(ceremony).root, open_parts(ceremony).root
    for each in (before, after):
        if each is not None and each.signed_bytes == known.signed_bytes:
            return
    advice = "compare the digests aloud, and sign nothing until you know why"
    if before is None or before.signed.version <= known.signed.version:
        version = before.signed.version if before is not None else 0
        raise CeremonyRefused(
            f"{folder} knows root {known.signed.version} and the ceremony starts from "
            f"{f'another root {version}' if version else 'nothing'}; {advice}"
        )
    try:
        require_signatures(known.signed, Root.type, before)
    except ThresholdNotMet as error:
        raise CeremonyRefused(
            f"the ceremony starts from root {before.signed.version}, which the keys of root {known.signed.version} "
            f"that {folder} knows did not sign; finish the ceremonies between them here first, or {advice}"
        ) from error


# -- finish ------------------------------------------------------------------------------------------------------------


def finish(ceremony: Ceremony, folder: Path, now: datetime) -> tuple[Path, ...]:
    """Verify everything, write the metadata into `folder`, and return the files that it wrote. Again does no harm.

    Raises:
        ThresholdNotMet: signatures are lacking.
        CeremonyRefused: the folder knows another root, or has another file of one of these versions.
        MetadataRefused: it has run out meanwhile.
    """
    waits = awaited(ceremony)
    if waits:
        raise CeremonyRefused(f"{', '.join(waits)} did not join yet: `muster key ceremony join` on their machines")
    require_known(ceremony, folder)
    _require_sound(ceremony, now)
    files = _files(ceremony, folder)
    for path, raw in files.items():
        if path.is_file() and path.read_bytes() != raw and not _says_the_same(path.read_bytes(), raw):
            raise CeremonyRefused(
                f"{path} is there and says something else: two ceremonies made one version; repeat one"
            )
    for each in ceremony.joined:
        write_public(folder / KEYS_FOLDER, each.name, public_key(ceremony, each))
    written = tuple(path for path in files if not path.is_file())
    for path in written:
        durable.write(path, files[path])
    load_offline(folder)
    _retire(ceremony, folder)
    return written


def _files(ceremony: Ceremony, folder: Path) -> dict[Path, bytes]:
    """Return every file that says what is in force after the ceremony, in the order in which others may need them."""
    before, after = open_trust(ceremony), open_parts(ceremony)
    root, targets = after.root or before.root, after.targets or before.targets
    if root is None or targets is None:
        raise CeremonyRefused("the file lacks root or targets; take a copy from another holder")
    texts = {Root.type: ceremony.trust.root, Targets.type: ceremony.trust.targets, **ceremony.trust.releases}
    texts |= ceremony.parts
    files = {keys_path(folder, targets.signed.version): (ceremony.keys or ceremony.trust.keys).encode()}
    for role, release in {**before.releases, **after.releases}.items():
        files[folder / METADATA_FOLDER / f"{release.signed.version}.{role}.json"] = texts[role].encode()
    for role, version in ((Targets.type, targets.signed.version), (Root.type, root.signed.version)):
        files[folder / METADATA_FOLDER / f"{version}.{role}.json"] = texts[role].encode()
    return files


def _require_sound(ceremony: Ceremony, now: datetime) -> None:
    """Raise unless everything that follows is signed, fresh, and follows what is in force."""
    before, after = open_trust(ceremony), open_parts(ceremony)
    for need in needs(ceremony):
        if not need.is_met:
            raise ThresholdNotMet(need.part, len(need.have), need.threshold)
    root, targets = after.root or before.root, after.targets or before.targets
    if root is None or targets is None:
        raise CeremonyRefused("the file lacks root or targets; take a copy from another holder")
    require_signatures(root.signed, Targets.type, targets)
    require_keys_target(targets.signed, (ceremony.keys or ceremony.trust.keys).encode())
    for role, release in {**before.releases, **after.releases}.items():
        require_signatures(targets.signed, role, release)
        check_releases(role, release.signed, targets.signed)
    if after.root is not None:
        require_fresh(Root.type, after.root, now)
        require_next(Root.type, before.root.signed if before.root is not None else None, after.root.signed)
    if after.targets is not None:
        require_fresh(Targets.type, after.targets, now)
        require_next(Targets.type, before.targets.signed if before.targets is not None else None, after.targets.signed)
    for role, release in after.releases.items():
        require_fresh(role, release, now)
        old = before.releases.get(role)
        require_next(role, old.signed if old is not None else None, release.signed)


def require_next(role: str, before: Root | Targets | None, after: Root | Targets) -> None:
    """Raise CeremonyRefused unless `after` is the next version."""
    expected = before.version + 1 if before is not None else 1
    if after.version != expected:
        raise CeremonyRefused(f"{role} {after.version} does not follow what is in force; begin the ceremony anew")


def _retire(ceremony: Ceremony, folder: Path) -> None:
    """Put away the public halves of keys that nobody names any more, so that they are not taken for keys in force."""
    keys = folder / KEYS_FOLDER
    kept = {keyid for change in ceremony.changes for keyid in change.keep}
    roles = key_roles(ceremony)
    gone = {
        keyid
        for change in ceremony.changes
        for keyid in (roles[change.role].keyids if change.role in roles else ())
        if keyid not in kept
    }
    for key in list_keys(keys):
        if key.keyid in gone and not key.is_private_here:
            durable.make_folder(keys / FORMER_FOLDER, 0o700)
            public = key.path.with_suffix(PUBLIC_SUFFIX)
            public.replace(keys / FORMER_FOLDER / public.name)


def _says_the_same(one: bytes, other: bytes) -> bool:
    """Whether two metadata files differ in their signatures alone."""
    try:
        first, second = (Metadata[Root].from_bytes(raw).signed_bytes for raw in (one, other))
    except RepositoryError:
        return False
    return first == second


def _need(delegator: Root | Targets, part: str, metadata: Metadata[S]) -> Need:
    try:
        result = delegator.get_verification_result(part, metadata.signed_bytes, metadata.signatures)
    except ValueError as error:
        raise CeremonyRefused(f"no role {part} is delegated; begin the ceremony anew") from error
    by = f"{delegator.type} {delegator.version}"
    return Need(part, metadata.signed.version, by, tuple(result.signed), tuple(result.unsigned), result.threshold)


def _signed_by(ceremony: Ceremony, signer: CryptoSigner) -> Ceremony:
    keyid = signer.public_key.keyid
    parts = dict(ceremony.parts)
    for part in {need.part for need in needs(ceremony) if keyid in need.lack}:
        parts[part] = add_signature(parts[part].encode(), signer).decode()
    return msgspec.structs.replace(ceremony, parts=parts)
