"""The content store: files named by their SHA-256, whole in `blobs/`, on their way in `parts/`.

    write_chunk ─▶ parts/<sha256> ─ finish: hash the whole, fsync, rename, fsync folder ─▶ blobs/<sha256>
                        │                                                                      │
                        └── abandon, collect, tampered: gone        verify, read: damaged ─────┴─▶ gone

It stands over a `Disk`, so the simulator runs this very logic on a disk that loses power. What it affirms is hashed,
not remembered; memory stays constant whatever the length of a file. It does not know releases.
"""

import hashlib

import structlog

from muster_agent.errors import StoreDamaged, StoreError
from muster_agent.io.disk import Disk
from muster_shared.bundle import MANIFEST_BYTES_MAX, BundleFile, digest
from muster_shared.errors import FileTampered
from muster_shared.ids import Sha256

READ_BYTES = 1024 * 1024
BLOBS = "blobs"
PARTS = "parts"

log = structlog.get_logger()


def blob(sha256: Sha256) -> str:
    """Return where the whole file is on the disk."""
    return f"{BLOBS}/{sha256}"


class ContentStore:
    """`ports.Store` on a disk. It holds no state of its own, so any thread may verify and read."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        try:
            # An agent that was killed between a rename and its sync left names that power loss could still take back.
            disk.fsync_folder(BLOBS)
        except StoreError as error:
            log.warning("store_not_synced", error=str(error))

    def has(self, sha256: Sha256) -> bool:
        return self._disk.exists(blob(sha256))

    def resume(self, file: BundleFile) -> tuple[int, ...]:
        """See `ports.Store`. Without chunk digests nothing of a partial file can be trusted: it starts anew."""
        part = _part(file.sha256)
        try:
            length = self._disk.size(part)
            if length is None:
                return ()
            if not file.chunks or length > file.length:
                self._disk.remove(part)
                return ()
            # A chunk that power loss left half written, or as zeros, hashes to something else and is fetched again.
            return tuple(
                index
                for index, expected in enumerate(file.chunks[: -(-length // file.chunk_bytes)])
                if digest(self._disk.read(part, index * file.chunk_bytes, file.chunk_bytes)) == expected
            )
        except StoreError as error:
            log.warning("partial_file_unreadable", sha256=file.sha256, error=str(error))
            return ()

    def write_chunk(self, file: BundleFile, index: int, chunk: bytes) -> None:
        self._disk.write_at(_part(file.sha256), index * file.chunk_bytes, chunk)

    def finish(self, file: BundleFile) -> None:
        part = _part(file.sha256)
        actual = self._hash(part)
        if actual != file.sha256:
            self._disk.remove(part)
            raise FileTampered(file.path, file.sha256, actual)
        self._disk.fsync(part)
        self._disk.rename(part, blob(file.sha256))
        self._disk.fsync_folder(BLOBS)

    def read(self, sha256: Sha256) -> bytes:
        try:
            content = self._disk.read(blob(sha256), 0, MANIFEST_BYTES_MAX + 1)
        except StoreError as error:
            raise StoreDamaged(f"{sha256[:12]}… is not readable: {error}") from error
        if digest(content) != sha256:
            self._forget(sha256)
            raise StoreDamaged(f"{sha256[:12]}… is not what it was; it is fetched again when it is needed")
        return content

    def verify(self, file: BundleFile) -> bool:
        try:
            if self._disk.size(blob(file.sha256)) is None:
                return False
            if self._hash(blob(file.sha256)) == file.sha256:
                return True
        except StoreError as error:  # A sector that does not read is as lost as one that lies.
            log.warning("file_unreadable", path=file.path, sha256=file.sha256, error=str(error))
        self._forget(file.sha256)
        return False

    def abandon(self, sha256: Sha256) -> None:
        self._remove(_part(sha256))

    def collect(self, keep: frozenset[Sha256]) -> None:
        """See `ports.Store`. Whatever has another name in these folders is a left-over and goes as well."""
        for folder in (BLOBS, PARTS):
            try:
                names = self._disk.list(folder)
            except StoreError as error:
                log.warning("store_unreadable", folder=folder, error=str(error))
                continue
            for name in names:
                if name not in keep:
                    self._remove(f"{folder}/{name}")

    def _hash(self, path: str) -> str:
        """Return the digest of what is on the disk; of nothing when the file is not there."""
        running = hashlib.sha256()
        length = self._disk.size(path) or 0
        for offset in range(0, length, READ_BYTES):
            running.update(self._disk.read(path, offset, READ_BYTES))
        return running.hexdigest()

    def _forget(self, sha256: Sha256) -> None:
        log.error("file_damaged", sha256=sha256)
        self._remove(blob(sha256))

    def _remove(self, path: str) -> None:
        try:
            self._disk.remove(path)
        except StoreError as error:  # It is tried again by the next collection.
            log.warning("file_not_removed", path=path, error=str(error))


def _part(sha256: Sha256) -> str:
    return f"{PARTS}/{sha256}"
