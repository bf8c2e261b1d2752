"""One inference under way: what a front (HTTP, gRPC, frames, predict) hands to the service, and how it is answered.

    front: Call(...) ──> Service.submit ──> Room ──> Batch ──> call.settle()      once, on the serving loop
                             └── raises MusterError: refused, nothing was queued, `settle` is never called

Tensors travel as raw bytes, row-major and little-endian, so that forming a batch is one `join`; only BYTES tensors are
object arrays. It knows no protocol and no engine.
"""

from collections.abc import Sequence
from enum import IntEnum

import numpy as np

from muster_agent.engines.port import Array
from muster_shared.errors import MusterError

Raw = bytes | memoryview | Array
"""One tensor: bytes, or an object array of `bytes` for BYTES."""
Shape = tuple[int, ...]


COPIED_BYTES_MAX = 64 * 1024  # Copying so much costs less than making a view of it.


class Priority(IntEnum):
    """Who goes first: a class waits while any call of a class before it does."""

    NOW = 0
    SOON = 1
    LATER = 2  # Batch work: only the capacity that the others leave.


class Batch:
    """What one call of the engine gave: arrays in the manifest's order of outputs, shared by the calls that were in it.

    `rows_axis`: whether axis 0 of every output is the batch; else the batch holds one call.
    """

    __slots__ = ("_raw", "arrays", "engine_ns", "rows_axis")

    def __init__(self, arrays: Sequence[Array], engine_ns: int, *, rows_axis: bool) -> None:
        self.arrays = arrays
        self.engine_ns = engine_ns
        self.rows_axis = rows_axis
        self._raw: list[bytes | None] = [None] * len(arrays)

    def raw(self, output: int) -> bytes:
        """Return all of one output as bytes, made once."""
        raw = self._raw[output]
        if raw is None:
            raw = self._raw[output] = self.arrays[output].tobytes()
        return raw


class Call:
    """One request for one inference of `rows` rows. A front derives its own, with `settle`."""

    __slots__ = (
        "arrived_ns",
        "batch",
        "cancelled",
        "count",
        "deadline_ns",
        "error",
        "number",
        "origin",
        "priority",
        "request_id",
        "rows",
        "sequence",
        "settled",
        "shapes",
        "start",
        "tensors",
        "traceparent",
    )

    def __init__(self, tensors: tuple[Raw, ...], shapes: tuple[Shape, ...], rows: int, *, request_id: str = "") -> None:
        """
        Args:
            tensors: Of each input that the caller gives, in the manifest's order.
            shapes: Of each, without axis 0 where that is the batch: calls with equal shapes can share a batch.
            rows: Axis 0; 1 for a model without a batch axis.
            request_id: As the caller named it; empty: the service gives one.
        """
        self.tensors = tensors
        self.shapes = shapes
        self.rows = rows
        self.count = 1  # Requests that it stands for: a front may make one call of several.
        self.request_id = request_id
        self.origin = 0  # Of calls with the same one there is only one at a time; 0: nothing is known.
        self.number = 0  # Of the service's own counting; later calls have larger ones.
        self.priority: int = Priority.NOW
        self.sequence: tuple[int | str, bool, bool] | None = None  # (id, starts, ends), for stateful models.
        self.traceparent = ""  # Of the caller's trace.
        self.arrived_ns = 0
        self.deadline_ns = 0
        self.cancelled = False
        self.settled = False
        self.batch: Batch | None = None
        self.start = 0
        self.error: MusterError | None = None

    def settle(self) -> None:
        """Take the outcome: `error`, or `batch` and `start`. On the serving loop; must not raise."""
        raise NotImplementedError

    def cancel(self) -> None:
        """The caller is gone: what has not begun is spared, and `settle` may still be called."""
        self.cancelled = True

    def output(self, index: int) -> Array:
        """Return one output of this call, a view. Only after it succeeded."""
        batch = self.batch
        assert batch is not None, "the call has no answer"
        array = batch.arrays[index]
        return array[self.start : self.start + self.rows] if batch.rows_axis else array

    def raw(self, index: int) -> bytes | memoryview:
        """Return one output of this call as bytes; not for BYTES tensors. Only after it succeeded."""
        batch = self.batch
        assert batch is not None, "the call has no answer"
        array = batch.arrays[index]
        if not batch.rows_axis or self.rows == len(array):
            if array.nbytes <= COPIED_BYTES_MAX:
                return array.tobytes()
            return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        row_bytes = array.nbytes // len(array)
        return batch.raw(index)[self.start * row_bytes : (self.start + self.rows) * row_bytes]
