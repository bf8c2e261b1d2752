"""Exports as files that DuckDB, Spark or a spreadsheet read: Parquet, CSV or JSON Lines, one file a day and table.

    sums/2026-11-16.parquet      a row for each number of noised sums
    series/2026-11-16.parquet    a row for each point of the operational series

A file is written beside its place and then moved there: it is whole, or the one of before. Parquet needs pyarrow, which
is an extra (`muster-controller[parquet]`); the other formats need nothing.
"""

import csv
import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import IO, Any, Final, Protocol

import msgspec

from muster_controller.export.lines import SeriesLine, SumsLine
from muster_shared.errors import MusterError

ROWS: Final = 16_384
"""In memory at once, and in a row group of Parquet."""


class Format(StrEnum):
    PARQUET = "parquet"
    CSV = "csv"
    NDJSON = "ndjson"


class ExportFailed(MusterError):
    """A table cannot be written here."""


class Column(StrEnum):
    """What a column holds; of TIME, seconds since 1970 are given."""

    TIME = "timestamp"
    TEXT = "string"
    WHOLE = "int64"
    REAL = "double"
    TRUTH = "bool"


SUMS: Final = {
    "period_start": Column.TIME,
    "period_s": Column.WHOLE,
    "model": Column.TEXT,
    "version": Column.TEXT,
    "device_class": Column.TEXT,
    "region": Column.TEXT,
    "kind": Column.TEXT,
    "index": Column.WHOLE,
    "label": Column.TEXT,
    "sum_units": Column.WHOLE,
    "sigma": Column.REAL,
    "devices": Column.WHOLE,
    "periods": Column.WHOLE,
    "late": Column.TRUTH,
    "batch": Column.TEXT,
}
"""`label` is null where an index has no name, `region` empty where the fleet granted none (docs/observability.md)."""
SERIES: Final = {
    "period_start": Column.TIME,
    "period_s": Column.WHOLE,
    "model": Column.TEXT,
    "version": Column.TEXT,
    "device_class": Column.TEXT,
    "region": Column.TEXT,
    "devices": Column.WHOLE,
    "requests": Column.WHOLE,
    "errors": Column.WHOLE,
    "slow": Column.WHOLE,
    "inferences": Column.WHOLE,
    "cpu_ms": Column.REAL,
    "energy_j": Column.REAL,
    "bytes_sent": Column.REAL,
    "bytes_received": Column.REAL,
    "latency_ms_p95_max": Column.REAL,
    "cpu_percent_max": Column.REAL,
    "cpu_percent_mean": Column.REAL,
}
Row = dict[str, Any]


class Table(Protocol):
    """A file that is being written."""

    def write(self, rows: list[Row]) -> None: ...
    def close(self) -> None: ...


def sums_rows(line: SumsLine) -> Iterator[Row]:
    """Give a row for each number of a vector, zeros and negative ones too."""
    shared = {name: getattr(line, name) for name in SUMS if hasattr(line, name) and name != "index"}
    for index, number in enumerate(line.sums):
        label = line.labels[index] if index < len(line.labels) else None
        yield {**shared, "kind": line.kind.value, "index": index, "label": label, "sum_units": number}


def series_rows(line: SeriesLine) -> Iterator[Row]:
    yield {name: getattr(line, name) for name in SERIES}


def check(fmt: Format) -> None:
    """Raises ExportFailed: this format needs what is not installed."""
    if fmt is Format.PARQUET:
        try:
            import pyarrow.parquet  # noqa: F401  # Heavy; only whoever writes Parquet needs it.
        except ImportError as error:
            raise ExportFailed(
                "Parquet needs pyarrow: pip install 'muster-controller[parquet]', or give --format csv"
            ) from error


def save(path: Path, columns: dict[str, Column], rows: Iterable[Row], fmt: Format) -> int:
    """Write a table in the place of the one that was there; return its rows. Raises ExportFailed, OSError."""
    check(fmt)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.part")
    count = 0
    try:
        with _opened(partial, columns, fmt) as table:
            waiting: list[Row] = []
            for row in rows:
                waiting.append(row)
                if len(waiting) >= ROWS:
                    table.write(waiting)
                    count += len(waiting)
                    waiting = []
            table.write(waiting)
            count += len(waiting)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return count


@contextmanager
def _opened(path: Path, columns: dict[str, Column], fmt: Format) -> Iterator[Table]:
    if fmt is Format.PARQUET:
        table: Table = _Parquet(path, columns)
        try:
            yield table
        finally:
            table.close()
        return
    with path.open("w", encoding="utf-8", newline="") as file:
        yield _Csv(file, columns) if fmt is Format.CSV else _Lines(file, columns)


class _Parquet:
    def __init__(self, path: Path, columns: dict[str, Column]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        types = {
            Column.TIME: pa.timestamp("ms", tz="UTC"),
            Column.TEXT: pa.string(),
            Column.WHOLE: pa.int64(),
            Column.REAL: pa.float64(),
            Column.TRUTH: pa.bool_(),
        }
        self._schema = pa.schema([pa.field(name, types[kind]) for name, kind in columns.items()])
        self._columns = columns
        self._writer = pq.ParquetWriter(path, self._schema, compression="zstd")
        self._table = pa.Table

    def write(self, rows: list[Row]) -> None:
        if rows:
            times = [name for name, kind in self._columns.items() if kind is Column.TIME]
            found = [{**row, **{name: _moment(row[name]) for name in times}} for row in rows]
            self._writer.write_table(self._table.from_pylist(found, schema=self._schema))

    def close(self) -> None:
        self._writer.close()


class _Csv:
    """Null is an empty field; a text that a spreadsheet would take for a formula has a quote in front."""

    def __init__(self, file: IO[str], columns: dict[str, Column]) -> None:
        self._columns = columns
        self._writer = csv.writer(file, lineterminator="\n")
        self._writer.writerow(columns)

    def write(self, rows: list[Row]) -> None:
        self._writer.writerows([_cell(row[name], kind) for name, kind in self._columns.items()] for row in rows)

    def close(self) -> None:
        """The file is closed by who opened it."""


class _Lines:
    def __init__(self, file: IO[str], columns: dict[str, Column]) -> None:
        self._file, self._columns = file, columns

    def write(self, rows: list[Row]) -> None:
        text = io.StringIO()
        for row in rows:
            said = {name: _said(row[name], kind) for name, kind in self._columns.items()}
            text.write(msgspec.json.encode(said).decode() + "\n")
        self._file.write(text.getvalue())

    def close(self) -> None:
        """The file is closed by who opened it."""


def _moment(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)


def _said(value: Any, kind: Column) -> Any:
    return _moment(value).isoformat().replace("+00:00", "Z") if kind is Column.TIME else value


def _cell(value: Any, kind: Column) -> str:
    if value is None:
        return ""
    if kind is Column.TRUTH:
        return "true" if value else "false"
    text = str(_said(value, kind))
    return f"'{text}" if kind is Column.TEXT and text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
