"""Answers as lines of cells, for formats without arrays: an array becomes a column for each element, or JSON. Pure."""

import math
from collections.abc import Iterator, Sequence

import msgspec
import numpy as np

from muster_agent.batch.mapping import Chunk, Column
from muster_agent.engines.port import Array

Cell = str | int | float | bytes | None
_encode = msgspec.json.Encoder().encode


class Cells:
    """How columns lie in a line: `probabilities` [10] as `probabilities_0` ... `probabilities_9`."""

    def __init__(self, columns: Sequence[Column], *, limit: int) -> None:
        """
        Args:
            limit: Cells of a line; arrays that would exceed it, or have no fixed size, are one cell of JSON each.
        """
        self._columns = tuple(columns)
        counts = [math.prod(column.shape) if -1 not in column.shape else 0 for column in columns]
        self._spread = tuple(
            count > 0 and sum(counts[: index + 1]) <= limit and bool(column.shape)
            for index, (column, count) in enumerate(zip(columns, counts, strict=True))
        )
        names: list[str] = []
        kinds: list[str] = []
        for column, count, spread in zip(columns, counts, self._spread, strict=True):
            kind = "TEXT" if column.shape and not spread else _KINDS.get(column.dtype.kind, "")
            names += [f"{column.name}_{index}" for index in range(count)] if spread else [column.name]
            kinds += [kind] * (count if spread else 1)
        self.names = tuple(names)
        self.kinds = tuple(kinds)
        """In SQLite's words."""

    def lines(self, chunk: Chunk) -> Iterator[tuple[Cell, ...]]:
        """Yield the cells of each row."""
        cells: list[Sequence[Cell]] = []
        for column, spread in zip(self._columns, self._spread, strict=True):
            array = chunk[column.name]
            rows = len(array)
            if spread:
                cells += list(zip(*values(array.reshape(rows, -1)), strict=True)) if rows else []
            elif column.shape:
                cells.append([_encode(row).decode() for row in values(array)])
            elif array.dtype.kind == "O":
                cells.append([cell if isinstance(cell, str | bytes | float) else text(cell) for cell in array.tolist()])
            else:
                cells.append(values(array))
        return zip(*cells, strict=True)


_KINDS = {"b": "INTEGER", "i": "INTEGER", "u": "INTEGER", "f": "REAL"}


def values(array: Array) -> list[Cell]:
    """Return an array as Python's values, in lists of its shape; floats of 32 bits and fewer as the shortest that
    means them (0.1, not 0.10000000149011612)."""
    if array.dtype.kind == "f" and array.dtype.itemsize < 8:
        short: list[Cell] = array.astype("U").astype(np.float64).tolist()
        return short
    plain: list[Cell] = array.tolist()
    return plain


def text(value: object) -> str | None:
    """Return what a text cell says of `value`: itself when it is text, else its JSON."""
    if value is None or isinstance(value, str):
        return value
    return value.decode(errors="replace") if isinstance(value, bytes) else _encode(value).decode()
