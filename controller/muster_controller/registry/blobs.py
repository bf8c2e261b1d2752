"""The blob store: files by their SHA-256, at `<folder>/ab/<sha256>`. What is there is whole, verified and durable.

Nothing is ever changed in place, so any number of readers need no lock. What a blob means is not known here.
"""

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path
from typing import BinaryIO, Protocol

from muster_controller.registry import durable
from muster_controller.registry.errors import BlobMismatch, BlobMissing
from muster_shared import ids
from muster_shared.ids import Sha256

READ_BYTES = 1024 * 1024  # Of a stream at a time; memory stays constant whatever the model weighs.


class ReadableStream(Protocol):
    def read(self, size: int, /) -> bytes: ...


class BlobStore:
    """Blobs below `folder`, which is made when it is needed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def has(self, sha256: Sha256) -> bool:
        return self.path(sha256).is_file()

    def path(self, sha256: Sha256) -> Path:
        """Return where the blob is or would be. Raises WireError when `sha256` is no digest."""
        ids.sha256(sha256)
        return self._folder / sha256[:2] / sha256

    def length(self, sha256: Sha256) -> int:
        """Return the bytes of a blob. Raises BlobMissing."""
        try:
            return self.path(sha256).stat().st_size
        except FileNotFoundError as error:
            raise BlobMissing(sha256) from error

    def put(self, stream: ReadableStream, expected_sha256: Sha256, expected_length: int) -> None:
        """Store what `stream` gives; a blob that is there already is left alone and `stream` unread.

        Raises:
            BlobMismatch: `stream` is shorter, longer, or hashes to something else; nothing is kept of it.
        """
        path = self.path(expected_sha256)
        if path.is_file():
            return
        durable.make_folder(path.parent)
        descriptor, name = tempfile.mkstemp(prefix=".", suffix=durable.TEMPORARY, dir=path.parent)
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                _copy(stream, file, expected_sha256, expected_length)
                os.fchmod(file.fileno(), 0o644)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        durable.sync_folder(path.parent)

    def open(self, sha256: Sha256) -> BinaryIO:
        """Return the blob as an open file. Raises BlobMissing."""
        try:
            return self.path(sha256).open("rb")
        except FileNotFoundError as error:
            raise BlobMissing(sha256) from error

    def read_range(self, sha256: Sha256, offset: int, length: int) -> bytes:
        """Return up to `length` bytes from `offset`; fewer at the end. Raises BlobMissing."""
        with self.open(sha256) as file:
            return os.pread(file.fileno(), length, offset)

    def sweep(self) -> None:
        """Delete what interrupted writes left behind. For the start, when nobody writes."""
        for leftover in self._folder.glob(f"*/.*{durable.TEMPORARY}"):
            with contextlib.suppress(FileNotFoundError):
                leftover.unlink()


def _copy(stream: ReadableStream, file: BinaryIO, expected_sha256: Sha256, expected_length: int) -> None:
    digest, length = hashlib.sha256(), 0
    while length <= expected_length:
        piece = stream.read(min(READ_BYTES, expected_length - length + 1))
        if not piece:
            break
        length += len(piece)
        digest.update(piece)
        file.write(piece)
    if length != expected_length:
        amount = "more than" if length > expected_length else f"only {length} of"
        raise BlobMismatch(expected_sha256, f"it has {amount} {expected_length} bytes")
    if digest.hexdigest() != expected_sha256:
        raise BlobMismatch(expected_sha256, f"it hashes to {digest.hexdigest()[:12]}…")
