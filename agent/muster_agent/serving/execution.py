"""One run of the engine for one or more calls: join their tensors, check the values, run, and share out the answer.

What is wrong with one call is that call's own error: the others of its batch are run without it. It holds no queue and
chooses no batch; it runs on whatever thread `rooms` calls it.
"""

import math
import time
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from muster_agent.engines.port import Array, EngineError, InferenceFailed, InputRefused, Session
from muster_agent.engines.tensors import DTYPES
from muster_agent.serving.call import Batch, Call
from muster_shared.bundle import TensorSpec
from muster_shared.errors import MusterError

SQUARED_MAX = 8192  # Elements.


class Times(NamedTuple):
    """When a run began, when the engine did, and when the engine had ended: nanoseconds of the monotonic clock."""

    began_ns: int
    computing_ns: int
    computed_ns: int


class Execution:
    """The engine's side of one served release."""

    def __init__(
        self, session: Session, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], *, rows_max: int = 0
    ) -> None:
        """
        Args:
            rows_max: Of one run of the engine; a call with more is run in parts. 0: any number.
        """
        self._session = session
        self._rows_max = rows_max
        self._inputs = tuple(inputs)
        self._dtypes = tuple(DTYPES[spec.datatype] for spec in inputs)
        self._batched = tuple(bool(spec.shape) and spec.shape[0] == -1 for spec in inputs)
        self._guards = tuple(spec if _has_bounds(spec) else None for spec in inputs)
        self.rows_axis = takes_batches(inputs, outputs)

    def run(self, calls: Sequence[Call]) -> Times:
        """Give each call its outcome (`batch` and `start`, or `error`), and return when what happened."""
        began = computing = time.perf_counter_ns()
        try:
            rows = calls[0].rows if len(calls) == 1 else sum([call.rows for call in calls])
            arrays = self._join(calls, rows)
            computing = time.perf_counter_ns()
            if 0 < self._rows_max < rows and self.rows_axis:
                results = self._run_in_parts(arrays, rows)
            else:
                results = self._session.run_arrays(arrays)
            computed = time.perf_counter_ns()
            batch = Batch(results, computed - computing, rows_axis=self.rows_axis)
            if self.rows_axis:
                for array in results:
                    if array.shape[:1] != (rows,):
                        raise InferenceFailed(f"the engine answered {rows} rows with another number of rows")
        except Exception as error:
            if len(calls) > 1:  # Somebody's input, or the engine's mood: nobody pays for another.
                for call in calls:
                    self.run((call,))
                return Times(began, computing, time.perf_counter_ns())
            calls[0].error = error if isinstance(error, MusterError) else _failed(error)
            return Times(began, computing, time.perf_counter_ns())
        at = 0
        for call in calls:
            call.batch = batch
            call.start = at
            at += call.rows
        return Times(began, computing, computed)

    def _run_in_parts(self, arrays: tuple[Array, ...], rows: int) -> list[Array]:
        """Return what the engine answers to a few rows at a time: more gain nothing, and their memory stays taken."""
        parts = [
            self._session.run_arrays(tuple(array[at : at + self._rows_max] for array in arrays))
            for at in range(0, rows, self._rows_max)
        ]
        return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]

    def _join(self, calls: Sequence[Call], rows: int) -> tuple[Array, ...]:
        """Return each input of all calls as one array, its values checked."""
        first = calls[0]
        arrays: list[Array] = []
        for index, dtype in enumerate(self._dtypes):
            shape = (rows, *first.shapes[index]) if self._batched[index] else first.shapes[index]
            if dtype.kind == "O":
                parts = [np.asarray(call.tensors[index], dtype=object) for call in calls]
                arrays.append(np.concatenate(parts).reshape(shape) if len(parts) > 1 else parts[0].reshape(shape))
                continue
            raw = first.tensors[index] if len(calls) == 1 else _joined(calls, index)
            flat = np.frombuffer(raw, dtype)
            guard = self._guards[index]
            if guard is None or (guard.min is guard.max is None and _has_finite_square(flat)):
                arrays.append(flat.reshape(shape))
            else:
                array = flat.reshape(shape)
                _check(guard, array)
                arrays.append(array)
        return tuple(arrays)


def _joined(calls: Sequence[Call], index: int) -> bytes:
    return b"".join(cast(list[bytes], [call.tensors[index] for call in calls]))  # None is an array: this is not BYTES.


def takes_batches(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> bool:
    """Return whether axis 0 of every input and output is the batch: only then can calls share a run."""
    return all(bool(spec.shape) and spec.shape[0] == -1 for spec in (*inputs, *outputs))


def _has_bounds(spec: TensorSpec) -> bool:
    if spec.datatype in ("BYTES", "BOOL"):
        return False
    return (spec.finite and spec.datatype.startswith("FP")) or spec.min is not None or spec.max is not None


def _check(spec: TensorSpec, tensor: Array) -> None:
    """Refuse values that the manifest does not allow.

    Raises:
        InputRefused: the message names the tensor and the place of the first such value.
    """
    array = cast(npt.NDArray[Any], tensor)  # A number type, but only the manifest knows which.
    bad: npt.NDArray[np.bool_] | None = None
    # A sum is finite only when every term is, and costs a third of asking each; an overflow of it decides nothing.
    if spec.finite and array.dtype.kind == "f" and not _has_finite_sum(array):
        bad = ~np.isfinite(array)
    if bad is not None and bool(bad.any()):
        raise InputRefused(spec.name, f"has a value that is not a finite number at {_place(bad)}")
    if spec.min is not None and not bool(array.min() >= spec.min):
        raise InputRefused(spec.name, f"has a value below {spec.min:g} at {_place(~(array >= spec.min))}")
    if spec.max is not None and not bool(array.max() <= spec.max):
        raise InputRefused(spec.name, f"has a value above {spec.max:g} at {_place(~(array <= spec.max))}")


def _has_finite_square(flat: npt.NDArray[Any]) -> bool:
    """Whether the product of a small vector with itself is finite: then each element is. The cheapest way to ask.

    A large one is left to others: BLAS would wake its threads for it.
    """
    return flat.size <= SQUARED_MAX and flat.itemsize >= 4 and math.isfinite(flat.dot(flat))  # May overflow: then no.


def _has_finite_sum(array: npt.NDArray[Any]) -> bool:
    wide = np.float32 if array.itemsize < 4 else None  # In half precision 260 pixels of 255 are more than it holds.
    return math.isfinite(np.add.reduce(array, axis=None, dtype=wide))


def _place(bad: npt.NDArray[np.bool_]) -> list[int]:
    return [int(axis) for axis in np.unravel_index(int(np.argmax(bad)), bad.shape)]


def _failed(error: Exception) -> EngineError:
    return InferenceFailed(f"{type(error).__name__}: {error}")
