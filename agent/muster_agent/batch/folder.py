"""Files of a folder, one a row: their name and their bytes, for releases that say how a file becomes an input."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from muster_agent.batch.errors import JobInvalid, RowsRefused
from muster_agent.batch.file_identity import identity
from muster_agent.batch.mapping import Chunk, Column
from muster_agent.engines.port import Array

SUFFIXES = (".jpg", ".jpeg", ".png")
FILE_BYTES_MAX = 64 * 1024 * 1024
FILE, CONTENT = "file", "content"


class FolderSource:
    """The images in a folder and the folders in it, sorted by name."""

    def __init__(self, root: Path) -> None:
        self._root = root
        paths = [path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()]
        self._paths = sorted(paths, key=lambda path: path.relative_to(root).as_posix())
        if not self._paths:
            raise JobInvalid(f"{root} has no images ({', '.join(SUFFIXES)})")
        self.rows = len(self._paths)
        self.columns = (Column(FILE, np.dtype(object)), Column(CONTENT, np.dtype(object)))
        self.identity = identity(*self._paths)

    def chunks(self, start: int, stop: int, rows: int, names: Sequence[str]) -> Iterator[Chunk]:
        """See `Source`."""
        for at in range(start, stop, rows):
            paths = self._paths[at : min(at + rows, stop)]
            chunk: Chunk = {}
            for name in names:
                if name == FILE:
                    chunk[name] = _objects([path.relative_to(self._root).as_posix() for path in paths])
                else:
                    chunk[name] = _objects([_read(path) for path in paths])
            yield chunk

    def close(self) -> None:
        """Nothing is open between chunks."""


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            raise RowsRefused(f"{path} has more than {FILE_BYTES_MAX} bytes")
        return path.read_bytes()
    except OSError as error:
        raise RowsRefused(f"{path} cannot be read: {error.strerror}") from error


def _objects(values: Sequence[str] | Sequence[bytes]) -> Array:
    array: Array = np.empty(len(values), dtype=object)
    array[:] = np.array(values, dtype=object)
    return array
