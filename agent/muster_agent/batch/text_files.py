"""Rows of CSV and TSV files, by the standard library: UTF-8, the first line names the columns unless it is numbers."""

import csv
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from muster_agent.batch.errors import JobInvalid, RowsRefused
from muster_agent.batch.file_identity import identity
from muster_agent.batch.mapping import Chunk, Column
from muster_agent.engines.port import Array

LOOK_ROWS = 1000
"""Of the file decide which columns are numbers: one that looks so and is not is refused where it first fails."""


class CsvSource:
    """A file of text."""

    def __init__(self, path: Path) -> None:
        """
        Raises:
            JobInvalid: it holds no rows.
        """
        self._path = path
        self._delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
        self.identity = identity(path)
        head = list(itertools.islice(self._lines(), LOOK_ROWS + 1))
        if not head:
            raise JobInvalid(f"{path} is empty")
        self._has_names = not all(_is_number(cell) for cell in head[0])
        names = head[0] if self._has_names else [f"c{index}" for index in range(len(head[0]))]
        if len(set(names)) != len(names):
            raise JobInvalid(f"{path}: two columns have the same name; rename one")
        sample = head[self._has_names :]
        self._places = {name: place for place, name in enumerate(names)}
        self._numbers = {
            name: bool(sample) and all(len(row) > place and _is_number(row[place]) for row in sample)
            for name, place in self._places.items()
        }
        self.columns = tuple(
            Column(name, np.dtype(np.float64 if self._numbers[name] else object)) for name in self._places
        )
        self.rows = sum(1 for _ in self._lines()) - self._has_names

    def chunks(self, start: int, stop: int, rows: int, names: Sequence[str]) -> Iterator[Chunk]:
        """See `Source`."""
        skipped = start + self._has_names
        lines = itertools.islice(self._lines(), skipped, stop + self._has_names)
        for at in range(start, stop, rows):
            part = list(itertools.islice(lines, min(rows, stop - at)))
            for row, line in enumerate(part):
                if len(line) != len(self._places):
                    raise RowsRefused(
                        f"row {at + row} of {self._path} has {len(line)} cells; there are {len(self._places)} columns"
                    )
            yield {name: self._column(name, part, at) for name in names}

    def close(self) -> None:
        """Nothing is open between chunks."""

    def _lines(self) -> Iterator[list[str]]:
        """Yield the lines that are not empty."""
        try:
            with self._path.open(encoding="utf-8-sig", newline="") as text:
                for line in csv.reader(text, delimiter=self._delimiter):
                    if line:
                        yield line
        except (csv.Error, UnicodeDecodeError) as error:
            raise JobInvalid(f"{self._path} is no CSV in UTF-8: {error}") from error

    def _column(self, name: str, part: list[list[str]], first_row: int) -> Array:
        place = self._places[name]
        if not self._numbers[name]:
            texts: Array = np.array([line[place] for line in part], dtype=object)
            return texts
        try:
            return np.array([float(line[place]) for line in part], dtype=np.float64)
        except ValueError as error:
            row = next(row for row, line in enumerate(part) if not _is_number(line[place]))
            raise RowsRefused(f"row {first_row + row}: {name!r} is {part[row][place]!r}, no number") from error


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
