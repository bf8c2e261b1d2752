"""Which of two releases a request goes to: a share of the requests to a candidate, the same key always to the same one.

    hash(release, key) in 0..1   ──  < share ──> candidate
                                  └─ else ─────> primary

Pure: randomness for requests without a key is an argument. A larger share keeps everybody who was in the smaller one;
another candidate draws anew, so that it is not always the same keys that try what is new.
"""

import hashlib
from collections.abc import Callable
from enum import Enum

import msgspec

from muster_shared.ids import Sha256


class Mode(Enum):
    """What a candidate does beside the release that serves."""

    CANARY = "canary"  # It answers its share.
    SHADOW = "shadow"  # It is asked its share too, and its answers are compared and dropped.


class Split(msgspec.Struct, frozen=True):
    """A candidate and its share of the requests, 0..1."""

    mode: Mode
    candidate: Sha256
    """The digest of its manifest."""
    share: float


def chosen(split: Split, key: str, draw: Callable[[], float]) -> bool:
    """Whether the request with this key (empty: none) goes to the candidate.

    Args:
        draw: Returns a uniform number in [0, 1); asked only without a key.
    """
    if split.share <= 0.0:
        return False
    return (position(split.candidate, key) if key else draw()) < split.share


def position(candidate: Sha256, key: str) -> float:
    """Return where `key` stands in [0, 1) for this candidate: the first 53 bits of a BLAKE2b digest."""
    digest = hashlib.blake2b(f"{candidate}\0{key}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return float(int.from_bytes(digest) >> 11) / (1 << 53)
