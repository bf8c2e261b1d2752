"""The conductor's store without a disk. Bytes that many devices hold are kept once, by content.

Every device fetches and hashes its own copy; only then do equal copies become one object.
"""

import hashlib
from dataclasses import dataclass, field

from muster_agent.errors import StoreDamaged
from muster_shared.bundle import BundleFile, digest
from muster_shared.errors import FileTampered
from muster_shared.ids import Sha256
from muster_shared.messages import HostTelemetry


@dataclass
class _Pooled:
    content: bytes
    holders: int = 0


class Pool:
    """Pieces of files by digest, each kept as long as somebody holds it."""

    def __init__(self) -> None:
        self._pieces: dict[Sha256, _Pooled] = {}

    def hold(self, sha256: Sha256, content: bytes) -> bytes:
        """Return the one copy of `content`, whose digest is `sha256`; `release` it later."""
        pooled = self._pieces.setdefault(sha256, _Pooled(content))
        pooled.holders += 1
        return pooled.content

    def release(self, sha256: Sha256) -> None:
        pooled = self._pieces[sha256]
        pooled.holders -= 1
        if not pooled.holders:
            del self._pieces[sha256]

    @property
    def size_bytes(self) -> int:
        return sum(len(pooled.content) for pooled in self._pieces.values())


@dataclass
class _Pieces:
    """A file, whole or not: its pieces by position, each with the digest that it is pooled under."""

    held: dict[int, tuple[Sha256, bytes]] = field(default_factory=dict)


class MemoryStore:
    """`ports.Store` over a shared pool."""

    def __init__(self, pool: Pool) -> None:
        self.bytes_written = 0
        self._pool = pool
        self._whole: dict[Sha256, _Pieces] = {}
        self._parts: dict[Sha256, _Pieces] = {}

    def has(self, sha256: Sha256) -> bool:
        return sha256 in self._whole

    def resume(self, file: BundleFile) -> tuple[int, ...]:
        part = self._parts.get(file.sha256)
        if part is None:
            return ()
        if not file.chunks:
            self.abandon(file.sha256)
            return ()
        return tuple(sorted(part.held))

    def write_chunk(self, file: BundleFile, index: int, chunk: bytes) -> None:
        part = self._parts.setdefault(file.sha256, _Pieces())
        if index in part.held:
            return
        sha256 = file.chunks[index] if file.chunks else digest(chunk)  # The former was verified on arrival.
        part.held[index] = (sha256, self._pool.hold(sha256, chunk))
        self.bytes_written += len(chunk)

    def finish(self, file: BundleFile) -> None:
        part = self._parts.get(file.sha256, _Pieces())
        actual = _hash(part)
        if actual != file.sha256:
            self.abandon(file.sha256)
            raise FileTampered(file.path, file.sha256, actual)
        self._whole[file.sha256] = part
        self._parts.pop(file.sha256, None)

    def read(self, sha256: Sha256) -> bytes:
        if sha256 not in self._whole:
            raise StoreDamaged(f"{sha256[:12]}… is not here")
        return b"".join(content for _, content in _in_order(self._whole[sha256]))

    def verify(self, file: BundleFile) -> bool:
        return file.sha256 in self._whole and _hash(self._whole[file.sha256]) == file.sha256

    def abandon(self, sha256: Sha256) -> None:
        self._drop(self._parts, sha256)

    def collect(self, keep: frozenset[Sha256]) -> None:
        for files in (self._whole, self._parts):
            for sha256 in sorted(files.keys() - keep):
                self._drop(files, sha256)

    def _drop(self, files: dict[Sha256, _Pieces], sha256: Sha256) -> None:
        dropped = files.pop(sha256, None)
        if dropped is not None:
            for piece, _ in dropped.held.values():
                self._pool.release(piece)


class NoSensors:
    """`ports.Host` of a device without any: unknown is None, never 0."""

    def telemetry(self) -> HostTelemetry:
        return HostTelemetry()


def _in_order(pieces: _Pieces) -> list[tuple[Sha256, bytes]]:
    return [pieces.held[index] for index in sorted(pieces.held)]


def _hash(pieces: _Pieces) -> str:
    running = hashlib.sha256()
    for _, content in _in_order(pieces):
        running.update(content)
    return running.hexdigest()
