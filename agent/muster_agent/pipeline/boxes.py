"""Object detection: candidates, non-maximum suppression, and the way back to the image as it was sent."""

import numpy as np
import numpy.typing as npt

from muster_agent.engines.port import Array
from muster_agent.pipeline.value import FinishOperation, Reading, Unfit, View
from muster_shared import pipeline as p

Floats = npt.NDArray[np.float32]


def boxes(step: p.Boxes, labels: tuple[str, ...]) -> FinishOperation:
    """Return the operation of `step`."""

    def operation(reading: Reading) -> None:
        view = reading.context.view
        assert view is not None
        scores, classes = _best(step, reading)
        raw = reading.tensors[step.boxes].astype(np.float32)
        # A score without a number compares as false; a box without one lies nowhere.
        wanted = np.flatnonzero((scores >= step.score_min) & np.isfinite(raw).all(axis=1))
        wanted = wanted[np.argsort(-scores[wanted], kind="stable")[: step.candidates_max]]
        scores, classes = scores[wanted], classes[wanted]
        seen = corners(step, raw[wanted], view)
        kept = suppress(seen, classes if step.by_class else np.zeros_like(classes), step.iou_max, step.detections_max)
        sent = restore(seen[kept], view)
        if len(kept) and not 0 <= classes[kept].min() <= classes[kept].max() < len(labels):
            raise Unfit(f"a class is outside 0..{len(labels) - 1}")
        reading.answer[step.field] = [
            {"label": labels[index], "index": index, "score": score, "box": _as_object(corner)}
            for index, score, corner in zip(classes[kept].tolist(), scores[kept].tolist(), sent.tolist(), strict=True)
        ]

    return operation


def _best(step: p.Boxes, reading: Reading) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Return the best score [n] of each box, and its class [n]."""
    scores = reading.tensors[step.scores]
    count = len(reading.tensors[step.boxes])
    for name in filter(None, (step.scores, step.classes, step.objectness)):
        if len(reading.tensors[name]) != count:
            raise Unfit(f"{name!r} has {len(reading.tensors[name])} rows, and there are {count} boxes")
    classes = np.zeros(count, np.int64)
    if scores.ndim == 2:
        classes = scores.argmax(axis=1)
        scores = np.take_along_axis(scores, classes[:, np.newaxis], axis=1)[:, 0]
    elif step.classes:
        given = reading.tensors[step.classes]
        classes = (np.nan_to_num(given, nan=-1.0) if given.dtype.kind == "f" else given).astype(np.int64)
    best = scores.astype(np.float32)
    if step.objectness:
        best = best * reading.tensors[step.objectness].astype(np.float32)
    return best, classes


def corners(step: p.Boxes, raw: Floats, view: View) -> Floats:
    """Return [n, 4] as left, top, right, bottom in pixels of the image that the model saw."""
    a, b, c, d = raw[:, 0], raw[:, 1], raw[:, 2], raw[:, 3]
    match step.format:
        case "xyxy":
            sides: tuple[Array, ...] = (a, b, c, d)
        case "yxyx":
            sides = (b, a, d, c)
        case "xywh":
            sides = (a, b, a + c, b + d)
        case "cxcywh":
            sides = (a - c / 2, b - d / 2, a + c / 2, b + d / 2)
    out: Floats = np.stack(sides, axis=1).astype(np.float32, copy=False)
    if step.units == "shares":
        out *= np.array([view.seen_width, view.seen_height] * 2, np.float32)
    return out


def suppress(boxes: Floats, groups: npt.NDArray[np.int64], iou_max: float, count_max: int) -> npt.NDArray[np.intp]:
    """Return the indices of the boxes that stay, in order, at most `count_max`.

    Args:
        boxes: float32 [n, 4], corners, best score first.
        groups: int64 [n]; only boxes of one group suppress each other.
    """
    areas = np.maximum(boxes[:, 2] - boxes[:, 0], 0) * np.maximum(boxes[:, 3] - boxes[:, 1], 0)
    left = np.arange(len(boxes))
    kept: list[np.intp] = []
    while left.size and len(kept) < count_max:
        best, left = left[0], left[1:]
        kept.append(best)
        low = np.maximum(boxes[best, :2], boxes[left, :2])
        high = np.minimum(boxes[best, 2:], boxes[left, 2:])
        shared = np.prod(np.maximum(high - low, 0), axis=1)
        # Compared without the division, which empty boxes would make one by zero.
        overlaps = shared > iou_max * (areas[best] + areas[left] - shared)
        left = left[~(overlaps & (groups[left] == groups[best]))]
    return np.array(kept, np.intp)


def restore(boxes: Floats, view: View) -> Array:
    """Return corners in pixels of the image as sent, float64 [n, 4], clipped to it."""
    scale = np.array([view.scale_x, view.scale_y] * 2)
    offset = np.array([view.left, view.top] * 2)
    sent: Array = np.clip(boxes * scale + offset, 0, np.array([view.width, view.height] * 2))
    return sent


def _as_object(corner: list[float]) -> dict[str, float]:
    left, top, right, bottom = corner
    return {
        "left": round(left, 2),
        "top": round(top, 2),
        "width": round(max(0.0, right - left), 2),
        "height": round(max(0.0, bottom - top), 2),
    }
