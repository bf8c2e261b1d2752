"""True labels for past answers: what a request was answered with is remembered for a while, to be judged later.

Bounded: the oldest answers are forgotten first. No input is kept, only the class that each row came out as.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from muster_agent.engines.port import Array
from muster_agent.serving.stats import WindowStats
from muster_shared.errors import MusterError

REMEMBERED_MAX = 4096
ROWS_MAX = 256  # Of one request; a larger batch is not remembered.

Label = str | int


class FeedbackUnmatched(MusterError):
    """No answer under this request id is remembered: it is too old, was judged already, or has no classes."""


class FeedbackInvalid(MusterError):
    """The labels do not fit the answer."""


@dataclass(frozen=True, eq=False)
class _Answer:
    stats: WindowStats  # Of the release that gave the answer, which may serve no more.
    labels: tuple[str, ...]
    classes: int
    predicted: tuple[int, ...]


class FeedbackRing:
    """The latest answers by model and request id. Used on the serving loop only."""

    def __init__(self, remembered_max: int = REMEMBERED_MAX) -> None:
        self._remembered_max = remembered_max
        self._answers: OrderedDict[tuple[str, str], _Answer] = OrderedDict()

    def remember(self, model: str, request_id: str, output: Array, labels: tuple[str, ...], stats: WindowStats) -> None:
        """Remember an answer whose first output is class scores: numeric [rows, classes], at least two classes."""
        if output.ndim != 2 or output.dtype.kind not in "iuf" or output.shape[1] < 2 or output.shape[0] > ROWS_MAX:
            return
        predicted = tuple(np.argmax(output, axis=1).tolist())
        self._answers[model, request_id] = _Answer(stats, labels, output.shape[1], predicted)
        self._answers.move_to_end((model, request_id))
        if len(self._answers) > self._remembered_max:
            self._answers.popitem(last=False)

    def label(self, model: str, request_id: str, truth: Sequence[Label]) -> tuple[bool, ...]:
        """Count the true labels of a request, one a row, against its answer, once; return which rows were right.

        A text is looked up in the manifest's labels (without labels it must be a number); one that the release does not
        know is wrong: a class that only its successor knows must not flatter it. A number is an index.

        Raises:
            FeedbackUnmatched: nothing is remembered under this id.
            FeedbackInvalid: the labels do not fit; the answer stays remembered.
        """
        answer = self._answers.get((model, request_id))
        if answer is None:
            raise FeedbackUnmatched(
                f"no answer of {model!r} with classes is remembered under the id {request_id[:80]!r}; the last "
                f"{self._remembered_max} are, until they are labelled"
            )
        if len(truth) != len(answer.predicted):
            raise FeedbackInvalid(f"{len(truth)} labels were given for {len(answer.predicted)} rows")
        indices = [_index(answer, label) for label in truth]
        del self._answers[model, request_id]
        right = tuple(index == predicted for index, predicted in zip(indices, answer.predicted, strict=True))
        for row in right:
            answer.stats.labelled(right=row)
        return right


def _index(answer: _Answer, label: Label) -> int | None:
    """Return the class index of `label`, None for a text that the release does not know."""
    if isinstance(label, str) and answer.labels:
        return answer.labels.index(label) if label in answer.labels else None
    try:
        index = int(label)
    except ValueError as error:
        raise FeedbackInvalid(f"label {str(label)[:80]!r} is not an index, and the release names no labels") from error
    if not 0 <= index < answer.classes:
        raise FeedbackInvalid(f"label index {index} is outside 0 to {answer.classes - 1}")
    return index
