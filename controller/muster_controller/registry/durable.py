"""Files that survive power loss: temporary name, fsync, rename, fsync of the folder.

A crash leaves the old file or the new one, and at worst a `.tmp` file, which every reader here ignores.
"""

import contextlib
import os
import tempfile
from pathlib import Path

TEMPORARY = ".tmp"


def write(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Put `data` at `path` in place of what is there."""
    temporary = _temporary(path, data, mode)
    try:
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def create(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Put `data` at `path`. Raises FileExistsError rather than overwrite."""
    temporary = _temporary(path, data, mode)
    try:
        os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path, mode: int = 0o755) -> None:
    """Make `folder` and its parents, durably."""
    if not folder.is_dir():
        make_folder(folder.parent)
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=mode)
        sync_folder(folder.parent)


def _temporary(path: Path, data: bytes, mode: int) -> Path:
    make_folder(path.parent)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=TEMPORARY, dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        Path(name).unlink(missing_ok=True)
        raise
    return Path(name)
