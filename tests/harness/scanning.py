"""Looking for what must not travel, in every message that was heard: as it is, in base64, and inside of sealed windows.

What is looked for is told by whoever scans. Nothing here knows which topics there are, but for those of windows.
"""

import base64
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

import msgspec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from harness.listening import Message
from muster_shared.messages import decode
from muster_shared.metrics import Sealed

PIECE = 24
"""Bytes of what is looked for that are taken for more than chance ..."""
VARIED = 6
"""... if so many of them differ: zeros, spaces and margins are everybody's."""
ENVELOPE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)


class Sought(Protocol):
    """What a scan looks for."""

    def within(self, view: bytes) -> Iterable[str]:
        """Return what of it is in `view`, by name; upper and lower case are the same."""
        ...


class Needles:
    """A few secrets, each looked for as a whole, however short."""

    def __init__(self, needles: Mapping[str, bytes]) -> None:
        self._needles = {name: needle.lower() for name, needle in needles.items()}

    def within(self, view: bytes) -> list[str]:
        text = view.lower()
        return [name for name, needle in self._needles.items() if needle in text]


class Pieces:
    """Many long contents: any run of 2 * PIECE - 1 bytes of one is found, unless it is as good as blank."""

    def __init__(self, contents: Iterable[tuple[str, bytes]], said_anyway: Iterable[bytes] = ()) -> None:
        """
        Args:
            contents: with a name for each.
            said_anyway: what is in messages and comes from nobody, such as numbers in a row.
        """
        self._names: dict[bytes, str] = {}
        innocent = b"\n".join(said_anyway).lower()
        for name, content in contents:
            text = content.lower()
            for begin in range(0, len(text) - PIECE + 1, PIECE):
                piece = text[begin : begin + PIECE]
                if len(set(piece)) >= VARIED and piece not in innocent:
                    self._names.setdefault(piece, name)

    def __len__(self) -> int:
        return len(self._names)

    def within(self, view: bytes) -> list[str]:
        text = view.lower()
        runs = {text[begin : begin + PIECE] for begin in range(len(text) - PIECE + 1)}
        return sorted({self._names[run] for run in runs & self._names.keys()})


class Pattern:
    """Whatever looks like something."""

    def __init__(self, name: str, pattern: bytes) -> None:
        self._name = name
        self._pattern = re.compile(pattern)

    def within(self, view: bytes) -> list[str]:
        return [f"{self._name} {each.group()!r}" for each in self._pattern.finditer(view)]


def found(messages: Iterable[Message], *sought: Sought) -> list[str]:
    """Return what is in which topics, payloads or properties, as it is or in base64: `<topic>: <what>`."""
    hits: list[str] = []
    seen: set[bytes] = set()
    for each in messages:
        for view in views(each):
            if view not in seen:
                seen.add(view)
                hits += [f"{each.topic}: {name}" for one in sought for name in one.within(view)]
    return hits


def views(message: Message) -> Iterator[bytes]:
    """Yield what is readable of a message: all of it, and what its runs of base64 hold, wherever they begin."""
    for part in (message.topic.encode(), message.payload, message.properties):
        yield part
        for run in set(re.findall(rb"[A-Za-z0-9+/_-]{6,}", part)):
            if re.fullmatch(rb"[0-9a-f]+", run):  # Hashes: a needle in hex is looked for as it is.
                continue
            for begin in range(4):
                text = run[begin:].replace(b"-", b"+").replace(b"_", b"/")
                text += b"A" if len(text) % 4 == 1 else b""
                yield base64.b64decode(text + b"=" * (-len(text) % 4))


def opened(keys: Mapping[str, X25519PrivateKey], message: Message) -> Message:
    """Return the plain text of a sealed window, by code that shares nothing with ours."""
    sealed = decode(message.payload, Sealed)
    assert msgspec.json.encode(sealed) == message.payload, "an envelope holds a key's id and a box"
    plain = ENVELOPE.decrypt(sealed.box, keys[sealed.key], b"muster metrics window v1")
    return Message(f"{message.topic} opened", plain, message.properties)
