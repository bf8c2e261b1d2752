"""Whether files are still those that a job began with, without reading them."""

import hashlib
from pathlib import Path


def identity(*paths: Path) -> str:
    """Return a word for the content of files by their names, sizes and times of change."""
    told = hashlib.sha256()
    for path in paths:
        at = path.stat()
        told.update(f"{path.name}\0{at.st_size}\0{at.st_mtime_ns}\n".encode())
    return told.hexdigest()[:32]
