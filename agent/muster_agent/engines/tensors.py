"""Data types and shapes: what the manifest calls them, what NumPy calls them, and whether arrays and models fit.

Pure: it runs nothing. The engines and the V2 codec share it, so both refuse the same things in the same words.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from muster_agent.engines.port import Array, InputRefused, ModelUnloadable
from muster_shared.bundle import DataType, TensorSpec

DTYPES: dict[DataType, np.dtype[np.generic]] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BYTES": np.dtype("O"),
}
DATATYPES: dict[np.dtype[np.generic], DataType] = {dtype: datatype for datatype, dtype in DTYPES.items()}
RANK_MAX = 16  # More than any engine takes; it bounds what a request may make us nest.

ModelTensor = tuple[str, str, tuple[int, ...] | None]
"""What an engine says of a tensor: name, data type in the manifest's words (or its own), shape with -1 for free sizes,
or None when even the rank is free."""


def fits(spec: TensorSpec, shape: Sequence[int]) -> str | None:
    """Return why an array of `shape` does not fit `spec`, or None when it does."""
    if len(shape) == len(spec.shape):
        for want, size in zip(spec.shape, shape, strict=True):
            if size < 1 or (want != size and want != -1):
                break
        else:
            return None
    return f"has shape {list(shape)}; the model takes {list(spec.shape)} (-1 is any size from 1)"


def check_inputs(specs: Sequence[TensorSpec], inputs: Mapping[str, Array]) -> None:
    """Refuse inputs that the manifest does not describe.

    Engines must not be asked: OpenVINO runs a missing input with the *previous* request's data, and casts a wrong data
    type without a word.

    Raises:
        InputRefused: an input is missing, unknown, of another data type or shape, or of another batch than the first.
    """
    rows: tuple[str, int] | None = None
    for spec in specs:
        array = inputs.get(spec.name)
        if array is None:
            raise InputRefused(spec.name, "is missing")
        if array.dtype != DTYPES[spec.datatype]:
            actual = DATATYPES.get(array.dtype, str(array.dtype))
            raise InputRefused(spec.name, f"is {actual}; the model takes {spec.datatype}")
        reason = fits(spec, array.shape)
        if reason is not None:
            raise InputRefused(spec.name, reason)
        if spec.shape and spec.shape[0] == -1:
            if rows is not None and rows[1] != array.shape[0]:
                raise InputRefused(spec.name, f"has a batch of {array.shape[0]}, but {rows[0]!r} has {rows[1]}")
            rows = rows or (spec.name, array.shape[0])
    if len(inputs) != len(specs):
        known = {spec.name for spec in specs}
        raise InputRefused(next(name for name in inputs if name not in known), "is not an input of this model")


def check_model(specs: Sequence[TensorSpec], actual: Iterable[ModelTensor], what: str, *, all_needed: bool) -> None:
    """Refuse a model whose `what` ("input", "output") differ from those in the manifest.

    A size that is free in the model may be fixed in the manifest, not the other way round.

    Raises:
        ModelUnloadable: they differ; the message names the tensor.
    """
    found = {name: (datatype, shape) for name, datatype, shape in actual}
    for spec in specs:
        if spec.name not in found:
            raise ModelUnloadable(f"the manifest names {what} {spec.name!r}, the model has {sorted(found)}")
        datatype, shape = found.pop(spec.name)
        if datatype != spec.datatype:
            raise ModelUnloadable(f"{what} {spec.name!r} is {datatype} in the model, {spec.datatype} in the manifest")
        if shape is not None and (
            len(shape) != len(spec.shape)
            or any(
                size not in (-1, want) and not (what == "output" and want == -1)
                for want, size in zip(spec.shape, shape, strict=True)
            )
        ):
            raise ModelUnloadable(
                f"{what} {spec.name!r} has shape {list(shape)} in the model, {list(spec.shape)} in the manifest"
            )
    if all_needed and found:
        raise ModelUnloadable(f"the model needs {what} {sorted(found)[0]!r}, which the manifest does not name")


def ready(array: Array) -> Array:
    """Return `array` as an engine may read it: itself, or a copy when it is not contiguous and aligned.

    A view into a request's body starts wherever its JSON header ended; processors other than x86 may fault on that.
    """
    if array.flags.c_contiguous and array.flags.aligned:
        return array
    return array.copy(order="C")
