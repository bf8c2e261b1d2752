"""Which columns of a file feed which tensor of a model, and how their values become the tensor's. Pure.

--input name=a,b,c      these columns, in this order, are the elements of a row of `name`
--columns a,b,c         the same for the only input
neither                 columns named as the inputs are; else, for one input, the one array column that has as many
                        elements as a row, or all numbers in the order of the file
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from muster_agent.batch.errors import JobInvalid, RowsRefused
from muster_agent.client.schema import Side
from muster_agent.engines.port import Array

Chunk = dict[str, Array]
"""Rows of some columns: arrays of equal length by column; text, bytes and None in object arrays."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a file."""

    name: str
    dtype: np.dtype[np.generic]
    """Of an element; object for text and bytes."""
    shape: tuple[int, ...] = ()
    """Of one row; (-1,) for lists whose length only the rows tell."""

    @property
    def is_number(self) -> bool:
        return self.dtype.kind in "biuf"

    def __str__(self) -> str:
        size = f"[{', '.join('?' if axis < 0 else str(axis) for axis in self.shape)}]" if self.shape else ""
        return f"{self.name} {'text or bytes' if self.dtype.kind == 'O' else self.dtype.name}{size}"


@dataclass(frozen=True, slots=True)
class Feed:
    """One tensor, and the columns that it is made of."""

    tensor: str
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    """Of one row."""
    columns: tuple[str, ...]


def feeds(
    side: Side,
    columns: Sequence[Column],
    *,
    chosen: Sequence[str] = (),
    inputs: Mapping[str, Sequence[str]] | None = None,
    keep: Sequence[str] = (),
) -> tuple[Feed, ...]:
    """Return what feeds each input of a model.

    Args:
        chosen: Columns for the only input (`--columns`); empty: by name or by size.
        inputs: Columns by input (`--input`).
        keep: Columns that are copied to the output: not taken for an input unless named.
    Raises:
        JobInvalid: there is no such column or input, or the sizes do not fit.
    """
    known = {column.name: column for column in columns}
    given = {name: tuple(names) for name, names in (inputs or {}).items()}
    if chosen:
        if given or len(side.names) != 1:
            raise JobInvalid(
                f"--columns is for a model with one input; use --input NAME=COLUMNS for {_list(side.names)}"
            )
        given[side.names[0]] = tuple(chosen)
    for name, names in given.items():
        if name not in side.names:
            raise JobInvalid(f"the model has no input {name!r}; it has {_list(side.names)}")
        for column in names:
            if column not in known:
                raise JobInvalid(f"the input file has no column {column!r}; it has {_list(known)}")
    for column in keep:
        if column not in known:
            raise JobInvalid(f"--keep: the input file has no column {column!r}; it has {_list(known)}")
    for name in side.names:
        if name not in given and name in known:
            given[name] = (name,)
    missing = [name for name in side.names if name not in given]
    if missing and len(side.names) > 1:
        raise JobInvalid(f"nothing feeds the input {missing[0]!r}; name its columns with --input {missing[0]}=...")
    found = []
    for name, dtype, shape in zip(side.names, side.dtypes, side.row_shapes, strict=True):
        names = given.get(name) or _by_size(shape, dtype, [column for column in columns if column.name not in keep])
        _check(name, dtype, shape, [known[column] for column in names])
        found.append(Feed(name, dtype, shape, names))
    return tuple(found)


def tensor(feed: Feed, chunk: Chunk, first_row: int) -> Array:
    """Return the tensor of the rows in `chunk`, [rows, *feed.shape]; a view where the columns allow it.

    Args:
        first_row: Of the chunk within the file, for messages.
    Raises:
        RowsRefused: a value is missing, or has no equal in the tensor's data type; the message names the row.
    """
    parts = [_cast(chunk[name], feed.dtype, name, first_row) for name in feed.columns]
    rows = len(parts[0])
    if len(parts) > 1:
        joined = np.empty((rows, len(parts)), feed.dtype)
        for index, part in enumerate(parts):
            joined[:, index] = part
        parts = [joined]
    try:
        return parts[0].reshape((rows, *feed.shape))
    except ValueError as error:
        each = parts[0].size // rows
        raise RowsRefused(
            f"rows {first_row} to {first_row + rows - 1}: {feed.columns[0]!r} has {each} elements in a row, which do"
            f" not make {list(feed.shape)}"
        ) from error


def _by_size(shape: tuple[int, ...], dtype: np.dtype[np.generic], columns: Sequence[Column]) -> tuple[str, ...]:
    """Return the columns that the file's shape suggests for its only input."""
    if dtype.kind == "O":
        texts = [column for column in columns if column.dtype.kind == "O" and not column.shape]
        if len(texts) != 1:
            raise JobInvalid(f"the model takes text or bytes; name the column with --columns, of {_list_of(columns)}")
        return (texts[0].name,)
    arrays = [column for column in columns if column.is_number and column.shape and _fits(shape, column.shape)]
    if len(arrays) == 1:
        return (arrays[0].name,)
    blobs = [column for column in columns if column.dtype.kind == "O"]
    numbers = [column for column in columns if column.is_number and not column.shape]
    if not numbers and not arrays and len(blobs) == 1:
        return (blobs[0].name,)  # Raw elements, as `tobytes` writes them.
    if arrays or not numbers:
        raise JobInvalid(f"which columns are the input is not clear; name them with --columns, of {_list_of(columns)}")
    return tuple(column.name for column in numbers)


def _fits(shape: tuple[int, ...], given: tuple[int, ...]) -> bool:
    if -1 in given:
        return True
    count, wanted = math.prod(given), math.prod(size for size in shape if size >= 0)
    return count % wanted == 0 if -1 in shape else count == wanted


def _check(name: str, dtype: np.dtype[np.generic], shape: tuple[int, ...], columns: Sequence[Column]) -> None:
    if shape.count(-1) > 1 and columns[0].shape != shape and len(columns[0].shape) != len(shape):
        raise JobInvalid(
            f"the input {name!r} has several free sizes; feed it from one column with an array of its rank"
        )
    if dtype.kind == "O":
        if len(columns) != 1 or columns[0].dtype.kind != "O":
            raise JobInvalid(f"the input {name!r} takes text or bytes from one column, not {_list_of(columns)}")
        return
    if len(columns) == 1:
        column = columns[0]
        if column.dtype.kind != "O" and not _fits(shape, column.shape):
            raise JobInvalid(f"a row of the input {name!r} is {list(shape)}; the column is {column}")
        return
    other = next((column for column in columns if column.shape or not column.is_number), None)
    if other is not None:
        raise JobInvalid(f"the input {name!r} is put together from columns of single numbers; this is none: {other}")
    if not _fits(shape, (len(columns),)):
        raise JobInvalid(
            f"a row of the input {name!r} is {list(shape)}, {math.prod(shape)} elements; it would get {len(columns)}"
            f" columns, {_list([column.name for column in columns])}: name the right ones with --columns, or the others"
            " with --keep"
        )


def _cast(array: Array, dtype: np.dtype[np.generic], name: str, first_row: int) -> Array:
    if array.dtype == dtype and dtype.kind != "O":
        return array
    if array.dtype.kind == "O":
        return _from_objects(array, dtype, name, first_row)
    if dtype.kind == "O":
        raise RowsRefused(f"{name!r} has numbers; the model takes text or bytes")
    if np.can_cast(array.dtype, dtype, "same_kind" if dtype.kind == "f" else "safe"):
        return array.astype(dtype)
    with np.errstate(invalid="ignore", over="ignore"):
        cast = array.astype(dtype)
    wrong = cast.astype(array.dtype) != array
    if dtype.kind in "iu":
        wrong |= np.less(cast, 0) != np.less(array, 0)  # Between signed and unsigned the way back undoes the harm.
    # Beyond 2**53 a float has no odd integers, and the way back rounds: what is that large is not believed.
    if dtype.kind in "iu" and array.dtype.kind == "f":
        wrong |= np.abs(array.astype(np.float64)) >= 2.0**53
    elif dtype.kind == "f":
        wrong[...] = False  # Integers into floats: rounding is what a float is.
    if wrong.any():
        row = int(np.argmax(wrong.reshape(len(array), -1).any(axis=1)))
        raise RowsRefused(f"row {first_row + row}: {name!r} has a value that is no {dtype.name}")
    return cast


def _from_objects(array: Array, dtype: np.dtype[np.generic], name: str, first_row: int) -> Array:
    """Return text and bytes as BYTES elements, or the numbers whose raw bytes they are."""
    values: list[object] = array.tolist()
    raw: list[bytes] = []
    for row, value in enumerate(values):
        if isinstance(value, str) and dtype.kind == "O":
            raw.append(value.encode())
        elif isinstance(value, bytes):
            raw.append(value)
        else:
            what = "no value" if value is None else f"a {type(value).__name__}"
            raise RowsRefused(f"row {first_row + row}: {name!r} has {what}; the model takes {_kind(dtype)}")
    if dtype.kind == "O":
        elements: Array = np.empty(len(raw), dtype=object)
        elements[:] = raw
        return elements
    lengths = {len(part) for part in raw}
    if len(lengths) != 1 or lengths.pop() % dtype.itemsize:
        raise RowsRefused(f"rows from {first_row}: the bytes in {name!r} are not {dtype.name} of one length")
    return np.frombuffer(b"".join(raw), dtype).reshape(len(raw), -1)


def _kind(dtype: np.dtype[np.generic]) -> str:
    return "text or bytes" if dtype.kind == "O" else dtype.name


def _list(names: Sequence[str] | Mapping[str, object]) -> str:
    shown = [str(name) for name in names]
    return ", ".join(shown[:12]) + (f" and {len(shown) - 12} more" if len(shown) > 12 else "")


def _list_of(columns: Sequence[Column]) -> str:
    return _list([str(column) for column in columns]) or "none"
