"""Steps from tensor to tensor, before the model. NumPy, in FP32 where numbers are computed."""

import numpy as np
import numpy.typing as npt

from muster_agent.engines.port import Array
from muster_agent.engines.tensors import DTYPES
from muster_agent.pipeline.value import Context, PrepareOperation, Unfit
from muster_shared import pipeline as p
from muster_shared.bundle import TensorSpec

Floats = npt.NDArray[np.float32]


def normalise(step: p.Normalise, channels: int | None) -> PrepareOperation:
    """Return the operation of `step`. `channels`: the axis that mean and std are along, when they have several."""
    mean, std = np.asarray(step.mean, np.float32), np.asarray(step.std, np.float32)
    divisor = np.float32(step.divisor)
    has_mean, has_std = bool((mean != 0).any()), bool((std != 1).any())

    def operation(value: object, _: Context) -> Array:
        assert isinstance(value, np.ndarray)
        out = np.empty(value.shape, np.float32)
        # The result is written in order, whatever the order of the pixels was; nothing else is allocated.
        np.divide(value, divisor, out=out, casting="unsafe")
        if has_mean:
            out -= _along(mean, out, channels)
        if has_std:
            out /= _along(std, out, channels)
        return out

    return operation


def arithmetic(step: p.Quantise | p.Cast | p.Reshape | p.Transpose | p.FitLength) -> PrepareOperation:
    """Return the operation of a step on numbers."""

    def operation(value: object, _: Context) -> Array:
        assert isinstance(value, np.ndarray)
        match step:
            case p.Quantise():
                return _quantise(step, value)
            case p.Cast():
                dtype = DTYPES[step.datatype]
                whole = np.rint(value) if value.dtype.kind == "f" and dtype.kind != "f" else value
                return whole.astype(dtype, copy=False)
            case p.Reshape():
                try:
                    return value.reshape(step.shape)
                except ValueError as error:
                    raise Unfit(f"gave {value.size} numbers, which do not divide into {list(step.shape)}") from error
            case p.Transpose():
                return value.transpose(step.axes)
            case p.FitLength():
                return _fit_length(step, value)

    return operation


def constant(step: p.Constant, spec: TensorSpec) -> PrepareOperation:
    """Return the operation that feeds `spec` and lets the value pass."""
    fixed = np.array(step.values, DTYPES[spec.datatype]).reshape(step.shape)
    if fixed.ndim < len(spec.shape):
        fixed = fixed[np.newaxis]
    fixed.setflags(write=False)

    def operation(value: object, context: Context) -> object:
        context.fed[step.input] = fixed
        return value

    return operation


def _quantise(step: p.Quantise, value: Array) -> Array:
    limits = np.iinfo(np.uint8 if step.datatype == "UINT8" else np.int8)
    scaled = np.divide(value, np.float32(step.scale), dtype=np.float32, casting="unsafe")
    np.rint(scaled, out=scaled)
    scaled += np.float32(step.zero_point)
    return np.clip(scaled, limits.min, limits.max).astype(DTYPES[step.datatype])


def _fit_length(step: p.FitLength, value: Array) -> Array:
    if len(value) == step.length:
        return value
    if len(value) > step.length:
        return value[: step.length] if step.at == "end" else value[-step.length :]
    out = np.full(step.length, step.value, value.dtype)
    if step.at == "end":
        out[: len(value)] = value
    else:
        out[-len(value) :] = value
    return out


def _along(numbers: Floats, like: Floats, channels: int | None) -> Floats:
    """Return `numbers` so that they go along the axis `channels` of `like`."""
    if len(numbers) == 1 or channels is None:
        return numbers
    shape = [1] * like.ndim
    shape[channels] = len(numbers)
    return numbers.reshape(shape)
