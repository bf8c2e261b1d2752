"""One file on its way: which chunks are here, which to ask for, when to ask again.

    begin ─▶ Want(first window) ─▶ chunks … ─▶ Want(next window) ─▶ … ─▶ Complete
                    ▲     quiet for a while     │
                    └───────────────────────────┘

Chunks come by QoS 0 and serve every device that waits, so any may be lost, repeated or unasked for; asking again by
bitmap repairs all of it. Memory is bounded: at most `WINDOW_CHUNKS` are outstanding and none is kept.
Pure: `conductor.py` writes the bytes and publishes the wants.
"""

from dataclasses import dataclass, replace
from enum import Enum

from muster_shared.bundle import BundleFile, digest
from muster_shared.ids import Sha256

WINDOW_CHUNKS = 128
QUIET_S = 1.0
QUIET_S_MAX = 30.0
BAD_CHUNKS_MAX = 16  # A line that corrupts is repaired by asking again; a source that lies is given up.


@dataclass(frozen=True)
class Transfer:
    """What is known of one file. Without `file.chunks` (a manifest) a chunk is checked only with the whole."""

    file: BundleFile
    have: int = 0
    """Bit i set: chunk i is written."""
    window: int = 0
    """The chunks asked for and not yet here."""
    quiet_until: float = 0.0
    stalls: int = 0
    bad_chunks: int = 0

    @property
    def count(self) -> int:
        return -(-self.file.length // self.file.chunk_bytes)

    @property
    def complete(self) -> bool:
        return self.have == (1 << self.count) - 1

    @property
    def bytes_here(self) -> int:
        """Bytes written, to within the last chunk."""
        return min(self.have.bit_count() * self.file.chunk_bytes, self.file.length)


class Arrival(Enum):
    WRITE = "write"
    KNOWN = "known"
    CORRUPT = "corrupt"
    LYING = "lying"


@dataclass(frozen=True)
class Want:
    sha256: Sha256
    missing: tuple[int, ...]


def begin(file: BundleFile, have: tuple[int, ...], now: float) -> tuple[Transfer, Want | None]:
    """Return the transfer of `file`, of which the chunks `have` are already verified on disk, and what to ask for."""
    bits = 0
    for index in have:
        bits |= 1 << index
    return ask(Transfer(file, bits), now)


def arrive(transfer: Transfer, index: int, chunk: bytes, now: float) -> tuple[Transfer, Arrival]:
    """Return the transfer after chunk `index` (bytes as received, untrusted) and what to do with the bytes."""
    if index >= transfer.count or transfer.have >> index & 1:
        return transfer, Arrival.KNOWN
    file = transfer.file
    length = min(file.chunk_bytes, file.length - index * file.chunk_bytes)
    if len(chunk) != length or (file.chunks and digest(chunk) != file.chunks[index]):
        bad = transfer.bad_chunks + 1
        return replace(transfer, bad_chunks=bad, stalls=0), Arrival.LYING if bad >= BAD_CHUNKS_MAX else Arrival.CORRUPT
    return (
        replace(
            transfer,
            have=transfer.have | 1 << index,
            window=transfer.window & ~(1 << index),
            quiet_until=now + QUIET_S,
            stalls=0,
        ),
        Arrival.WRITE,
    )


def ask(transfer: Transfer, now: float) -> tuple[Transfer, Want | None]:
    """Return the transfer with the next window asked for, if it is time: the last is here, or quiet for too long."""
    if transfer.complete or (transfer.window and now < transfer.quiet_until):
        return transfer, None
    missing = _lowest_clear(transfer.have, transfer.count, WINDOW_CHUNKS)
    stalls = transfer.stalls + 1 if transfer.window else 0
    window = 0
    for index in missing:
        window |= 1 << index
    quiet_s = min(QUIET_S * 2 ** min(stalls, 10), QUIET_S_MAX)
    return (
        replace(transfer, window=window, quiet_until=now + quiet_s, stalls=stalls),
        Want(transfer.file.sha256, missing),
    )


def _lowest_clear(bits: int, count: int, most: int) -> tuple[int, ...]:
    clear = ~bits & ((1 << count) - 1)
    found: list[int] = []
    while clear and len(found) < most:
        low = clear & -clear
        found.append(low.bit_length() - 1)
        clear ^= low
    return tuple(found)
