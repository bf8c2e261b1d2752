"""The audit log as a file: JSON Lines, each as its hash covers it, and a checkpoint of the head at the end.

    {"audit":"muster","format":1,"fleet":"plant","after":{"ordinal":0,"hash":""}}
    {"action":"rollout.created","actor":"anna","at":1795000000.5,"detail":"…","hash":"…","ordinal":1, …}
    {"checkpoint":{"at":…,"fleet":"plant","hash":"…","key":"…","ordinal":1,"signature":"…"}}

Reading trusts nothing: a line that is not byte for byte what would be written here is garbled, so that no reader can
see another text than the one that was hashed.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import msgspec

from muster_controller.audit.chain import BEGIN, Anchor, Ended, Garbled, Item, Stored
from muster_controller.audit.checkpoint import Checkpoint, CheckpointInvalid, check
from muster_shared.errors import MusterError
from muster_shared.undecodable import UNDECODABLE

LINE_BYTES_MAX = 128 * 1024
FORMAT = 1
MEDIA_TYPE = "application/x-ndjson"


class ExportInvalid(MusterError):
    """A file that is no export of an audit log."""


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    audit: str
    format: int
    fleet: str
    after: Anchor


class Footer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    checkpoint: Checkpoint


@dataclass
class Exported:
    """An export that is read. `checkpoint` and `why_unsigned` are known when `items` is at its end."""

    header: Header
    items: Iterator[Item]
    checkpoint: Checkpoint | None = None
    why_unsigned: str = "there is no checkpoint at the end"


def header(fleet: str, after: Anchor = BEGIN) -> bytes:
    return _json(Header(audit="muster", format=FORMAT, fleet=fleet, after=after))


def row(stored: Stored) -> bytes:
    return _json(stored)


def footer(checkpoint: Checkpoint) -> bytes:
    return _json(Footer(checkpoint=checkpoint))


def read(lines: Iterable[bytes]) -> Exported:
    """Read an export.

    Args:
        lines: As a binary file gives them; a longer one than LINE_BYTES_MAX may come in pieces.
    Raises:
        ExportInvalid: the first line is not that of an export.
    """
    rest = iter(lines)
    first = next(rest, b"")
    try:
        found = msgspec.json.decode(first[:LINE_BYTES_MAX], type=Header)
    except UNDECODABLE as error:
        raise ExportInvalid(
            f"this is no export of an audit log; `muster audit export` writes them ({error})"
        ) from error
    if found.format != FORMAT:
        raise ExportInvalid(f"this export has the format {found.format}, which a newer controller can read")
    exported = Exported(found, iter(()))
    exported.items = _items(rest, exported)
    return exported


def _items(lines: Iterator[bytes], exported: Exported) -> Iterator[Item]:
    ended: Ended | None = None
    for number, raw in enumerate(lines, 2):
        if ended is not None:
            yield Garbled(f"line {number} of the file stands behind the checkpoint")
            continue
        try:
            yield _stored(raw)
            continue
        except UNDECODABLE as error:
            said = str(error)
        checkpoint = _checkpoint(raw)
        if checkpoint is None:
            yield Garbled(f"line {number} of the file is not as it was written ({said})")
            continue
        ended = Ended(checkpoint.anchor)
        exported.checkpoint = checkpoint
        exported.why_unsigned = ""
        try:
            if checkpoint.is_signed:
                check(checkpoint)
            else:
                exported.why_unsigned = "nobody signed the checkpoint at the end"
        except CheckpointInvalid as error:
            exported.why_unsigned = str(error)
            yield Garbled(str(error))
    yield ended or Ended(None)


def _stored(raw: bytes) -> Stored:
    if len(raw) > LINE_BYTES_MAX:
        raise msgspec.ValidationError("it is too long")
    stored = msgspec.json.decode(raw, type=Stored)
    if _json(stored) != raw:
        raise msgspec.ValidationError("it is written in another way")
    return stored


def _checkpoint(raw: bytes) -> Checkpoint | None:
    try:
        return msgspec.json.decode(raw[:LINE_BYTES_MAX], type=Footer).checkpoint
    except UNDECODABLE:
        return None


def _json(value: object) -> bytes:
    return msgspec.json.encode(value, order="sorted") + b"\n"
