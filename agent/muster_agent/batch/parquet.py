"""Parquet, by pyarrow (the extra `batch`): rows from its files, and answers into one.

A Parquet file is of no use before its last byte. Answers wait in an Arrow stream beside it, which can be cut off and
gone on with, and become row groups of a fixed size at the end: the same bytes, however often the job was interrupted.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from muster_agent.batch.errors import JobInvalid, RowsRefused
from muster_agent.batch.file_identity import identity
from muster_agent.batch.flat import text
from muster_agent.batch.mapping import Chunk, Column
from muster_agent.engines.port import Array

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ImportError as error:
    raise JobInvalid("Parquet needs pyarrow; install muster-agent[batch]") from error

GROUP_ROWS = 65_536


class ParquetSource:
    """A file of row groups."""

    def __init__(self, path: Path) -> None:
        try:
            self._file = pq.ParquetFile(path, memory_map=True)
        except pa.ArrowInvalid as error:
            raise JobInvalid(f"{path} is no Parquet: {error}") from error
        self.rows = int(self._file.metadata.num_rows)
        self.columns = tuple(_column(field) for field in self._file.schema_arrow)
        self.identity = identity(path)

    def chunks(self, start: int, stop: int, rows: int, names: Sequence[str]) -> Iterator[Chunk]:
        """See `Source`."""
        if not names:  # Nothing but the count is asked for.
            yield from ({} for _ in range(start, stop, rows))
            return
        metadata = self._file.metadata
        first, skipped = 0, 0
        while first < metadata.num_row_groups and skipped + metadata.row_group(first).num_rows <= start:
            skipped += metadata.row_group(first).num_rows
            first += 1
        groups = list(range(first, metadata.num_row_groups))
        wanted = [column for column in self.columns if column.name in names]
        pending: Any = None
        at, skip = start, start - skipped
        for batch in self._file.iter_batches(batch_size=max(rows, 8192), row_groups=groups, columns=list(names)):
            table = pa.Table.from_batches([batch.slice(min(skip, batch.num_rows))])
            skip -= min(skip, batch.num_rows)
            pending = table if pending is None else pa.concat_tables([pending, table])
            while at < stop and pending.num_rows >= min(rows, stop - at):
                count = min(rows, stop - at)
                yield {column.name: _array(pending.column(column.name), column, at, count) for column in wanted}
                pending = pending.slice(count)
                at += count
            if at >= stop:
                return

    def close(self) -> None:
        self._file.close()


def _column(field: Any) -> Column:
    shape: list[int] = []
    kind = field.type
    while True:
        if pa.types.is_fixed_size_list(kind):
            shape.append(kind.list_size)
        elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
            shape.append(-1)
        else:
            break
        kind = kind.value_type
    if len(shape) > 1 and -1 in shape:
        return Column(field.name, np.dtype(object))
    try:
        dtype = np.dtype(kind.to_pandas_dtype())
    except (NotImplementedError, TypeError):
        dtype = np.dtype(object)
    return Column(field.name, dtype if dtype.kind in "biuf" else np.dtype(object), tuple(shape))


def _array(column: Any, wanted: Column, first_row: int, count: int) -> Array:
    taken = column.slice(0, count).combine_chunks()
    if isinstance(taken, pa.ChunkedArray):  # Which it is when there are none.
        taken = pa.concat_arrays(taken.chunks)
    if wanted.dtype.kind == "O":
        array: Array = np.empty(count, dtype=object)
        array[:] = taken.to_pylist()
        return array
    for _ in wanted.shape:
        _whole(taken, wanted, first_row)
        taken = taken.flatten()
    _whole(taken, wanted, first_row)
    values: Array = np.asarray(taken.to_numpy(zero_copy_only=False)).astype(wanted.dtype, copy=False)
    if not wanted.shape:
        return values
    if -1 in wanted.shape:
        if values.size % count:
            raise RowsRefused(
                f"rows {first_row} to {first_row + count - 1}: the lists in {wanted.name!r} differ in length"
            )
        return values.reshape(count, -1)
    return values.reshape(count, *wanted.shape)


def _whole(values: Any, wanted: Column, first_row: int) -> None:
    if values.null_count:
        raise RowsRefused(f"rows from {first_row}: {wanted.name!r} has missing values; the model takes none")


class ParquetEncoder:
    """Answers as an Arrow stream, which becomes a Parquet file in the end."""

    def __init__(self, columns: Sequence[Column]) -> None:
        """
        Raises:
            JobInvalid: an output has no fixed size.
        """
        free = next((column for column in columns if -1 in column.shape), None)
        if free is not None:
            raise JobInvalid(f"the output {free} has a free size, which .parquet does not take; write .jsonl")
        self._columns = tuple(columns)
        self._schema = pa.schema([pa.field(column.name, _type(column)) for column in columns])
        self.described = str(self._schema.to_string(show_schema_metadata=False))

    def head(self) -> bytes:
        return bytes(self._schema.serialize())

    def encode(self, chunk: Chunk) -> bytes:
        arrays = [_arrow(chunk[column.name], column) for column in self._columns]
        return bytes(pa.record_batch(arrays, schema=self._schema).serialize())

    def convert(self, part: Path, target: Path) -> bool:
        """See `Encoder`."""
        with (
            pa.memory_map(str(part)) as raw,
            pa.ipc.open_stream(raw) as stream,
            pq.ParquetWriter(target, self._schema) as writer,
        ):
            waiting: list[Any] = []
            rows = 0
            for batch in stream:
                waiting.append(batch)
                rows += batch.num_rows
                while rows >= GROUP_ROWS:
                    table = pa.Table.from_batches(waiting)
                    # As one array: how the rows came must not show in the pages.
                    writer.write_table(table.slice(0, GROUP_ROWS).combine_chunks(), row_group_size=GROUP_ROWS)
                    waiting = table.slice(GROUP_ROWS).to_batches()
                    rows -= GROUP_ROWS
            if rows:
                writer.write_table(pa.Table.from_batches(waiting).combine_chunks(), row_group_size=GROUP_ROWS)
        return True


def _type(column: Column) -> Any:
    kind = pa.string() if column.dtype.kind == "O" else pa.from_numpy_dtype(column.dtype)
    for size in reversed(column.shape):
        kind = pa.list_(kind, size)
    return kind


def _arrow(array: Array, column: Column) -> Any:
    if column.dtype.kind == "O":
        return pa.array([text(value) for value in array.tolist()], pa.string())
    kind: Any = pa.from_numpy_dtype(column.dtype)
    values = pa.array(np.ascontiguousarray(array).reshape(-1), kind)
    sizes = column.shape
    for size in reversed(sizes):
        kind = pa.list_(kind, size)
        values = pa.FixedSizeListArray.from_arrays(values, type=kind)
    assert len(values) == len(array) or not math.prod(sizes), "every row is whole"
    return values
