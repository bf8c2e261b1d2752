"""Finish steps on numbers: transforms of outputs, and what names classes."""

import math

import numpy as np
import numpy.typing as npt

from muster_agent.engines.port import Array
from muster_agent.pipeline.value import FinishOperation, Reading, Unfit
from muster_shared import pipeline as p
from muster_shared.pipeline_finish import VALUES_MAX

Transform = p.Softmax | p.Sigmoid | p.Dequantise | p.Pool | p.Permute | p.Slice


def transform(step: Transform, source: str) -> FinishOperation:
    """Return the operation of a step from tensor to tensor. `source`: what it reads, resolved."""
    target = step.into or source

    def operation(reading: Reading) -> None:
        reading.tensors[target] = _transformed(step, reading.tensors[source])

    return operation


def _transformed(step: Transform, tensor: Array) -> Array:
    match step:
        case p.Softmax():
            return softmax(tensor)
        case p.Sigmoid():
            # Of the magnitude, so that no exponential overflows.
            x = tensor.astype(np.float32)
            small = np.exp(-np.abs(x))
            return np.where(x >= 0, 1 / (1 + small), small / (1 + small)).astype(np.float32, copy=False)
        case p.Dequantise():
            return (tensor.astype(np.float32) - np.float32(step.zero_point)) * np.float32(step.scale)
        case p.Pool():
            if not len(tensor):
                raise Unfit("there is no row to pool")
            pooled: Array = tensor.mean(axis=0, dtype=np.float32) if step.how == "mean" else tensor.max(axis=0)
            return pooled
        case p.Permute():
            return tensor.transpose(step.axes)
        case p.Slice():
            index = (slice(None),) * step.axis + (step.start if step.squeeze else slice(step.start, step.stop),)
            return tensor[index]


def softmax(tensor: Array) -> Array:
    """Return float32 of the same shape: exp(x - max) / sum, along the last axis."""
    x = tensor.astype(np.float32)
    x -= x.max(axis=-1, keepdims=True, initial=-np.inf)
    np.exp(x, out=x)
    x /= x.sum(axis=-1, keepdims=True)
    return x


def values(step: p.Values) -> FinishOperation:
    """Return the operation of `step`."""

    def operation(reading: Reading) -> None:
        tensor = reading.tensor(step.output)
        if tensor.size > VALUES_MAX:
            raise Unfit(f"there are {tensor.size} numbers; an answer holds {VALUES_MAX}")
        if step.decimals >= 0 and tensor.dtype.kind == "f":
            tensor = np.round(tensor.astype(np.float64), step.decimals)
        reading.answer[step.field] = float(tensor) if tensor.ndim == 0 else tensor.tolist()

    return operation


def top_k(step: p.TopK, labels: tuple[str, ...]) -> FinishOperation:
    """Return the operation of `step`."""

    def operation(reading: Reading) -> None:
        scores = comparable(reading.tensor(step.output))
        best = np.argsort(-scores, kind="stable")[: step.k].tolist()
        floor = -math.inf if step.score_min is None else step.score_min
        reading.answer[step.field] = [
            {"label": labels[index], "index": index, "score": score}
            for index in best
            if (score := float(scores[index])) >= floor
        ]

    return operation


def label(step: p.Label, labels: tuple[str, ...]) -> FinishOperation:
    """Return the operation of `step`."""
    thresholds = [step.thresholds.get(name, step.threshold) for name in labels]
    names = [step.rename.get(name, name) for name in labels]

    def operation(reading: Reading) -> None:
        scores = comparable(reading.tensor(step.output))
        index = int(scores.argmax())
        score = float(scores[index])
        reading.answer[step.field] = names[index] if score >= thresholds[index] else step.unknown
        reading.answer[step.score_field] = score

    return operation


def comparable(tensor: Array) -> npt.NDArray[np.float64]:
    """Return `tensor` as FP64, which holds every score as it is: unsigned numbers cannot be negated."""
    return tensor.astype(np.float64)
