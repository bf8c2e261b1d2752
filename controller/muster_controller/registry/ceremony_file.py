"""The ceremony file: one JSON document that travels between the holders of keys, by stick or by mail.

It holds public things alone: what is trusted now, what is to change, the public keys of those who joined, and the
metadata with the signatures so far. Whoever carries it may damage it and nothing else: every step verifies it anew,
against what the holder's own folder knows.

Nothing is signed or drafted here.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

import msgspec
from securesystemslib.exceptions import Error as SecuresystemslibError
from securesystemslib.signer import Signature, SSlibKey
from tuf.api.metadata import Metadata, Root, Targets

from muster_controller.mixer_card import check_keys
from muster_controller.registry.errors import CeremonyRefused
from muster_controller.registry.metadata import check_releases, parse, require_keys_target, require_signatures
from muster_shared.assignment import parse_keys
from muster_shared.errors import WireError
from muster_shared.undecodable import UNDECODABLE, reason

FILE_BYTES_MAX = 4 * 1024 * 1024
WORD_MAX = 128
_PROOF = "muster key ceremony"


class Purpose(Enum):
    CREATE = "create"
    ROTATE = "rotate"
    RELEASE = "release"
    REVOKE = "revoke"


class Trust(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The metadata in force, exactly as it is published; empty where nothing is yet."""

    root: str = ""
    targets: str = ""
    keys: str = ""
    """The content of the target `keys/assignment.json`."""
    releases: dict[str, str] = {}
    """By role."""


class Change(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What becomes of the keys of one role. Roles that no change names stay as they are."""

    role: str
    threshold: int
    keep: tuple[str, ...] = ()
    """Ids of the keys that stay."""
    wanted: tuple[str, ...] = ()
    """Names of the keys that have to be made and join."""


class HolderKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The public half of a key that was made for this ceremony."""

    name: str
    keyid: str
    key: dict[str, object]
    proof: str
    """A signature by the key over the ceremony's id and the name (hex): its holder has the private half."""


class Ceremony(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The document. `parts` is empty while keys are awaited, and what has to be signed after it, by role."""

    v: Literal[1] = 1
    id: str
    purpose: Purpose
    begun_at: float
    trust: Trust = Trust()
    changes: tuple[Change, ...] = ()
    renew: tuple[str, ...] = ()
    """Roles that are signed anew although nothing changes but their dates."""
    online: str = ""
    """The controller's next public keys, as `encode_online_keys` writes them; empty: they stay."""
    keys: str = ""
    """What becomes the content of `keys/assignment.json`; empty: it stays."""
    mixers: dict[str, bytes] | None = None
    """X25519 keys to which devices are to seal their metrics, by `key_id`; None: they stay."""
    names: dict[str, str] = {}
    """Key ids to the names under which people know them. For reading alone."""
    joined: tuple[HolderKey, ...] = ()
    parts: dict[str, str] = {}


@dataclass(frozen=True)
class Opened:
    """The metadata of a trust or of what follows it, parsed."""

    root: Metadata[Root] | None = None
    targets: Metadata[Targets] | None = None
    releases: dict[str, Metadata[Targets]] = field(default_factory=dict)

    @property
    def roles(self) -> tuple[str, ...]:
        """The release roles that are delegated."""
        delegations = self.targets.signed.delegations if self.targets is not None else None
        return tuple(delegations.roles or {}) if delegations is not None else ()


def encode_ceremony(ceremony: Ceremony) -> bytes:
    return msgspec.json.format(msgspec.json.encode(ceremony), indent=1) + b"\n"


def parse_ceremony(raw: bytes) -> Ceremony:
    """Return the ceremony in `raw`: what it says is trusted verifies in itself, and its keys were proven.

    Raises:
        CeremonyRefused: it is damaged, or not a ceremony file of this version.
        MetadataRefused, ThresholdNotMet: the trust that it starts from does not hold.
    """
    if len(raw) > FILE_BYTES_MAX:
        raise CeremonyRefused(f"a ceremony file has at most {FILE_BYTES_MAX} bytes; bring the right file")
    try:
        ceremony = msgspec.json.decode(raw, type=Ceremony)
    except UNDECODABLE as error:
        raise CeremonyRefused(f"this is no ceremony file ({reason(error)}); take a copy from another holder") from error
    if not all(len(word) <= WORD_MAX and word.isprintable() for word in _words(ceremony)):
        raise CeremonyRefused("the file has a name that nobody can read aloud; take a copy from another holder")
    try:
        check_keys(ceremony.mixers or {})
    except WireError as error:
        raise CeremonyRefused(str(error)) from error
    open_trust(ceremony)
    for each in ceremony.joined:
        public_key(ceremony, each)
    return ceremony


def _words(ceremony: Ceremony) -> Iterator[str]:
    """Everything that is shown to people as it stands in the file: a terminal obeys what it cannot print."""
    yield ceremony.id
    yield from (*ceremony.renew, *ceremony.names, *ceremony.names.values(), *ceremony.parts, *ceremony.trust.releases)
    for change in ceremony.changes:
        yield from (change.role, *change.keep, *change.wanted)
    for joined in ceremony.joined:
        yield from (joined.name, joined.keyid)


def open_trust(ceremony: Ceremony) -> Opened:
    """Return the trust that the ceremony starts from, verified in itself. Raises MetadataRefused, ThresholdNotMet."""
    trust = ceremony.trust
    if not trust.root or not trust.targets:
        if ceremony.purpose is not Purpose.CREATE:
            raise CeremonyRefused("the file lacks the metadata in force; take a copy from another holder")
        return Opened()
    root = parse(Root, trust.root.encode(), Root.type)
    targets = parse(Targets, trust.targets.encode(), Targets.type)
    require_signatures(root.signed, Root.type, root)
    require_signatures(root.signed, Targets.type, targets)
    require_keys_target(targets.signed, trust.keys.encode())
    releases = {role: parse(Targets, text.encode(), role) for role, text in trust.releases.items()}
    for role, release in releases.items():
        require_signatures(targets.signed, role, release)
        check_releases(role, release.signed, targets.signed)
    return Opened(root, targets, releases)


def mixers_in_force(ceremony: Ceremony) -> dict[str, bytes]:
    """Return to which mixer keys devices seal now, by `key_id`. Raises CeremonyRefused."""
    if not ceremony.trust.keys:
        return {}
    try:
        return parse_keys(ceremony.trust.keys.encode()).mixers
    except WireError as error:
        raise CeremonyRefused(f"{error}; take a copy of the file from another holder") from error


def open_parts(ceremony: Ceremony) -> Opened:
    """Return what is to be signed, parsed. Raises MetadataRefused."""
    parts = ceremony.parts
    return Opened(
        parse(Root, parts[Root.type].encode(), Root.type) if Root.type in parts else None,
        parse(Targets, parts[Targets.type].encode(), Targets.type) if Targets.type in parts else None,
        {
            role: parse(Targets, text.encode(), role)
            for role, text in parts.items()
            if role not in (Root.type, Targets.type)
        },
    )


def proof_payload(ceremony: Ceremony, name: str) -> bytes:
    """Return what a joining key signs."""
    return f"{_PROOF}\n{ceremony.id}\n{name}\n".encode()


def public_key(ceremony: Ceremony, joined: HolderKey) -> SSlibKey:
    """Return the key of somebody who joined. Raises CeremonyRefused unless its private half was there."""
    try:
        key = SSlibKey.from_dict(joined.keyid, dict(joined.key))
        key.verify_signature(Signature(joined.keyid, joined.proof), proof_payload(ceremony, joined.name))
    except (SecuresystemslibError, ValueError, KeyError, TypeError) as error:
        raise CeremonyRefused(
            f"the key {joined.name} in the file is damaged or was exchanged; let its holder join anew"
        ) from error
    return key


def awaited(ceremony: Ceremony) -> tuple[str, ...]:
    """Return the names of the keys that still have to join."""
    there = {each.name for each in ceremony.joined}
    return tuple(name for change in ceremony.changes for name in change.wanted if name not in there)


def call(ceremony: Ceremony, keyid: str) -> str:
    """Return how to speak of a key: its name, where the file knows one, and the beginning of its id."""
    name = next((each.name for each in ceremony.joined if each.keyid == keyid), ceremony.names.get(keyid))
    return f"{name} ({keyid[:12]})" if name else f"the key {keyid[:12]}"
