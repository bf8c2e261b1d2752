"""Where rows come from: one class for each kind of input file, chosen by its name.

    .npy .npz          here: memory-mapped       .parquet .pq      `parquet`
    .csv .tsv          `text_files`              .sqlite .db       `database`      a folder   `folder`

All give the same: rows counted before anything is asked, columns with data types, and chunks from any row on. A reader
keeps one chunk in memory, whatever the size of the file.
"""

import os
import struct
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Protocol

import numpy as np

from muster_agent.batch.errors import JobInvalid
from muster_agent.batch.file_identity import identity
from muster_agent.batch.mapping import Chunk, Column
from muster_agent.engines.port import Array

DATABASES = (".sqlite", ".sqlite3", ".db")
_LOCAL_HEAD = struct.Struct("<26xHH")  # APPNOTE 6.3.10, 4.3.7: at 26 the lengths of the name and of the extra field.


class Source(Protocol):
    """Rows in order, the same each time as long as `identity` is the same."""

    @property
    def rows(self) -> int: ...

    @property
    def columns(self) -> tuple[Column, ...]: ...

    @property
    def identity(self) -> str:
        """Differs when the content may differ."""
        ...

    def chunks(self, start: int, stop: int, rows: int, names: Sequence[str]) -> Iterator[Chunk]:
        """Yield the columns `names` of the rows from `start` to before `stop`, `rows` at a time, the last fewer."""
        ...

    def close(self) -> None: ...


def open_source(path: Path, *, table: str = "", query: str = "") -> Source:
    """Return the rows in `path`.

    Args:
        table: Of a database; empty: the only one.
        query: Of a database, instead of a table.
    Raises:
        JobInvalid: it cannot be read, or nothing reads files of this name.
    """
    suffix = path.suffix.lower()
    if (table or query) and suffix not in DATABASES:
        raise JobInvalid(f"--table and --query are for databases ({', '.join(DATABASES)}); {path} is none")
    try:
        if path.is_dir():
            from muster_agent.batch.folder import FolderSource

            return FolderSource(path)
        match suffix:
            case ".npy":
                return ArraySource({path.stem: _open_npy(path)}, identity(path))
            case ".npz":
                return ArraySource(_open_npz(path), identity(path))
            case ".csv" | ".tsv":
                from muster_agent.batch.text_files import CsvSource

                return CsvSource(path)
            case ".parquet" | ".pq":
                from muster_agent.batch.parquet import ParquetSource

                return ParquetSource(path)
            case _ if suffix in DATABASES:
                from muster_agent.batch.database import DatabaseSource

                return DatabaseSource(path, table=table, query=query)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise JobInvalid(f"{path} cannot be read: {error}") from error
    raise JobInvalid(
        f"{path}: nothing here reads {suffix or 'files without a suffix'}; give .npy, .npz, .csv, .tsv, .parquet, a"
        f" database ({', '.join(DATABASES)}) or a folder of images"
    )


class ArraySource:
    """Arrays of one length, each a column."""

    def __init__(self, arrays: dict[str, Array], word: str) -> None:
        for name, array in arrays.items():
            if array.dtype.kind not in "biufSU" or not array.ndim:
                raise JobInvalid(
                    f"{name}: an array of {array.dtype} {list(array.shape)} has no rows of numbers or text"
                )
        lengths = {name: len(array) for name, array in arrays.items()}
        if len(set(lengths.values())) > 1:
            raise JobInvalid(f"the arrays differ in their rows: {lengths}; leave out those that are no columns")
        self._arrays = arrays
        self.identity = word
        self.rows = next(iter(lengths.values()), 0)
        self.columns = tuple(
            Column(name, np.dtype(object) if array.dtype.kind in "SU" else array.dtype, array.shape[1:])
            for name, array in arrays.items()
        )

    def chunks(self, start: int, stop: int, rows: int, names: Sequence[str]) -> Iterator[Chunk]:
        """See `Source`. Views of the file where it holds numbers."""
        for at in range(start, stop, rows):
            end = min(at + rows, stop)
            yield {name: _plain(self._arrays[name][at:end]) for name in names}

    def close(self) -> None:
        """Let the files go."""
        self._arrays = {}


def _plain(array: Array) -> Array:
    return array.astype(object) if array.dtype.kind in "SU" else array


def _open_npy(path: Path) -> Array:
    array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(array, np.ndarray):
        raise JobInvalid(f"{path} is no array")
    return np.asarray(array)  # The map stays; the subclass costs a microsecond a slice.


def _open_npz(path: Path) -> dict[str, Array]:
    """Return the arrays of an archive: mapped where they are stored as they are (`np.savez`), else read."""
    arrays: dict[str, Array] = {}
    with zipfile.ZipFile(path) as archive, path.open("rb") as raw:
        for entry in archive.infolist():
            name = entry.filename.removesuffix(".npy")
            if entry.compress_type == zipfile.ZIP_STORED:
                raw.seek(entry.header_offset)
                name_bytes, extra_bytes = _LOCAL_HEAD.unpack(raw.read(_LOCAL_HEAD.size))
                raw.seek(name_bytes + extra_bytes, os.SEEK_CUR)
                shape, is_fortran, dtype = _npy_head(raw)
                if dtype.hasobject:
                    raise JobInvalid(f"{path}: {name} has Python objects, which are not loaded")
                order = "F" if is_fortran else "C"
                arrays[name] = np.asarray(np.memmap(path, dtype, "r", raw.tell(), shape, order))  # type: ignore[call-overload]  # `order` is one of its two.
            else:
                with archive.open(entry) as packed:
                    arrays[name] = np.lib.format.read_array(packed, allow_pickle=False)
    if not arrays:
        raise JobInvalid(f"{path} holds no arrays")
    return arrays


def _npy_head(raw: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    version = np.lib.format.read_magic(raw)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, is_fortran, dtype = read(raw)
    return shape, is_fortran, dtype
