"""Making a reference: from what a release answers to inputs that it was not trained on, to the file in its bundle.

    inputs [n, ...] ── one row at a time, as requests come ──▶ scores [n, classes]
        ── windows of WINDOW, each of one scene, drawn again and again ──▶ their mean confidence
        ── shares, bins and tails ──▶ reference.npz

For publishers, and away from any device. Nothing of a single input is in the file but the tails of its statistics.
"""

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from muster_agent.metrics.confidence import classes_and_confidence, confidence_bins, has_classes
from muster_agent.metrics.reference import (
    FORMAT,
    RESOLUTION,
    WINDOW,
    WINDOWS_MAX,
    WINDOWS_MIN,
    Counts,
    Floats,
    Reference,
    binned,
    statistics,
)
from muster_shared.errors import BundleError
from muster_shared.metrics import CLASSES_MAX, CONFIDENCE_BINS

ROWS_MIN: Final = 100
WINDOWS: Final = 1000
"""More cost 4 bytes each and see a little sooner; they tell no more than the rows that they are drawn from."""
BINS: Final = 20
TAIL: Final = 0.002
"""Share of rows beyond each tail."""

Array = npt.NDArray[np.generic]
Run = Callable[[Mapping[str, Array]], Array]
"""One request to the model: inputs by name, each with the row's own shape, to its first output."""


class ReferenceUnbuildable(BundleError):
    """The inputs, or what the model said to them, make no reference; the message says what is missing."""


@dataclass(frozen=True, eq=False)
class Observed:
    """What a release saw and said, row by row."""

    inputs: Mapping[str, Array]
    """By name, axis 0 the rows; text is left out of the reference."""
    scores: Array | None
    """The first output, [n, classes]; None: the release has no classes."""
    groups: Array | None = None
    """[n], the scene of each row (site, camera, patient, day): rows of one scene go together on a device too."""


def observe(inputs: Mapping[str, Array], ranks: Mapping[str, int], run: Run, groups: Array | None = None) -> Observed:
    """Ask the model about every row by itself: one that is quantized dynamically answers otherwise in a batch.

    Args:
        inputs: By name, axis 0 the rows.
        ranks: Of what the model takes, by name; an input with one axis less than its array has no batch axis.
    Raises:
        ReferenceUnbuildable: the arrays have different numbers of rows.
    """
    count = _rows(inputs)
    answers = []
    for row in range(count):
        one = {
            name: array[row : row + 1] if array.ndim == ranks[name] else array[row] for name, array in inputs.items()
        }
        answers.append(run(one))
    if not all(has_classes(answer) and len(answer) == 1 for answer in answers):
        return Observed(inputs, None, groups)
    return Observed(inputs, np.concatenate(answers), groups)


def build(observed: Observed, *, windows: int = WINDOWS, seed: int = 0) -> bytes:
    """Return the content of the reference file. The same arguments give the same bytes.

    Args:
        windows: How many to draw, 100 to 10,000.
    Raises:
        ReferenceUnbuildable: there are too few rows, or what they hold or the model's scores are no numbers.
    """
    count = _rows(observed.inputs)
    if count < ROWS_MIN:
        raise ReferenceUnbuildable(f"there are {count} rows; a reference needs {ROWS_MIN}, and is good from 1,000 on")
    if not WINDOWS_MIN <= windows <= WINDOWS_MAX:
        raise ReferenceUnbuildable(f"{windows} windows; draw {WINDOWS_MIN} to {WINDOWS_MAX:,}")
    arrays: dict[str, npt.NDArray[np.int64] | npt.NDArray[np.float32] | Floats] = {
        "format": np.array([FORMAT], np.int64),
        "inferences": np.array([count], np.int64),
        "classes": np.zeros(0, np.int64),
        "confidence": np.zeros(CONFIDENCE_BINS, np.int64),
        "confidence_windows": np.zeros(0, np.float32),
        "confidence_error": np.zeros(1, np.float32),
    }
    if observed.scores is not None:
        classes, confidence = classes_and_confidence(observed.scores)
        if not np.isfinite(confidence).all():
            raise ReferenceUnbuildable(
                "the model's scores have what is not a finite number; look at those inputs first"
            )
        scenes = _scenes(observed.groups, count)
        number = min(observed.scores.shape[1], CLASSES_MAX)
        arrays["classes"] = np.bincount(classes, minlength=number)
        arrays["confidence"] = np.bincount(confidence_bins(confidence), minlength=CONFIDENCE_BINS)
        arrays["confidence_windows"] = _windows(confidence, scenes, windows, np.random.default_rng(seed))
        arrays["confidence_error"] = np.array([_centre_error(confidence, scenes)], np.float32)
    for name, rows in observed.inputs.items():
        if rows.dtype.kind in "biuf":
            arrays |= {f"input.{name}.{key}": value for key, value in _input(name, rows).items()}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    raw = buffer.getvalue()
    Reference.parse(raw)
    return raw


def _rows(inputs: Mapping[str, Array]) -> int:
    counts = {len(array) if array.ndim else 0 for array in inputs.values()}
    if len(counts) != 1:
        raise ReferenceUnbuildable(f"the arrays have {sorted(counts)} rows; each must have the same")
    return counts.pop()


def _scenes(groups: Array | None, count: int) -> Counts:
    """Return the number of the scene of each row, from 0; all are one scene when nothing is known of them."""
    if groups is None:
        return np.zeros(count, np.int64)
    if groups.shape != (count,):
        raise ReferenceUnbuildable(f"the groups have shape {list(groups.shape)}; there must be one for each of {count}")
    return np.unique(groups, return_inverse=True)[1].astype(np.int64)


def _windows(
    confidence: npt.NDArray[np.float32], scenes: Counts, windows: int, rng: np.random.Generator
) -> npt.NDArray[np.float32]:
    """Return the mean confidence of windows: a scene each, as often as it has rows, and WINDOW rows of it."""
    order = np.argsort(scenes, kind="stable")
    sizes = np.bincount(scenes)
    starts = np.cumsum(sizes) - sizes
    chosen = scenes[rng.integers(len(scenes), size=windows)]
    places = (rng.random((windows, WINDOW)) * sizes[chosen, None]).astype(np.int64) + starts[chosen, None]
    means: npt.NDArray[np.float32] = confidence[order[places]].mean(axis=1, dtype=np.float64).astype(np.float32)
    return means


def _centre_error(confidence: npt.NDArray[np.float32], scenes: Counts) -> float:
    """Return the standard error of the mean confidence, from how scenes differ; of one scene, from how rows do.

    Confidence is mostly near 1, and what makes the mean uncertain are the few rows that are not: as if one more row had
    been wholly unsure, so that a sample that happens to have none of them does not pass for exact.
    """
    values = confidence.astype(np.float64)
    sizes = np.bincount(scenes)
    if len(sizes) == 1:
        return float(np.sqrt((values.var() + values.mean() ** 2 / len(values)) / len(values)))
    off = np.bincount(scenes, weights=values) / sizes - values.mean()
    return float(np.sqrt(((sizes / sizes.sum() * off) ** 2).sum() * len(sizes) / (len(sizes) - 1)))


def _input(name: str, rows: Array) -> dict[str, Counts | Floats]:
    means, stds = statistics(rows)
    if not (np.isfinite(means).all() and np.isfinite(stds).all()):
        raise ReferenceUnbuildable(
            f"input {name!r} has what is not a finite number; a reference is made of clean inputs"
        )
    resolution = RESOLUTION * max(float(np.abs(means).max()), float(stds.max()))
    found: dict[str, Counts | Floats] = {}
    for key, values in (("mean", means), ("std", stds)):
        edges = _edges(values, resolution)
        found[f"{key}_edges"] = edges
        found[f"{key}_counts"] = binned(values, edges)
    found["tails"] = np.concatenate([np.quantile(values, (TAIL, 1 - TAIL)) for values in (means, stds)])
    return found


def _edges(values: Floats, resolution: float) -> Floats:
    """Return the inner edges of BINS bins with as many values each; closer ones than `resolution` are one."""
    edges: list[float] = []
    for edge in np.quantile(values, np.arange(1, BINS) / BINS).tolist():
        beyond = edges[-1] if edges else float(values.min())
        if edge - beyond > resolution:
            edges.append(edge)
    return np.array(edges, np.float64)
