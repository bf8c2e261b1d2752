"""Bytes and names that survive power loss: fsync of files and of the folders that name them.

It raises OSError as it comes: whoever calls knows what could not be kept, and says so.
"""

import os
from pathlib import Path


def sync(path: Path) -> None:
    """Make the bytes of a file, or the names in a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Write a new file, durable but for its name; what was at `path`, a link too, is removed first."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def replace(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Put `content` at `path`: a kill at any byte leaves the old file or the new one, and at worst a `.new` beside."""
    fresh = path.with_name(f"{path.name}.new")
    write(fresh, content, mode)
    fresh.replace(path)
    sync(path.parent)
