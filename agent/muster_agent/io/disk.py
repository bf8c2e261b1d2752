"""A folder of files as the store sees it: positions, fsync, rename.

The simulator has one that loses what was not synced. What the files mean is `store`'s; paths are relative, with `/`.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from muster_agent.errors import DiskFull, StoreError
from muster_agent.io import durable

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class Disk(Protocol):
    """Every method raises DiskFull or StoreError, never OSError. What was not synced may be gone after power loss."""

    def write_at(self, path: str, offset: int, content: bytes) -> None:
        """Write `content` at `offset` (bytes); the file and its folder are made, a gap reads as zeros."""
        ...

    def read(self, path: str, offset: int, length: int) -> bytes:
        """Return up to `length` bytes from `offset`; fewer only at the end. Raises StoreError when it is not there."""
        ...

    def size(self, path: str) -> int | None:
        """Return the length in bytes, or None when there is no such file."""
        ...

    def exists(self, path: str) -> bool: ...

    def fsync(self, path: str) -> None:
        """Make the content of a file durable."""
        ...

    def fsync_folder(self, path: str) -> None:
        """Make names in a folder durable: creations, renames and removals."""
        ...

    def rename(self, source: str, target: str) -> None:
        """Move a file over `target`, at once for every reader; the folder of `target` is made."""
        ...

    def remove(self, path: str) -> None:
        """Remove a file; nothing happens when it is not there."""
        ...

    def list(self, folder: str) -> list[str]:
        """Return the names in `folder`, sorted; none when it is not there."""
        ...


class OsDisk:
    """The folder `root` of the file system."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, path: str) -> Path:
        """Return where `path` really is, for what must open files by itself (engines)."""
        return self.root / path

    def write_at(self, path: str, offset: int, content: bytes) -> None:
        with _translated(path):
            try:
                descriptor = os.open(self.root / path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o640)
            except FileNotFoundError:
                self._make_parent(path)
                descriptor = os.open(self.root / path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o640)
            try:
                view = memoryview(content)
                while view:  # A nearly full disk takes a part first and refuses the rest.
                    written = os.pwrite(descriptor, view, offset)
                    view, offset = view[written:], offset + written
            finally:
                os.close(descriptor)

    def read(self, path: str, offset: int, length: int) -> bytes:
        with _translated(path), (self.root / path).open("rb", buffering=0) as file:
            file.seek(offset)
            content = file.read(length)
            while content and len(content) < length and (more := file.read(length - len(content))):
                content += more
            return content

    def size(self, path: str) -> int | None:
        try:
            return (self.root / path).stat().st_size
        except OSError:
            return None

    def exists(self, path: str) -> bool:
        return self.size(path) is not None

    def fsync(self, path: str) -> None:
        with _translated(path):
            durable.sync(self.root / path)

    def fsync_folder(self, path: str) -> None:
        self.fsync(path)

    def rename(self, source: str, target: str) -> None:
        with _translated(source):
            self._make_parent(target)
            (self.root / source).replace(self.root / target)

    def remove(self, path: str) -> None:
        with _translated(path):
            (self.root / path).unlink(missing_ok=True)

    def list(self, folder: str) -> list[str]:
        with _translated(folder):
            try:
                return sorted(os.listdir(self.root / folder))
            except FileNotFoundError:
                return []

    def _make_parent(self, path: str) -> None:
        folder = (self.root / path).parent
        if not folder.is_dir():
            folder.mkdir(mode=0o750, parents=True, exist_ok=True)
            self.fsync_folder("")  # Or the folder is gone with all that was synced in it.


@contextmanager
def _translated(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise DiskFull(f"no room to write {path} ({error.strerror}); free some space") from error
        raise StoreError(f"{path}: {error.strerror or error}") from error
