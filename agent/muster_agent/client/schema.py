"""What a release takes and gives, and how its tensors lie in a payload: one after another, in the manifest's order.

    payload = [ sizes of every axis, u32, padded to 16 bytes: only when SHAPED ] tensor*

A side without free sizes beyond the batch needs no sizes: the rows follow from the length. Elements of BYTES are each
preceded by their length (u32). Pure: no sockets, no engine. Both sides of the protocol share it.
"""

import math
import struct
from collections.abc import Iterable, Mapping, Sequence

import msgspec
import numpy as np

from muster_agent.engines.port import Array, InputRefused
from muster_agent.engines.tensors import DATATYPES, DTYPES, fits
from muster_shared.bundle import TensorSpec

Raw = bytes | memoryview | Array
_LENGTH = struct.Struct("<I")
_ALIGNMENT = 16


class Release(msgspec.Struct, frozen=True):
    """One release as it serves now."""

    index: int
    """Within a connection: answers name it."""
    model: str
    version: str
    digest: str
    """SHA-256 of its manifest."""
    engine: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class Side:
    """The inputs, or the outputs, of a release."""

    def __init__(self, specs: Sequence[TensorSpec]) -> None:
        self.specs = tuple(specs)
        self.names = tuple(spec.name for spec in specs)
        self.dtypes = tuple(DTYPES[spec.datatype] for spec in specs)
        self.batches = tuple(bool(spec.shape) and spec.shape[0] == -1 for spec in specs)
        """Whether axis 0 of each is the batch."""
        self.is_batched = all(self.batches)
        self.row_shapes = tuple(
            spec.shape[1:] if batch else spec.shape for spec, batch in zip(specs, self.batches, strict=True)
        )
        self.is_fixed = all(
            spec.datatype != "BYTES" and -1 not in shape for spec, shape in zip(specs, self.row_shapes, strict=True)
        )
        """Whether sizes need not be sent."""
        self.row_bytes = tuple(
            math.prod(shape) * dtype.itemsize if self.is_fixed else 0
            for shape, dtype in zip(self.row_shapes, self.dtypes, strict=True)
        )
        """Of one row of each (of the whole where there is no batch). Only when `is_fixed`."""
        is_sole = self.is_fixed and self.is_batched and len(self.specs) == 1
        self.sole = (self.dtypes[0], self.row_shapes[0]) if is_sole else None
        """Data type and shape of a row, when all is one tensor: a short cut for the usual model."""
        self._step = sum(size for size, batch in zip(self.row_bytes, self.batches, strict=True) if batch)
        self._base = sum(size for size, batch in zip(self.row_bytes, self.batches, strict=True) if not batch)

    # Fixed sizes.

    def rows(self, length: int) -> int:
        """Return the rows that `length` bytes of tensors hold; 0 when they hold no whole number of rows."""
        if not self._step:
            return 1 if length == self._base else 0
        rows, rest = divmod(length - self._base, self._step)
        return rows if not rest and rows > 0 else 0

    def cut(self, tensors: memoryview, rows: int) -> tuple[memoryview, ...]:
        """Return the tensors in `tensors`, views. Only when `is_fixed`, for `rows` as `rows` said."""
        if len(self.row_bytes) == 1:
            return (tensors,)
        views, start = [], 0
        for size, batch in zip(self.row_bytes, self.batches, strict=True):
            end = start + (size * rows if batch else size)
            views.append(tensors[start:end])
            start = end
        return tuple(views)

    def arrays(self, buffer: bytes | memoryview, offset: int, rows: int) -> tuple[Array, ...]:
        """Return the tensors from `offset` on as arrays, views. Only when `is_fixed`."""
        arrays: list[Array] = []
        for shape, size, batch, dtype in zip(self.row_shapes, self.row_bytes, self.batches, self.dtypes, strict=True):
            arrays.append(np.ndarray((rows, *shape) if batch else shape, dtype, buffer, offset))
            offset += size * rows if batch else size
        return tuple(arrays)

    # Any sizes.

    def pack(self, arrays: Sequence[Array]) -> list[bytes]:
        """Return the payload of `arrays`, which fit; with sizes unless `is_fixed`."""
        parts = [] if self.is_fixed else [pack_sizes(array.shape for array in arrays)]
        for array, dtype in zip(arrays, self.dtypes, strict=True):
            parts.append(pack_elements(array) if dtype.kind == "O" else array.tobytes())
        return parts

    def unpack(
        self, payload: memoryview, *, empty: bool = False
    ) -> tuple[tuple[Raw, ...], tuple[tuple[int, ...], ...]]:
        """Return raw tensors (views; BYTES as object arrays) and their whole shapes, from a payload with sizes.

        Args:
            empty: Whether a size may be 0, as in an output that found nothing.

        Raises:
            InputRefused: sizes do not fit the specs, or the payload is not as long as they say.
        """
        sizes = sum(len(spec.shape) for spec in self.specs)
        offset = -(-sizes * _LENGTH.size // _ALIGNMENT) * _ALIGNMENT
        if len(payload) < offset:
            raise InputRefused(self.names[0], f"has {len(payload)} bytes, too few for the sizes of all axes")
        axes = struct.unpack_from(f"<{sizes}I", payload)
        tensors: list[Raw] = []
        shapes: list[tuple[int, ...]] = []
        rows: int | None = None
        for spec, dtype, batch in zip(self.specs, self.dtypes, self.batches, strict=True):
            shape, axes = axes[: len(spec.shape)], axes[len(spec.shape) :]
            reason = None if empty and len(shape) == len(spec.shape) else fits(spec, shape)
            if reason is None and batch and not empty:
                rows = rows or shape[0]
                reason = None if shape[0] == rows else f"has a batch of {shape[0]}, but the first has {rows}"
            if reason is not None:
                raise InputRefused(spec.name, reason)
            if dtype.kind == "O":
                elements, offset = unpack_elements(spec.name, payload, offset, math.prod(shape))
                tensors.append(elements.reshape(shape))
            else:
                end = offset + math.prod(shape) * dtype.itemsize
                if end > len(payload):
                    raise InputRefused(spec.name, f"ends after {len(payload) - offset} of {end - offset} bytes")
                tensors.append(payload[offset:end])
                offset = end
            shapes.append(shape)
        if offset != len(payload):
            raise InputRefused(self.names[-1], f"is followed by {len(payload) - offset} bytes too many")
        return tuple(tensors), tuple(shapes)

    def unpack_arrays(self, payload: memoryview) -> list[Array]:
        """Return the tensors of a payload with sizes as arrays, views; a size may be 0.

        Raises:
            InputRefused: the payload is not as long as its sizes say.
        """
        tensors, shapes = self.unpack(payload, empty=True)
        return [
            tensor if isinstance(tensor, np.ndarray) else np.frombuffer(tensor, dtype).reshape(shape)
            for tensor, shape, dtype in zip(tensors, shapes, self.dtypes, strict=True)
        ]

    def fit(self, given: Array | Mapping[str, Array]) -> tuple[tuple[Array, ...], bool]:
        """Return the arrays that `given` means, in order, and whether it was one row without its batch axis.

        An array of another type is taken only where no value can change (as int32 for an INT64 input).

        Raises:
            InputRefused: it does not fit; the message names the tensor.
        """
        if not isinstance(given, Mapping):
            if len(self.specs) != 1:
                raise InputRefused(self.names[0], f"is not alone: give a mapping of {list(self.names)} to arrays")
            array, single = self._fit_one(0, given)
            return (array,), single
        unknown = [name for name in given if name not in self.names]
        if unknown:
            raise InputRefused(str(unknown[0])[:80], f"is not an input of this model; it has {list(self.names)}")
        missing = [name for name in self.names if name not in given]
        if missing:
            raise InputRefused(missing[0], "is missing")
        fitted = [self._fit_one(index, given[name]) for index, name in enumerate(self.names)]
        alone = {single for (_, single), batch in zip(fitted, self.batches, strict=True) if batch}
        if len(alone) > 1:
            raise InputRefused(self.names[0], "has a batch axis where another has none; give all of them one, or none")
        rows = {len(array) for (array, _), batch in zip(fitted, self.batches, strict=True) if batch}
        if len(rows) > 1:
            raise InputRefused(self.names[0], f"and the others differ in their batch: {sorted(rows)}")
        return tuple(array for array, _ in fitted), alone == {True}

    def _fit_one(self, index: int, given: Array) -> tuple[Array, bool]:
        spec, dtype = self.specs[index], self.dtypes[index]
        array: Array = np.asarray(given)
        single = self.batches[index] and array.ndim == len(spec.shape) - 1
        if single:
            array = array[np.newaxis]
        reason = fits(spec, array.shape)
        if reason is not None:
            raise InputRefused(spec.name, reason)
        if array.dtype != dtype:
            if dtype.kind == "O" and array.dtype.kind in "SU":
                return _to_bytes(array), single
            if dtype.kind == "O" or not np.can_cast(array.dtype, dtype, "safe"):
                actual = DATATYPES.get(array.dtype, str(array.dtype))
                raise InputRefused(
                    spec.name, f"is {actual}; the model takes {spec.datatype}: use .astype({dtype.name!r})"
                )
            array = array.astype(dtype)
        return array, single


def pack_sizes(shapes: Iterable[tuple[int, ...]]) -> bytes:
    """Return the sizes of all axes of all tensors, padded."""
    sizes = [size for shape in shapes for size in shape]
    raw = struct.pack(f"<{len(sizes)}I", *sizes)
    return raw + bytes(-len(raw) % _ALIGNMENT)


def pack_elements(array: Array) -> bytes:
    """Return the elements of a BYTES array, each preceded by its length."""
    elements: list[object] = array.ravel().tolist()
    parts: list[bytes] = []
    for element in elements:
        raw = element.encode() if isinstance(element, str) else element
        if not isinstance(raw, bytes):
            raise InputRefused("BYTES", f"has an element of type {type(element).__name__}; give str or bytes")
        parts += (_LENGTH.pack(len(raw)), raw)
    return b"".join(parts)


def unpack_elements(name: str, payload: memoryview, offset: int, count: int) -> tuple[Array, int]:
    """Return `count` BYTES elements, an object array, and where they end.

    Raises:
        InputRefused: the payload ends before.
    """
    if count > (len(payload) - offset) // _LENGTH.size:
        raise InputRefused(name, f"has {len(payload) - offset} bytes, too few for {count} elements")
    elements = np.empty(count, dtype=object)
    for index in range(count):
        start = offset + _LENGTH.size
        offset = start + _LENGTH.unpack_from(payload, offset)[0] if start <= len(payload) else len(payload) + 1
        if offset > len(payload):
            raise InputRefused(name, f"ends within element {index}")
        elements[index] = bytes(payload[start:offset])
    return elements, offset


def _to_bytes(array: Array) -> Array:
    raw = np.empty(array.shape, dtype=object)
    raw.ravel()[:] = [text.encode() if isinstance(text, str) else text for text in array.ravel().tolist()]
    return raw
