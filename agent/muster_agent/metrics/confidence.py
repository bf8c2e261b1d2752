"""Which class an answer is, and how sure of it the model is: the same for what is served and for the reference.

The first output is class scores if it is numeric [rows, classes] with two classes or more, as feedback has it too.
"""

import numpy as np
import numpy.typing as npt

from muster_shared.metrics import CLASSES_MAX, CONFIDENCE_BINS

_ROUNDING = 1e-3  # Softmax in float16 adds up to a little more than 1.


def has_classes(output: npt.NDArray[np.generic]) -> bool:
    return output.ndim == 2 and output.dtype.kind in "iuf" and output.shape[1] >= 2


def classes_and_confidence(
    output: npt.NDArray[np.generic],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Return of class scores [n, classes] the class of each row, int64 [n] below CLASSES_MAX, and its confidence,
    float32 [n], 0..1; NaN where the scores are no numbers.

    A row of numbers within 0..1 is probabilities, and the largest is the confidence; of any other, scores before a
    softmax, it is what softmax makes of the largest.
    """
    scores = output.astype(np.float32, copy=False)
    classes = scores.argmax(axis=1)
    highest = scores[np.arange(len(scores)), classes]
    confidence = np.clip(highest, 0.0, 1.0)
    # Asking about all rows at once costs a twentieth of asking about each. A NaN anywhere makes it ask each.
    if len(scores) and not (scores.min() >= -_ROUNDING and highest.max() <= 1 + _ROUNDING):
        raw = ~((scores.min(axis=1) >= -_ROUNDING) & (highest <= 1 + _ROUNDING))
        with np.errstate(invalid="ignore", over="ignore"):
            confidence[raw] = 1 / np.exp(scores[raw] - highest[raw, None]).sum(axis=1)
    return np.minimum(classes, CLASSES_MAX - 1), confidence


def confidence_bins(confidence: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Return the bin of each confidence, 0..1: CONFIDENCE_BINS equal ones, of which the last has 1 too."""
    return np.minimum((confidence * CONFIDENCE_BINS).astype(np.int64), CONFIDENCE_BINS - 1)
