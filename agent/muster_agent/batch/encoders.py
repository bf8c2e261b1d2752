"""Answers as bytes of a file that only grows: .npy, .csv, .tsv and .jsonl here, .parquet in `parquet`.

What an encoder writes for a row depends on that row alone, so a file that was cut off and gone on with is the same.
"""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np

from muster_agent.batch.errors import JobInvalid
from muster_agent.batch.flat import Cells, values
from muster_agent.batch.mapping import Chunk, Column

COLUMNS_MAX = 10_000
_encode = msgspec.json.Encoder().encode


class Encoder(Protocol):
    """One format."""

    @property
    def described(self) -> str:
        """Format and columns, for people and for comparing jobs."""
        ...

    def head(self) -> bytes:
        """Return what comes before the first row."""
        ...

    def encode(self, chunk: Chunk) -> bytes | memoryview:
        """Return the rows of `chunk`; a view is of use until the chunk changes."""
        ...

    def convert(self, part: Path, target: Path) -> bool:
        """Write `target` from the whole file `part`; False when `part` is what was asked for already."""
        ...


def encoder(path: Path, columns: Sequence[Column], rows: int) -> Encoder:
    """Return what writes files named as `path`.

    Args:
        rows: That will be written; .npy says it first.
    Raises:
        JobInvalid: nothing writes such files, or the columns do not fit the format.
    """
    suffix = path.suffix.lower()
    match suffix:
        case ".npy":
            return NpyEncoder(columns, rows)
        case ".csv" | ".tsv":
            return CsvEncoder(columns, "\t" if suffix == ".tsv" else ",")
        case ".jsonl" | ".ndjson":
            return JsonEncoder(columns)
        case ".parquet" | ".pq":
            from muster_agent.batch.parquet import ParquetEncoder

            return ParquetEncoder(columns)
    raise JobInvalid(
        f"{path}: nothing here writes {suffix or 'files without a suffix'}; name it .npy, .parquet, .csv, .tsv, .jsonl"
        " or .sqlite"
    )


class _Grown:
    """What is complete with its last row."""

    def convert(self, part: Path, target: Path) -> bool:
        """See `Encoder`."""
        return False


class NpyEncoder(_Grown):
    """One array."""

    def __init__(self, columns: Sequence[Column], rows: int) -> None:
        if len(columns) != 1:
            names = ", ".join(column.name for column in columns)
            raise JobInvalid(f".npy holds one array, not {names}; choose one with --output, or write .parquet")
        column = columns[0]
        if column.dtype.kind == "O" or -1 in column.shape:
            raise JobInvalid(f".npy holds numbers of a fixed size; {column} is none: write .jsonl")
        self._name = column.name
        self._dtype = column.dtype
        self._shape = (rows, *column.shape)
        self.described = f"npy of {column}"

    def head(self) -> bytes:
        head = io.BytesIO()
        described = {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False, "shape": self._shape}
        np.lib.format.write_array_header_1_0(head, described)
        return head.getvalue()

    def encode(self, chunk: Chunk) -> memoryview:
        return np.ascontiguousarray(chunk[self._name], self._dtype).reshape(-1).view(np.uint8).data


class CsvEncoder(_Grown):
    """Text with a line of names."""

    def __init__(self, columns: Sequence[Column], delimiter: str) -> None:
        self._cells = Cells(columns, limit=COLUMNS_MAX)
        self._delimiter = delimiter
        self.described = f"text of {', '.join(self._cells.names)}"

    def head(self) -> bytes:
        return self._text([self._cells.names])

    def encode(self, chunk: Chunk) -> bytes:
        return self._text(
            [
                [cell.decode(errors="replace") if isinstance(cell, bytes) else cell for cell in line]
                for line in self._cells.lines(chunk)
            ]
        )

    def _text(self, lines: Sequence[Sequence[object]]) -> bytes:
        text = io.StringIO(newline="")
        csv.writer(text, delimiter=self._delimiter, lineterminator="\n").writerows(lines)
        return text.getvalue().encode()


class JsonEncoder(_Grown):
    """A JSON object on each line."""

    def __init__(self, columns: Sequence[Column]) -> None:
        self._names = tuple(column.name for column in columns)
        self.described = f"lines of {', '.join(self._names)}"

    def head(self) -> bytes:
        return b""

    def encode(self, chunk: Chunk) -> bytes:
        columns = [_texts(values(chunk[name])) for name in self._names]
        lines = zip(*columns, strict=True)
        return b"".join(_encode(dict(zip(self._names, line, strict=True))) + b"\n" for line in lines)


def _texts(cells: Sequence[object]) -> Sequence[object]:
    return [cell.decode(errors="replace") if isinstance(cell, bytes) else cell for cell in cells]
