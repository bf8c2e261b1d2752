"""Rows of an SQLite table or query, and answers into one. Inputs are only ever read; commits are durable."""

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from muster_agent.batch.errors import JobInvalid, RowsRefused
from muster_agent.batch.file_identity import identity
from muster_agent.batch.flat import Cells
from muster_agent.batch.mapping import Chunk, Column
from muster_agent.engines.port import Array

LOOK_ROWS = 1000
COLUMNS_MAX = 1000  # SQLite takes 2,000 by default.
TIMEOUT_S = 30.0


class DatabaseSource:
    """A table, in the order of its rows, or a query."""

    def __init__(self, path: Path, *, table: str = "", query: str = "") -> None:
        """
        Raises:
            JobInvalid: there is no such table, or the query is none.
        """
        if table and query:
            raise JobInvalid("give --table or --query, not both")
        if not path.is_file():
            raise JobInvalid(f"{path} is not there")
        logs = [log for log in (path.with_name(path.name + "-wal"),) if log.exists()]
        self._database = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=TIMEOUT_S)
        try:
            self._rows_of = f"({query.rstrip().rstrip(';')})" if query else _quoted(table or self._only_table(path))
            self._order = "" if query else self._natural_order()
            self.rows = int(self._database.execute(f"SELECT count(*) FROM {self._rows_of}").fetchone()[0])
            cursor = self._database.execute(f"SELECT * FROM {self._rows_of} {self._order} LIMIT {LOOK_ROWS}")
            sample = cursor.fetchall()
        except sqlite3.Error as error:
            self._database.close()
            raise JobInvalid(f"{path}: {error}") from error
        names = [str(described[0]) for described in cursor.description]
        if len(set(names)) != len(names):
            raise JobInvalid("two columns of the query have the same name; rename one with AS")
        self.columns = tuple(Column(name, _dtype([row[place] for row in sample])) for place, name in enumerate(names))
        self._dtypes = {column.name: column.dtype for column in self.columns}
        self.identity = f"{identity(path, *logs)}:{self._rows_of}"

    def chunks(self, start: int, stop: int, rows: int, names: Sequence[str]) -> Iterator[Chunk]:
        """See `Source`."""
        wanted = ", ".join(_quoted(name) for name in names) or "1"
        cursor = self._database.execute(
            f"SELECT {wanted} FROM {self._rows_of} {self._order} LIMIT ? OFFSET ?", (stop - start, start)
        )
        for at in range(start, stop, rows):
            part = cursor.fetchmany(min(rows, stop - at))
            yield {
                name: _array([row[place] for row in part], self._dtypes[name], name, at)
                for place, name in enumerate(names)
            }

    def close(self) -> None:
        self._database.close()

    def _only_table(self, path: Path) -> str:
        found = self._database.execute(
            "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite~_%' ESCAPE '~' ORDER BY name"
        ).fetchall()
        if len(found) != 1:
            tables = ", ".join(str(row[0]) for row in found) or "none"
            raise JobInvalid(f"{path} has not one table, but {tables}; name it with --table")
        return str(found[0][0])

    def _natural_order(self) -> str:
        with suppress(sqlite3.OperationalError):  # A view, or a table WITHOUT ROWID, which is in the order of its key.
            self._database.execute(f"SELECT rowid FROM {self._rows_of} LIMIT 1")
            return "ORDER BY rowid"
        return ""


class DatabaseSink:
    """A table with one line for each row: `row`, the number within the input, then the columns."""

    def __init__(self, path: Path, table: str, columns: Sequence[Column]) -> None:
        self._cells = Cells(columns, limit=COLUMNS_MAX)
        self._table = _quoted(table)
        self.described = f"table {table} with {', '.join(self._cells.names)}"
        self._name = table
        self._path = path
        self._database: sqlite3.Connection | None = None

    def exists(self) -> bool:
        """Whether the table is there."""
        if not self._path.exists():
            return False
        found = self._open().execute("SELECT 1 FROM sqlite_schema WHERE name = ?", (self._name,)).fetchone()
        return found is not None

    def begin(self, rows: int) -> None:
        """Keep the first `rows` rows; 0: make the table anew."""
        database = self._open()
        try:
            if rows:
                database.execute(f"DELETE FROM {self._table} WHERE row >= ?", (rows,))
            else:
                database.execute(f"DROP TABLE IF EXISTS {self._table}")
                columns = ", ".join(
                    f"{_quoted(name)} {kind}" for name, kind in zip(self._cells.names, self._cells.kinds, strict=True)
                )
                database.execute(f"CREATE TABLE {self._table} (row INTEGER PRIMARY KEY, {columns})")
            database.commit()
        except sqlite3.Error as error:
            raise JobInvalid(f"{self._path}: {error}") from error

    def write(self, chunk: Chunk, first_row: int) -> None:
        marks = ", ".join("?" * (1 + len(self._cells.names)))
        lines = [(first_row + at, *line) for at, line in enumerate(self._cells.lines(chunk))]
        self._open().executemany(f"INSERT OR REPLACE INTO {self._table} VALUES ({marks})", lines)

    def commit(self) -> None:
        """Make what was written durable."""
        self._open().commit()

    def close(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None

    def _open(self) -> sqlite3.Connection:
        if self._database is None:
            try:
                self._database = sqlite3.connect(self._path, timeout=TIMEOUT_S)
                self._database.execute("PRAGMA synchronous = FULL")
            except sqlite3.Error as error:
                raise JobInvalid(f"{self._path}: {error}") from error
        return self._database


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _dtype(values: list[object]) -> np.dtype[np.generic]:
    kinds = {type(value) for value in values}
    if kinds == {int}:
        return np.dtype(np.int64)
    if kinds and kinds <= {int, float}:
        return np.dtype(np.float64)
    return np.dtype(object)


def _array(values: list[object], dtype: np.dtype[np.generic], name: str, first_row: int) -> Array:
    if dtype.kind == "O":
        array: Array = np.empty(len(values), dtype=object)
        for place, value in enumerate(values):
            array[place] = value  # type: ignore[assignment]  # Objects hold anything.
        return array
    allowed = (int,) if dtype.kind == "i" else (int, float)
    for row, value in enumerate(values):
        if not isinstance(value, allowed):
            raise RowsRefused(
                f"row {first_row + row}: {name!r} is {json.dumps(value, default=repr)[:80]}, no {dtype.name}"
            )
    return np.array(values, dtype=dtype)
